"""`clebsch demo --model` from end to end where sevenn is installed, and its error messages everywhere."""

import importlib.util
import json
import re

import numpy as np
import pytest

pytest.importorskip("ase")

from clebsch import demo
from clebsch.demo import sevennet

needs_everything = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("matplotlib", "rich", "sevenn")),
    reason="sevenn, rich or matplotlib is not installed",
)


@needs_everything
@pytest.mark.parametrize("crystal", ["cu-al", "si"])
def test_dynamics_of_both_models(tmp_path, capsys, monkeypatch, crystal):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--model", "7net-0", "--steps", "1", "--crystal", crystal, "--output", str(tmp_path / "new")]
    assert demo.main(arguments) == 0
    report = json.loads((tmp_path / "new" / "dynamics.json").read_text())
    assert (tmp_path / "new" / "dynamics.png").read_bytes().startswith(b"\x89PNG")
    assert report["atoms"] == {"cu-al": 108, "si": 216}[crystal]
    assert report["agree"] and report["edges"] > 3000 and report["ratio"] > 0
    assert len(report["force_difference"]) == len(report["energy_difference"]) == 2
    stock, fast = (np.array(report["energies"][name]) for name in ("sevenn", "clebsch"))
    assert stock.shape == (2,) and np.ptp(stock) > 0
    assert abs(stock - fast).max() < 1e-6 * abs(stock[0])
    printed = capsys.readouterr().out
    for line in ("842,623 parameters", "largest difference of a force", "total energy, drift", "meV/atom/ps"):
        assert line in printed
    assert re.search(r"a step, accelerated +\| +\d+ ms \(\d+\.\d x\)", printed)
    assert re.search(r"dynamics +\S+ 1/1 ETA \d:\d\d:\d\d sevenn \d+ ms, clebsch \d+ ms", printed)


@needs_everything
def test_a_model_that_computes_something_else_fails(tmp_path, capsys, monkeypatch):
    make = sevennet._calculators

    def changed(name):
        stock, fast, probe = make(name)
        probe.model.rescale_atomic_energy.scale.data *= 1.001
        return stock, fast, probe

    monkeypatch.setattr(sevennet, "_calculators", changed)
    assert demo.main(["--model", "7net-0", "--steps", "1", "--output", str(tmp_path)]) == 1
    message = "clebsch demo: the accelerated model does not compute what the model does\n"
    assert capsys.readouterr().err.endswith(message)


def test_missing_packages_are_named_before_anything_runs(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    present = ("ase", "matplotlib", "rich")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "sevenn" else object() if name in present else find(name),
    )
    assert demo.main(["--model", "7net-0", "--output", str(tmp_path / "out")]) == 2
    message = 'clebsch demo: --model needs sevenn: pip install "clebsch[sevennet]"\n'
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "7net-0", "--data", "x.npz"], "--data does not go with --model"),
        (["--model", "7net-0", "--epochs", "3"], "--epochs does not go with --model"),
        (["--crystal", "si"], "--crystal does not go without --model"),
        (["--steps", "3"], "--steps does not go without --model"),
        (["--model", "7net-9"], "invalid choice: '7net-9'"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_crystals_are_the_same_for_a_seed():
    first, again, other = (sevennet.make_crystal("cu-al", seed) for seed in (0, 0, 1))
    assert first.symbols.count("Al") == 27 and len(first) == 108
    assert list(first.symbols) == list(again.symbols) != list(other.symbols)
    assert np.array_equal(first.get_momenta(), again.get_momenta())
    assert abs(first.get_momenta().sum(axis=0)).max() < 1e-10
    assert len(sevennet.make_crystal("si", 0)) == 216


def test_conservation_of_a_straight_line():
    """108 atoms that gain 2 meV each in a picosecond, with an alternating millielectronvolt on top."""
    steps = np.arange(101)
    energies = 0.108 * (-4000 + 2 * 1e-3 * sevennet.TIMESTEP * steps + 0.5 * (-1.0) ** steps)
    found = sevennet.conservation(sevennet.Run(list(energies)), 108)
    assert found["drift"] == pytest.approx(2, rel=0.05)
    assert found["fluctuation"] == pytest.approx(0.5, rel=0.02)
