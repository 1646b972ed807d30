"""MACE's commands, as they are and through `clebsch`: what they train, and the files that they write.

Run in an environment that holds mace-torch, with clebsch on PYTHONPATH: tests/clients/run.py.
"""

import logging
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
pytest.importorskip("mace.modules", reason="needs mace-torch")

import ase.io
import client_checks as checks
from ase.build import molecule
from mace import tools
from mace.cli import eval_configs, run_train
from test_mace import batch, build, evaluation

import clebsch
from clebsch import cli
from clebsch.convert import mace_command
from clebsch.convert.swap import is_accelerated

TRAIN = (
    "--name=tiny --train_file=frames.xyz --valid_fraction=0.25 --E0s=average --num_channels=4 --max_L=1 "
    "--max_ell=2 --correlation=2 --r_max=4 --batch_size=2 --valid_batch_size=2 --num_interactions=2 "
    "--device=cpu --default_dtype=float64 --seed=1 --ema --swa --start_swa=1 --plot=False"
).split()


@contextmanager
def in_its_process():
    """What MACE's commands set for a whole process is undone."""
    log, dtype = logging.getLogger(), torch.get_default_dtype()
    handlers, level, filters = list(log.handlers), log.level, list(log.filters)
    try:
        yield
    finally:
        log.handlers, log.filters = handlers, filters
        log.setLevel(level)
        torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True)
def surroundings():
    with in_its_process():
        yield
    assert not mace_command._switch.is_on


@pytest.fixture
def frames():
    """Labelled by springs between all pairs: numbers of the right kind."""
    made, random = [], np.random.default_rng(0)
    for place in range(8):
        atoms = molecule("CH3CH2OH" if place % 2 else "H2O")
        atoms.positions += 0.05 * random.standard_normal(atoms.positions.shape)
        apart = atoms.positions[:, None] - atoms.positions
        atoms.info["REF_energy"] = 0.05 * float((apart**2).sum()) / 2
        atoms.arrays["REF_forces"] = -0.1 * apart.sum(1)
        made.append(atoms)
    return made


@pytest.fixture
def folders(tmp_path, frames):
    """One for MACE's own command and one for ours, with the same frames."""
    made = {who: tmp_path / who for who in ("stock", "fast")}
    for folder in made.values():
        folder.mkdir()
        ase.io.write(folder / "frames.xyz", frames)
    return made


def run(who, folder, command, *arguments):
    """A command of MACE's in a folder: as it is, or through `clebsch`."""
    with in_its_process(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if who == "fast":
            assert cli.main([command, *arguments]) == 0
        else:
            patch.setattr(sys, "argv", [command, *arguments])
            {"mace_run_train": run_train, "mace_eval_configs": eval_configs}[command].main()


def text(folder):
    return (folder / "logs" / "tiny_run-1.log").read_text()


def assert_same_weights(folders, file):
    """In rounding of float64, through two or three epochs of Adam."""
    states = [torch.load(folder / file, weights_only=False) for folder in folders.values()]
    states = [state["model"] if isinstance(state, dict) else state.state_dict() for state in states]
    assert list(states[0]) == list(states[1])
    for name, theirs in states[0].items():
        checks.assert_close(name, states[1][name].double(), theirs.double(), 1e-8)


# What plain MACE does with a file, in a process that cannot import clebsch.
PLAIN = """
import sys
sys.modules["clebsch"] = None
import ase.io, torch
from mace.calculators import MACECalculator
for folder in sys.argv[1:]:
    for file in ("tiny.model", "tiny_stagetwo.model", "checkpoints/tiny_run-1.model"):
        model = torch.load(f"{folder}/{file}", weights_only=False)
        assert not any(hasattr(part, "_clebsch_rule") for part in model.modules())
        atoms = ase.io.read(f"{folder}/frames.xyz")
        atoms.calc = MACECalculator(f"{folder}/{file}", device="cpu", default_dtype="float64")
        print("energy", repr(float(atoms.get_potential_energy())))
    torch.jit.load(f"{folder}/tiny_compiled.model")
"""


def test_training(folders, monkeypatch):
    """Two epochs, one of them of stage two, and a third from the checkpoint; then a file for plain MACE."""
    seen = []
    step = tools.train.__globals__["take_step"]

    def watched(model, *args, **kwargs):
        seen.append(any(map(is_accelerated, model.modules())))
        out = step(model, *args, **kwargs)
        if seen[-1]:
            checks.assert_on_kernels(model)
        return out

    monkeypatch.setitem(tools.train.__globals__, "take_step", watched)
    for who, folder in folders.items():
        run(who, folder, "mace_run_train", *TRAIN, "--max_num_epochs=2")
    assert seen == [False] * 6 + [True] * 6
    assert text(folders["fast"]).count("clebsch: ") == 1 and "clebsch: 21 modules" in text(folders["fast"])
    assert "clebsch" not in text(folders["stock"])
    for file in ("tiny.model", "tiny_stagetwo.model", "checkpoints/tiny_run-1_epoch-1_swa.pt"):
        assert_same_weights(folders, file)
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, *folders.values()]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    energies = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("energy")]
    np.testing.assert_allclose(energies[:3], energies[3:], rtol=1e-8)
    stock, fast = (folder / "checkpoints" for folder in folders.values())
    stock.rename(stock.with_name("own"))
    fast.rename(stock)
    stock.with_name("own").rename(fast)
    for who, folder in folders.items():  # from the checkpoint of the other
        run(who, folder, "mace_run_train", *TRAIN, "--max_num_epochs=3", "--restart_latest")
        assert "Loading checkpoint: ./checkpoints/tiny_run-1_epoch-1_swa.pt" in text(folder)
        assert "Loaded Stage two model from epoch 2" in text(folder)
    assert seen == ([False] * 6 + [True] * 6) * 2  # MACE repeats the epoch of the checkpoint
    assert_same_weights(folders, "tiny_stagetwo.model")


