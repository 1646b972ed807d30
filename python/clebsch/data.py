"""Labelled configurations: read from a file, or made from scratch with GFN2-xTB.

Everything here is numpy, in eV and Angstrom; what the network eats is made from it in models/batch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# 1 kcal/mol in eV: 4184 J over the Faraday constant (both exact since the SI of 2019).
KCAL_PER_MOL = 4184.0 / 96485.33212331002

RMD17_KEYS = ("nuclear_charges", "coords", "energies", "forces")


@dataclass(frozen=True)
class Frame:
    """One labelled configuration.

    numbers (N,) atomic numbers; positions (N, 3) Angstrom; energy eV; forces (N, 3) eV/Angstrom;
    cell (3, 3) Angstrom, rows are lattice vectors; pbc (3,) which of them repeat.
    """

    numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))


def read(path: str | Path) -> list[Frame]:
    """All frames of an rMD17 archive (.npz, kcal/mol) or an extended xyz file (.xyz, .extxyz, eV).

    Raises FileNotFoundError, or ValueError where the extension or the content is not one of these.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: no such file: {path}")
    if path.suffix == ".npz":
        return _read_rmd17(path)
    if path.suffix in (".xyz", ".extxyz"):
        return _read_extended_xyz(path)
    raise ValueError(f"data: expected a file ending in .npz, .xyz or .extxyz, got {path.name!r}")


def _read_rmd17(path: Path) -> list[Frame]:
    try:
        archive = np.load(path)
    except (
        OSError,
        ValueError,
    ) as error:  # numpy takes anything unknown for a pickle, which it must not open
        raise ValueError(f"data: {path.name} is not an npz archive: {error}") from error
    with archive:
        missing = [key for key in RMD17_KEYS if key not in archive]
        if missing:
            raise ValueError(
                f"data: {path.name} must hold the arrays {', '.join(RMD17_KEYS)}; "
                f"missing {', '.join(missing)}"
            )
        numbers, coords, energies, forces = (np.asarray(archive[key]) for key in RMD17_KEYS)
    expected = (len(energies), len(numbers), 3)
    for key, array in (("coords", coords), ("forces", forces)):
        if array.shape != expected:
            raise ValueError(f"data: {path.name}: {key} must have shape {expected}, got {array.shape}")
    return [
        Frame(numbers.astype(np.int64), position, float(energy) * KCAL_PER_MOL, force * KCAL_PER_MOL)
        for position, energy, force in zip(coords.astype(float), energies, forces.astype(float), strict=True)
    ]


def _read_extended_xyz(path: Path) -> list[Frame]:
    import ase.io

    try:
        images = ase.io.read(path, index=":", format="extxyz")
    except Exception as error:  # the parser's failures have no common type
        raise ValueError(f"data: {path.name} is not an extended xyz file: {error}") from error
    frames = []
    for index, atoms in enumerate(images):
        labels = dict(atoms.calc.results) if atoms.calc is not None else {}
        missing = [key for key in ("energy", "forces") if key not in labels]
        if missing:
            raise ValueError(f"data: {path.name}: frame {index} has no {' and no '.join(missing)}")
        frames.append(
            Frame(
                atoms.numbers.astype(np.int64),
                atoms.positions.copy(),
                float(labels["energy"]),
                np.asarray(labels["forces"], dtype=float),
                np.asarray(atoms.cell.array),
                np.asarray(atoms.pbc),
            )
        )
    return frames


def split(
    frames: Sequence[Frame], num_train: int, num_test: int, seed: int
) -> tuple[list[Frame], list[Frame]]:
    """Disjoint random training and test frames; a small file is shared out in the same proportion."""
    if len(frames) < 4:
        raise ValueError(f"data: needs at least 4 labelled frames, got {len(frames)}")
    wanted = num_train + num_test
    if len(frames) < wanted:
        num_test = max(1, len(frames) * num_test // wanted)
        num_train = len(frames) - num_test
    order = np.random.default_rng(seed).permutation(len(frames))
    train, test = order[:num_train], order[num_train : num_train + num_test]
    return [frames[i] for i in train], [frames[i] for i in test]


def label_ethanol(
    num_frames: int,
    seed: int,
    *,
    temperature: float = 500.0,
    start_dihedral: float = 180.0,
    equilibration_steps: int = 150,
    stride: int = 15,
    on_frame: Callable[[], None] = lambda: None,
) -> list[Frame]:
    """Ethanol along one Langevin trajectory on the GFN2-xTB surface, every `stride` femtoseconds.

    `start_dihedral` (degrees) turns the hydroxyl group before the run: the barrier between its three
    conformers is crossed too seldom in a picosecond to leave that to chance. Needs ase and tblite.
    GFN2-xTB: Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
    """
    from ase import units
    from ase.build import molecule
    from ase.md.langevin import Langevin
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = molecule("CH3CH2OH")
    carbon_1, carbon_2, oxygen, hydrogen = _hydroxyl_dihedral(atoms)
    atoms.set_dihedral(carbon_1, carbon_2, oxygen, hydrogen, start_dihedral, indices=[hydrogen])
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    draw_momenta(atoms, temperature, rng)
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(equilibration_steps)
    frames = []
    for _ in range(num_frames):
        dynamics.run(stride)
        frames.append(
            Frame(
                atoms.numbers.astype(np.int64),
                atoms.positions - atoms.get_center_of_mass(),
                float(atoms.get_potential_energy()),
                atoms.get_forces(),
            )
        )
        on_frame()
    return frames


def _hydroxyl_dihedral(atoms) -> tuple[int, int, int, int]:
    """Indices of C-C-O-H, found by distance so that no order of atoms in ase's table is assumed."""
    distances = atoms.get_all_distances()
    oxygen = atoms.symbols.indices()["O"][0]
    near, far = sorted(atoms.symbols.indices()["C"], key=lambda i: distances[oxygen, i])
    hydrogen = min(atoms.symbols.indices()["H"], key=lambda i: distances[oxygen, i])
    return int(far), int(near), int(oxygen), int(hydrogen)


def draw_momenta(atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta at `temperature` kelvin, without net linear momentum."""
    from ase import units

    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    momenta -= masses * momenta.sum(axis=0) / masses.sum()
    atoms.set_momenta(momenta)
