"""Structures, batches and losses for models of NequIP and Allegro, which have the same inputs and outputs."""

from __future__ import annotations

import ase
import client_checks as checks
import numpy as np
import torch
from ase.build import bulk, molecule
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.utils.global_state import set_global_state

NAMES = ["H", "C", "O"]
CUTOFF = 4.0


def _diamond(repeats):
    atoms = bulk("C", "diamond", a=3.6) * repeats
    atoms.rattle(0.05, seed=3)
    return atoms


def _boxed(atoms):
    """A molecule in a box, so that batches of it and of crystals have cells alike."""
    atoms.set_cell(20 * np.eye(3))
    atoms.pbc = True
    return atoms


CONFIGURATIONS = {
    "molecule": lambda: [molecule("CH3CH2OH")],
    "crystal": lambda: [_diamond((2, 1, 2))],
    "self images": lambda: [bulk("C", "fcc", a=2.6)],
    "isolated": lambda: [ase.Atoms("COH", [[0, 0, 0], [0, 0, 1.2], [50, 0, 0]])],
    "one atom": lambda: [ase.Atoms("O")],
    "batch": lambda: [_boxed(molecule("H2O")), _boxed(ase.Atoms("C")), _diamond(1), _boxed(molecule("CH4"))],
}


def seeded(builder, dtype, **arguments):
    """A model of a builder of NequIP's, with types of `NAMES` and energies of each that differ."""
    set_global_state()
    return builder(
        seed=3,
        model_dtype=str(dtype).removeprefix("torch."),
        r_max=CUTOFF,
        type_names=NAMES,
        per_type_energy_scales=dict(zip(NAMES, (0.7, 1.3, 0.9))),
        per_type_energy_shifts=dict(zip(NAMES, (-1.0, 0.0, 2.0))),
        **arguments,
    )


def batch(name, cutoff=CUTOFF):
    """The configurations of a name, as a model takes them; positions are float64, as everywhere in NequIP."""
    number = ChemicalSpeciesToAtomTypeMapper(NAMES)
    frames = [
        compute_neighborlist_(number(from_ase(atoms)), r_max=cutoff) for atoms in CONFIGURATIONS[name]()
    ]
    return AtomicDataDict.batched_from_list(frames) if len(frames) > 1 else frames[0]


def evaluation(given):
    """What a model says of a batch, as `client_checks` takes it."""
    names = ["total_energy", "atomic_energy", "forces"]
    if given["pbc"].all():  # elsewhere the volume is zero and stress no number
        names += ["stress", "virial"]

    def evaluate(model):
        out = model(dict(given))
        return {name: out[name] for name in names}

    return evaluate


def loss_of(given):
    """A loss on energies and forces."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(given["pos"].shape, generator=generator, dtype=torch.float64)

    def loss(model):
        out = model(dict(given))
        return (out["total_energy"] - 1).square().sum() + (out["forces"] - target).square().sum()

    return loss


def assert_forces_are_gradients(model, name):
    """Finite differences of the energy; the edges stay, whose ends are beyond reach of a step."""
    given = batch(name, CUTOFF + 0.1)

    def energy(positions):
        return model({**given, "pos": positions})["total_energy"]

    forces = model(dict(given))["forces"]
    checks.assert_forces_are_gradients(energy, forces, given["pos"])


def assert_conserves_energy(stock, fast):
    """Dynamics of a crystal, in ASE."""
    from ase.units import fs
    from nequip.data.transforms import NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator

    transforms = [ChemicalSpeciesToAtomTypeMapper(NAMES), NeighborListTransform(r_max=CUTOFF)]
    calculators = [NequIPCalculator(model.eval(), "cpu", transforms=transforms) for model in (stock, fast)]
    checks.assert_conserves_energy(*calculators, _diamond(1), 1 * fs)
    checks.assert_on_kernels(calculators[1].model)
