import importlib.util
import logging
import os
import platform
import re
import subprocess
import sys
import types

import pytest
import torch

import clebsch
from clebsch import backend, cli
from clebsch.convert import command
from clebsch.convert.swap import is_accelerated


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
        ([], "a command is needed: info, check, demo, sevenn, mace_run_train or mace_eval_configs"),
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


@pytest.mark.parametrize(
    "command, package, requirement",
    [
        ("sevenn", "sevenn", '"clebsch[sevennet]"'),
        ("mace_run_train", "mace", "mace-torch"),
        ("mace_eval_configs", "mace", "mace-torch"),
    ],
)
def test_commands_of_packages_that_are_not_there(command, package, requirement, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert cli.main([command, "--help"]) == 2
    message = f"clebsch {command}: needs {package}: pip install {requirement}\n"
    assert capsys.readouterr().err == message


def test_sevenn_is_told_what_it_cannot_do(capsys):
    assert cli.main(["sevenn", "get_model", "7net-0"]) == 2
    message = "clebsch sevenn: a deployed model is TorchScript, which cannot be accelerated\n"
    assert capsys.readouterr().err == message


@pytest.fixture
def program():
    """A module of somebody else's, with a function that builds a model and one that fails."""
    place = types.SimpleNamespace(seen=[])
    place.build = lambda: place.seen.append(list(sys.argv))
    return place


def test_commands_of_others_run_switched_on(program):
    switch, stock, given = command.Switch(), program.build, list(sys.argv)

    def double(function):
        return lambda: (function(), function())

    def enable():
        switch.replace((program, "build", double))

    needs = ("os", "nothing")
    assert command.run("name", ["a", "b"], needs, enable, switch.off, lambda: lambda: program.build()) == 0
    assert program.seen == [["name", "a", "b"]] * 2
    assert program.build is stock and sys.argv == given and not switch.is_on

    def fail():
        assert switch.is_on
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        command.run("name", [], needs, enable, switch.off, lambda: fail)
    assert program.build is stock and sys.argv == given


def test_commands_of_versions_that_are_not_known(program, capsys):
    switch = command.Switch()

    def enable():
        switch.replace(*((program, name, lambda function: function) for name in ("build", "train")))

    stock = program.build
    assert command.run("name", [], ("os", "nothing"), enable, switch.off, lambda: pytest.fail) == 2
    message = "clebsch name: this version of os is not known: "
    assert capsys.readouterr().err.startswith(message)
    assert program.build is stock and not switch.is_on


def small_model():
    o3 = pytest.importorskip("e3nn.o3")
    return torch.nn.Sequential(o3.Linear("2x0e", "2x0e"))


def test_what_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    switch = command.Switch()
    model = clebsch.accelerate(small_model())
    switch.say(model.modules())
    switch.say(model.modules())
    assert capsys.readouterr().err == "clebsch: 1 module accelerated\n"
    switch.off()
    switch.say([torch.nn.ReLU()])
    assert capsys.readouterr().err == "clebsch: no module is accelerated, the model runs as it is\n"
    switch.off()
    changed = small_model()
    changed[0].forward = changed[0].forward
    switch.say(clebsch.accelerate(changed, inplace=True).modules())
    message = (
        "clebsch: no module is accelerated, the model runs as it is; left: Linear, its forward was replaced\n"
    )
    assert capsys.readouterr().err == message


def test_an_error_is_shown_whatever_comes_of_restoring(caplog):
    model = small_model()
    with pytest.raises(ZeroDivisionError), command.while_accelerated(model):
        raise ZeroDivisionError
    assert not any(map(is_accelerated, model.modules()))
    with pytest.raises(ZeroDivisionError), command.while_accelerated(model):
        torch.nn.utils.parametrize.register_parametrization(model[0], "weight", torch.nn.Identity())
        raise ZeroDivisionError
    assert "restore: model.0 has a class on top of ours" in caplog.text
    model = small_model()
    with pytest.raises(ValueError, match="restore: "), command.while_accelerated(model):
        torch.nn.utils.parametrize.register_parametrization(model[0], "weight", torch.nn.Identity())
