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
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import load_checkpoint

CASES = {"7net-0": Case(8, 5, 5), "7net-l3i5": Case(10, 6, 5)}


def build(name: str, dtype: torch.dtype) -> Problem:
    torch.manual_seed(0)
    checkpoint = load_checkpoint(name)
    model = _read(checkpoint, dtype)
    atoms, small = copper(), copper(1)
    for each in (atoms, small):
        each.symbols[::4] = "Al"
    data, few = (_graph(each, checkpoint.config[keys.CUTOFF], dtype) for each in (atoms, small))
    target = torch.randn(len(atoms), 3, dtype=dtype)

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


def _read(checkpoint, dtype: torch.dtype):
    """The trained model in any type. A checkpoint holds float32, of the tables of couplings too, and a model
    makes one-hot rows of float32, whatever it is.
    """
    torch.set_default_dtype(dtype)
    try:
        model = build_E3_equivariant_model(checkpoint.config).to(dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    tables = {name: table for name, table in model.state_dict().items() if "_w3j_" in name}
    model.load_state_dict({**checkpoint.build_model().state_dict(), **tables})
    model.set_is_batch_data(False)

    def convert(module, given, data):
        for key in (keys.NODE_FEATURE, keys.NODE_ATTR):
            data[key] = data[key].to(dtype)

    model.onehot_idx_to_onehot.register_forward_hook(convert)
    return model


def _graph(atoms, cutoff, dtype):
    data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, cutoff, with_shift=False))
    return data.apply(lambda value: value.to(dtype) if value.is_floating_point() else value)
