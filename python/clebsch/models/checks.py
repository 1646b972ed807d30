"""Is a trained potential what it should be? Symmetry, and conservation of energy in dynamics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from clebsch.data import Frame, draw_momenta
from clebsch.models.batch import Structure, collate
from clebsch.models.potential import Potential


def equivariance_error(model: Potential, structures: Sequence[Structure], seed: int) -> dict[str, float]:
    """Largest change under a random rotation and the inversion together, in float64.

    "energy" in eV; "forces" relative to the largest force.
    """
    model = copy.deepcopy(model).double()
    # Differences of the interaction alone: a total of kiloelectronvolts has no digits for them.
    model.config = replace(model.config, reference_energies=(0.0,) * len(model.config.species))
    batch = collate(structures, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    orthogonal, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    improper = -orthogonal * torch.linalg.det(orthogonal)
    moved = replace(batch, positions=batch.positions @ improper.T, shifts=batch.shifts @ improper.T)
    energies, forces = model.energy_and_forces(batch)
    moved_energies, moved_forces = model.energy_and_forces(moved)
    force_error = (moved_forces - forces @ improper.T).abs().max() / forces.abs().max()
    return {"energy": float((moved_energies - energies).abs().max()), "forces": float(force_error)}


def energy_conservation(
    model: Potential,
    frame: Frame,
    steps: int,
    seed: int,
    *,
    temperature: float = 300.0,
    timestep: float = 0.5,
) -> dict[str, float]:
    """Constant-energy dynamics (velocity Verlet, `timestep` fs) from `frame` with random momenta. Needs ase.

    "picoseconds" run; "drift" (meV/atom/ps) is the slope of a line through the total energy and
    "fluctuation" (meV/atom) the rms distance from that line; "temperature" (K) at the end.
    """
    from ase import Atoms, units
    from ase.md.verlet import VelocityVerlet

    from clebsch.models.calculator import PotentialCalculator

    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.calc = PotentialCalculator(model)
    draw_momenta(atoms, temperature, np.random.default_rng(seed))
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(steps)
    times = 1e-3 * timestep * np.arange(len(energies))
    per_atom = 1e3 * np.asarray(energies) / len(atoms)
    slope, start = np.polyfit(times, per_atom, 1)
    return {
        "picoseconds": float(times[-1]),
        "drift": float(slope),
        "fluctuation": float(np.std(per_atom - start - slope * times)),
        "temperature": float(atoms.get_temperature()),
    }
