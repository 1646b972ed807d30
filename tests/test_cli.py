import os
import platform
import re
import subprocess
import sys

import pytest
import torch

import clebsch
from clebsch import backend, cli


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "clebsch", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_version():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"clebsch {clebsch.__version__}\n")


def test_info_names_what_runs(capsys):
    assert cli.main(["info"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = {line[0]: line[1] for line in lines}
    assert shown["clebsch"] == clebsch.__version__
    assert shown["torch"] == torch.__version__
    assert shown["python"] == platform.python_version()
    assert shown["threads"] == str(torch.get_num_threads())
    text = "\n".join(" ".join(line) for line in lines)
    assert re.search(r"^backend cpu .*usable", text, re.MULTILINE)
    assert f"compiled {', '.join(backend.compiled_instruction_sets())}" in text
    assert f"usable here {', '.join(backend.usable_instruction_sets())}" in text
    assert f"in use {backend.instruction_set()}" in text
    for noun in ("spherical_harmonics", "tensor_product", "linear"):
        line = rf"^unrolled to degree \d+ \(float32\), \d+ \(float64\): {noun}$"
        assert re.search(line, text, re.MULTILINE)


def test_info_follows_the_chosen_instruction_set():
    result = run("info", CLEBSCH_ISA="baseline")
    assert result.returncode == 0
    assert re.search(r"^ +in use baseline$", result.stdout, re.MULTILINE)


def test_info_shows_the_versions_even_when_nothing_compiled_runs():
    result = run("info", CLEBSCH_ISA="mmx")
    assert result.returncode == 1
    assert result.stdout.startswith("clebsch ")
    assert result.stderr.startswith("clebsch: the compiled libraries cannot be used: ")
    assert "mmx" in result.stderr and "baseline" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "a command is needed: info or demo"),
        (["inform"], "invalid choice: 'inform'"),
        (["info", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_demo_is_handed_its_arguments(monkeypatch):
    from clebsch import demo

    given = []
    monkeypatch.setattr(demo, "main", given.append)
    assert cli.main(["demo", "--data", "frames.npz"]) == 0
    assert given == [["--data", "frames.npz"]]