def test_evaluation(folders, capsys):
    model = build()
    written = {}
    for who, folder in folders.items():
        torch.save(model, folder / "some.model")
        before = (folder / "some.model").read_bytes()
        arguments = "--configs=frames.xyz --model=some.model --output=out.xyz --batch_size=3".split()
        run(who, folder, "mace_eval_configs", *arguments)
        assert (folder / "some.model").read_bytes() == before
        written[who] = ase.io.read(folder / "out.xyz", ":")
    assert capsys.readouterr().err.count("clebsch: 21 modules accelerated\n") == 1
    for theirs, ours in zip(*written.values(), strict=True):
        np.testing.assert_allclose(ours.info["MACE_energy"], theirs.info["MACE_energy"], rtol=1e-10)
        np.testing.assert_allclose(ours.arrays["MACE_forces"], theirs.arrays["MACE_forces"], atol=1e-7)


def test_an_error_is_shown_and_the_model_is_restored(monkeypatch):
    """Of training as of evaluation; also if restoring fails."""
    model = build()

    def train(model, on_top=False):
        assert any(map(is_accelerated, model.modules()))
        if on_top:
            linear = model.interactions[0].linear_up
            torch.nn.utils.parametrize.register_parametrization(linear, "weight", torch.nn.Identity())
        raise FloatingPointError("loss is no number")

    monkeypatch.setattr(tools, "train", train)
    mace_command.enable()
    mace_command.enable()  # once is enough
    try:
        with pytest.raises(FloatingPointError, match="loss is no number"):
            tools.train(model)
        assert not any(map(is_accelerated, model.modules()))
        with pytest.raises(FloatingPointError, match="loss is no number"):
            tools.train(model=model, on_top=True)
    finally:
        mace_command.disable()
    assert tools.train is train


def test_models_of_others_say_nothing_of_numbers(capsys):
    mace_command.enable()
    try:
        model = torch.nn.Sequential(torch.nn.ReLU())
        with pytest.raises(TypeError):
            eval_configs.get_model_output(model, {}, False, False)
    finally:
        mace_command.disable()
    message = "clebsch: no module is accelerated, the model runs as it is\n"
    assert capsys.readouterr().err == message


def test_a_trained_model_evaluates_as_before():
    """What `create_error_table` leaves is the model it was given."""
    model = build()
    evaluate = evaluation(batch("molecule"), stress=False)
    before = evaluate(model)
    mace_command.enable()
    try:
        with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
            patch.setitem(run_train.create_error_table.__wrapped__.__globals__, "evaluate", _refuse)
            run_train.create_error_table("TotalRMSE", {"train": []}, model, None, {}, False, "cpu")
    finally:
        mace_command.disable()
    assert clebsch.restore(model) is model
    for name, value in evaluate(model).items():
        assert torch.equal(value, before[name])


def _refuse(model, **_):
    assert any(map(is_accelerated, model.modules()))
    raise RuntimeError("no data")
