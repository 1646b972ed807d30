import importlib.util
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
        ([], "a command is needed: info, check, demo or sevenn"),
        (["inform"], "invalid choice: 'inform'"),
        (["check", "--rows", "0"], "argument --rows: must be an integer >= 1, got '0'"),
        (["check", "--seed", "-1"], "argument --seed: "),
        (["info", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def two_layers(monkeypatch):
    """`clebsch check` runs these two only."""
    from clebsch import o3, standard_layers

    layers = {
        "linear": o3.Linear("4x0e+2x1o", "3x0e+2x1o"),
        "product": o3.FullyConnectedTensorProduct("4x0e+2x1o", "1x0e+1x1o", "3x0e+2x1o"),
    }
    monkeypatch.setattr(standard_layers, "standard_layers", lambda: layers.items())


def test_check_passes_and_says_what_ran(two_layers, capsys):
    assert cli.main(["check", "--rows", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"instruction set   {backend.instruction_set()}" in lines
    assert re.fullmatch(r"ok    linear +10 checks  \d+\.\d s", lines[-3])
    assert re.fullmatch(r"ok    product +10 checks  \d+\.\d s", lines[-2])
    assert lines[-1] == "passed: 2 layers"


def test_check_fails_where_a_kernel_is_wrong(two_layers, capsys, monkeypatch):
    from clebsch.o3 import tensor_product

    right = tensor_product.multiply_rows
    monkeypatch.setattr(tensor_product, "multiply_rows", lambda *given: right(*given) * 1.001)
    assert cli.main(["check"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^ok    linear ", out, re.MULTILINE)
    assert re.search(r"^FAIL  product ", out, re.MULTILINE)
    assert re.search(r"^  FAIL  values  +float64  error ", out, re.MULTILINE)
    assert out.endswith("NOT PASSED: 1 of 2 layers\n")


def test_check_needs_the_compiled_libraries():
    result = run("check", CLEBSCH_ISA="mmx")
    assert result.returncode == 1
    assert result.stderr.startswith("clebsch: the compiled libraries cannot be used: ")
    assert "Traceback" not in result.stderr


def test_demo_is_handed_its_arguments(monkeypatch):
    from clebsch import demo

    given = []
    monkeypatch.setattr(demo, "main", given.append)
    assert cli.main(["demo", "--data", "frames.npz"]) == 0
    assert given == [["--data", "frames.npz"]]


def test_sevenn_is_told_what_it_cannot_do(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sevenn" else find(name))
    assert cli.main(["sevenn", "train", "input.yaml"]) == 2
    message = 'clebsch sevenn: needs sevenn: pip install "clebsch[sevennet]"\n'
    assert capsys.readouterr().err == message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert cli.main(["sevenn", "get_model", "7net-0"]) == 2
    message = "clebsch sevenn: a deployed model is TorchScript, which cannot be accelerated\n"
    assert capsys.readouterr().err == message
