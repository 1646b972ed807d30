"""`clebsch demo --quick` from end to end, on both kinds of data and without any; and its error messages."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from clebsch import demo
from clebsch.demo import training
from clebsch.models import load_checkpoint

needs_tblite = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason="tblite is not installed"
)


def spring_frames(count: int, seed: int = 0):
    """A water molecule on springs: positions, energies (eV) and forces (eV/Angstrom)."""
    rng = np.random.default_rng(seed)
    rest = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    for _ in range(count):
        displacement = 0.05 * rng.normal(size=rest.shape)
        yield rest + displacement, -470.0 + 5 * (displacement**2).sum(), -10 * displacement


def write_npz(path) -> None:
    positions, energies, forces = map(np.array, zip(*spring_frames(30)))
    np.savez(
        path,
        nuclear_charges=np.array([8, 1, 1]),
        coords=positions,
        energies=energies / 0.0433641,
        forces=forces / 0.0433641,
    )


def write_periodic_xyz(path) -> None:
    lines = []
    for positions, energy, forces in spring_frames(30):
        lines += [
            "3",
            f'Lattice="6 0 0 0 6 0 0 0 6" Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f}',
        ]
        for symbol, position, force in zip("OHH", positions, forces):
            lines.append(" ".join([symbol, *(f"{value:.8f}" for value in (*position, *force))]))
    path.write_text("\n".join(lines) + "\n")


def check_output(folder) -> dict:
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert load_checkpoint(folder / "potential.pt").config.hidden == training.QUICK.hidden
    assert report["equivariance"]["energy"] < 1e-12 and report["equivariance"]["forces"] < 1e-12
    assert len(report["epochs"]) == 2
    assert [speed["what"] for speed in report["speed"]] == ["training step", "force call"]
    assert all(speed["clebsch"] > 0 for speed in report["speed"])
    assert all(np.isfinite(value) for value in (*report["errors"].values(), *report["dynamics"].values()))
    return report


@needs_tblite
def test_without_data_it_labels_ethanol(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # a narrower terminal cuts the line of the bar
    assert demo.main(["--quick", "--output", str(tmp_path / "new" / "folder")]) == 0
    report = check_output(tmp_path / "new" / "folder")
    printed = capsys.readouterr().out
    for line in (
        "labelling",
        "training",
        "energy, test MAE",
        "forces, test MAE",
        "energy drift",
        "force call",
    ):
        assert line in printed
    assert "16 frames to train, 4 to validate, 4 to test; 9 atoms" in printed
    assert re.search(r"labelling +\S+ 24/24 ETA \d:\d\d:\d\d ethanol", printed)
    losses = r"loss \d\.\de[-+]\d\d, MAE \d+\.\d meV, \d+\.\d meV/Å"
    assert re.search(rf"training +\S+ 8/8 ETA \d:\d\d:\d\d {losses}", printed)
    assert len(re.findall(rf"epoch +[12]/2 +{losses}", printed)) == 2
    if importlib.util.find_spec("e3nn") is not None:
        assert "e3nn layers" in printed
        assert report["force_difference"] < 1e-4


@pytest.mark.parametrize(("name", "write"), [("water.npz", write_npz), ("water.xyz", write_periodic_xyz)])
def test_with_data(tmp_path, capsys, name, write):
    write(tmp_path / name)
    arguments = ["--quick", "--data", str(tmp_path / name), "--output", str(tmp_path / "out"), "--seed", "5"]
    assert demo.main(arguments) == 0
    report = check_output(tmp_path / "out")
    assert report["problem"] == name
    assert report["forces_rms"] == pytest.approx(0.5, rel=0.3)
    assert "3 atoms, 6 edges within 4.5 Å" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["", "--model 7net-0"]),
        (["DATA=my frames.npz"], ['--data "my frames.npz"']),
        (["DATA=my frames.npz", "ARGS=--quick"], ['--data "my frames.npz" --quick']),
    ],
)
def test_make_demo_passes_data_and_arguments_on(given, passed):
    # What a make around the tests was given is not for this one.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(
        ["make", "-n", "demo", f"PYTHON={sys.executable}", *given],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = [line.partition("-m clebsch demo") for line in done.stdout.splitlines()]
    assert [given.strip() for _, command, given in calls if command] == passed


def test_without_e3nn_only_our_own_time_is_reported(tmp_path, capsys, monkeypatch):
    write_npz(tmp_path / "water.npz")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "e3nn" else find(name))
    assert demo.main(["--quick", "--data", str(tmp_path / "water.npz"), "--output", str(tmp_path)]) == 0
    report = check_output(tmp_path)
    assert report["force_difference"] is None and report["speed"][0]["e3nn"] is None
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("missing.npz", "data: no such file: missing.npz"),
        ("notes.txt", "data: expected a file ending in .npz, .xyz or .extxyz, got 'notes.txt'"),
        ("few.xyz", "data: needs at least 4 labelled frames, got 1"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, capsys, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "few.xyz").write_text(
        "1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=1.0\nH 0 0 0 0 0 0\n"
    )
    assert demo.main(["--quick", "--data", data]) == 2
    assert capsys.readouterr().err == f"clebsch demo: {message}\n"


@needs_tblite
def test_missing_extras_are_named_before_anything_runs(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("tblite", "rich") else find(name)
    )
    assert demo.main(["--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == 'clebsch demo: needs rich, tblite: pip install "clebsch[demo]"\n'
    assert not (tmp_path / "out").exists()


def test_a_bad_output_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    write_npz(tmp_path / "water.npz")
    assert (
        demo.main(["--quick", "--data", str(tmp_path / "water.npz"), "--output", str(tmp_path / "file")]) == 2
    )
    assert "--output" in capsys.readouterr().err


def test_bad_options_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--epochs", "0"])
    assert stopped.value.code == 2
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_larger_systems_get_fewer_epochs_then_fewer_frames():
    def structures(edges):
        return [type("", (), {"senders": torch.zeros(edges)})] * training.NUM_TRAIN

    frames, epochs = training._affordable(structures(72), None)
    assert (frames, epochs) == (training.NUM_TRAIN, 30)
    frames, epochs = training._affordable(structures(260), None)
    assert frames == training.NUM_TRAIN and 10 < epochs < 20
    frames, epochs = training._affordable(structures(20_000), None)
    assert frames < training.NUM_TRAIN and epochs == 10
    assert training._affordable(structures(20_000), 3) == (training.NUM_TRAIN, 3)
