"""NequIP with random weights."""

from __future__ import annotations

import warnings

import torch

from . import Case, Problem, copper

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

# Hidden layers of the radial net and their width; the second is what NequIP makes unless told otherwise.
RADIAL_NETS = {
    "NequIP 128x0e+64x1o+32x2e, 4 layers": (2, 64),
    "NequIP 128x0e+64x1o+32x2e, 4 layers, radial net 1 x 128": (1, 128),
}
CASES = dict(zip(RADIAL_NETS, (Case(8, 6, 5), Case()), strict=True))


def build(name: str, dtype: torch.dtype) -> Problem:
    set_global_state()
    depth, width = RADIAL_NETS[name]
    model = NequIPGNNModel(
        seed=0,
        model_dtype=str(dtype).removeprefix("torch."),
        r_max=5.0,
        type_names=["Cu"],
        num_layers=4,
        l_max=2,
        parity=False,
        num_features=[128, 64, 32],
        radial_mlp_depth=depth,
        radial_mlp_width=width,
        avg_num_neighbors=44.0,
    )
    return problem(model)


def problem(model) -> Problem:
    """Energy and forces of copper, for NequIP and Allegro."""
    atoms, few = _batch(copper()), _batch(copper(1))
    target = torch.randn(len(atoms[AtomicDataDict.POSITIONS_KEY]), 3, dtype=torch.float64)

    def evaluate(model, of=atoms):
        model.eval()
        out = model(dict(of))
        return out[AtomicDataDict.TOTAL_ENERGY_KEY], out[AtomicDataDict.FORCE_KEY]

    def step(model):
        model.train()
        out = model(dict(atoms))
        energy, forces = out[AtomicDataDict.TOTAL_ENERGY_KEY], out[AtomicDataDict.FORCE_KEY]
        model.zero_grad()
        (energy.square().sum() + (forces - target).square().sum()).backward()

    edges = atoms[AtomicDataDict.EDGE_INDEX_KEY].shape[1]
    return Problem(model, evaluate, step, lambda model: evaluate(model, few), edges)


def _batch(atoms):
    number = ChemicalSpeciesToAtomTypeMapper(["Cu"])
    return compute_neighborlist_(number(from_ase(atoms)), r_max=5.0)
