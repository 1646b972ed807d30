"""SevenNet with the trained weights of its wheel; energies, forces and stresses of a Cu-Al crystal."""

from __future__ import annotations

import copy
import warnings

import torch

from . import Case, Problem, copper

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sevenn import _keys as keys
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.calculator import SevenNetCalculator
    from sevenn.train.dataload import unlabeled_atoms_to_graph

# A checkpoint is read as float32, tables of couplings and one-hot rows included.
DTYPES = ("float32",)
CASES = {"7net-0": Case(8, 5, 5), "7net-l3i5": Case(10, 6, 5)}


def build(name: str, dtype: torch.dtype) -> Problem:
    torch.manual_seed(0)
    calculator = SevenNetCalculator(name, device="cpu")
    model = calculator.model.to(dtype)
    atoms, small = copper(), copper(1)
    for each in (atoms, small):
        each.symbols[::4] = "Al"
    data, few = (_graph(each, calculator.cutoff, dtype) for each in (atoms, small))
    target = torch.randn(len(atoms), 3)

    def evaluate(model, of=data):
        model.eval()
        out = model(copy.copy(of))
        return out[keys.PRED_TOTAL_ENERGY], out[keys.PRED_FORCE], out[keys.PRED_STRESS]

    def step(model):
        model.train()
        out = model(copy.copy(data))
        loss = out[keys.PRED_TOTAL_ENERGY].square().sum() + (out[keys.PRED_FORCE] - target).square().sum()
        model.zero_grad()
        loss.backward()

    return Problem(model, evaluate, step, lambda model: evaluate(model, few), data[keys.EDGE_IDX].shape[1])


def _graph(atoms, cutoff, dtype):
    data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, cutoff, with_shift=False))
    return data.apply(lambda value: value.to(dtype) if value.is_floating_point() else value)
