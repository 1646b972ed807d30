"""Reading labelled frames, and what is said about files that are not."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from clebsch import data


def write_rmd17(path: Path, frames: int = 6, **changes) -> dict[str, np.ndarray]:
    """With the labels of the original MD17 beside the revised ones, as published."""
    rng = np.random.default_rng(0)
    arrays = {
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8),
        "coords": rng.normal(size=(frames, 3, 3)),
        "energies": rng.normal(size=frames) - 4e4,
        "forces": rng.normal(size=(frames, 3, 3)),
        "old_indices": rng.permutation(frames),
        "old_energies": rng.normal(size=frames) - 4e4,
        "old_forces": rng.normal(size=(frames, 3, 3)),
    } | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_rmd17_is_converted_to_electronvolts(tmp_path):
    arrays = write_rmd17(tmp_path / "water.npz")
    frames = data.read(tmp_path / "water.npz")
    assert len(frames) == 6
    kcal_per_mol = 0.0433641  # eV, CODATA
    for i, frame in enumerate(frames):
        assert frame.numbers.tolist() == [8, 1, 1]
        assert np.array_equal(frame.positions, arrays["coords"][i])
        assert frame.energy == pytest.approx(arrays["energies"][i] * kcal_per_mol, rel=1e-6)
        assert frame.forces == pytest.approx(arrays["forces"][i] * kcal_per_mol, rel=1e-6)
        assert not frame.pbc.any()


def write_extended_xyz(path: Path, frames: int = 5, periodic: bool = True) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(frames):
        cell = 'Lattice="4 0 0 0 5 0 0 0 6" pbc="T T F" ' if periodic else ""
        lines += ["2", f"{cell}Properties=species:S:1:pos:R:3:forces:R:3 energy={-10.5 - i}"]
        for symbol in ("O", "H"):
            lines.append(symbol + "".join(f" {value:.8f}" for value in rng.normal(size=6)))
    path.write_text("\n".join(lines) + "\n")


def test_extended_xyz_keeps_cell_and_labels(tmp_path):
    pytest.importorskip("ase")
    write_extended_xyz(tmp_path / "cell.xyz")
    frames = data.read(str(tmp_path / "cell.xyz"))
    assert [frame.energy for frame in frames] == [-10.5, -11.5, -12.5, -13.5, -14.5]
    assert frames[0].numbers.tolist() == [8, 1]
    assert np.array_equal(frames[0].cell, np.diag([4.0, 5.0, 6.0]))
    assert frames[0].pbc.tolist() == [True, True, False]
    rows = np.array(
        [line.split()[1:] for line in (tmp_path / "cell.xyz").read_text().splitlines()[2:4]], float
    )
    assert np.array_equal(frames[0].positions, rows[:, :3])
    assert np.array_equal(frames[0].forces, rows[:, 3:])


# Acetylacetone as published with BOTNet: labels of other kinds, a box around a molecule that does not repeat.
BOXED = """2
Lattice="50.0 0.0 0.0 0.0 50.0 0.0 0.0 0.0 50.0" Properties=species:S:1:pos:R:3:forces:R:3 \
dihedral_angle=17.98 config_type=300K_MD energy=-9391.25 pbc="F F F"
C        0.90992285       1.00769310      -0.21166840      -0.54831629       1.31972321      -1.35368428
O       -0.39796151      -0.90328979       1.47233183       1.52951191       0.45497011       1.31704509
"""


def test_extended_xyz_of_a_molecule_in_a_box(tmp_path):
    pytest.importorskip("ase")
    path = tmp_path / "molecule.xyz"
    path.write_text(BOXED * 2)
    frames = data.read(path)
    assert len(frames) == 2
    for frame in frames:
        assert frame.numbers.tolist() == [6, 8] and frame.energy == -9391.25
        assert frame.positions[1].tolist() == [-0.39796151, -0.90328979, 1.47233183]
        assert frame.forces[0].tolist() == [-0.54831629, 1.31972321, -1.35368428]
        assert not frame.pbc.any()
    path.write_text(BOXED + BOXED.replace(":forces:R:3", ":other:R:3"))
    with pytest.raises(ValueError, match=r"^data: molecule.xyz: frame 1 has no forces$"):
        data.read(path)


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data: no such file: .*nothing.npz"):
        data.read(tmp_path / "nothing.npz")
    (tmp_path / "frames.csv").write_text("1,2,3\n")
    with pytest.raises(
        ValueError, match=r"expected a file ending in .npz, .xyz or .extxyz, got 'frames.csv'"
    ):
        data.read(tmp_path / "frames.csv")


def test_rmd17_without_its_arrays(tmp_path):
    path = tmp_path / "bad.npz"
    write_rmd17(path, forces=None, energies=None)
    with pytest.raises(ValueError, match=r"bad.npz must hold the arrays .*; missing energies, forces"):
        data.read(path)
    write_rmd17(path, forces=np.zeros((6, 2, 3)))
    with pytest.raises(ValueError, match=r"forces must have shape \(6, 3, 3\), got \(6, 2, 3\)"):
        data.read(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"bad.npz is not an npz archive"):
        data.read(path)


def test_extended_xyz_without_labels(tmp_path):
    pytest.importorskip("ase")
    path = tmp_path / "bare.xyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3\nH 0 0 0\n")
    with pytest.raises(ValueError, match=r"bare.xyz: frame 0 has no energy and no forces"):
        data.read(path)
    path.write_text("not xyz at all\n")
    with pytest.raises(ValueError, match=r"bare.xyz is not an extended xyz file"):
        data.read(path)


def test_split_is_disjoint_repeatable_and_proportional(tmp_path):
    write_rmd17(tmp_path / "water.npz", frames=20)
    frames = data.read(tmp_path / "water.npz")
    train, test = data.split(frames, 8, 4, seed=3)
    again, _ = data.split(frames, 8, 4, seed=3)
    assert (len(train), len(test)) == (8, 4)
    assert [id(f) for f in train] == [id(f) for f in again]
    assert not {id(f) for f in train} & {id(f) for f in test}
    train, test = data.split(frames, 300, 100, seed=0)
    assert (len(train), len(test)) == (15, 5)
    with pytest.raises(ValueError, match="needs at least 4 labelled frames, got 3"):
        data.split(frames[:3], 1, 1, seed=0)


def test_labels_are_those_of_the_geometry():
    pytest.importorskip("ase")
    tblite = pytest.importorskip("tblite.ase")
    frames = data.label_ethanol(3, seed=1, stride=2, equilibration_steps=2, start_dihedral=60.0)
    again = data.label_ethanol(3, seed=1, stride=2, equilibration_steps=2, start_dihedral=60.0)
    assert [f.energy for f in frames] == pytest.approx([f.energy for f in again], abs=1e-9)
    from ase import Atoms

    atoms = Atoms(frames[2].numbers, frames[2].positions)
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
    assert atoms.get_potential_energy() == pytest.approx(frames[2].energy, abs=1e-5)
    assert atoms.get_forces() == pytest.approx(frames[2].forces, abs=1e-3)  # as far as the SCF is converged


def test_hydroxyl_dihedral_is_the_one_of_carbon_carbon_oxygen_hydrogen():
    molecule = pytest.importorskip("ase.build").molecule("CH3CH2OH")
    chain = data._hydroxyl_dihedral(molecule)
    assert [molecule.symbols[i] for i in chain] == ["C", "C", "O", "H"]
    bonds = [molecule.get_distance(a, b) for a, b in pairwise(chain)]
    assert bonds == pytest.approx([1.51, 1.43, 0.97], abs=0.05)
