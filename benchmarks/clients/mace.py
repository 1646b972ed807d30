"""MACE with random weights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4 loads its constants

import numpy as np
import torch

from . import Case, Problem, copper

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from e3nn import o3
    from mace import data, modules, tools
    from mace.tools import torch_geometric

CASES = {
    "MACE 128x0e+128x1o": Case(12, 7, 5),
    "MACE 128x0e+128x1o+128x2e": Case(12, 7, 5),
    "MACE 128x0e+128x1o, ethanol": Case(5, 3, atoms=9),
}


def build(name: str, dtype: torch.dtype) -> Problem:
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    irreps = name.split(",")[0].removeprefix("MACE ")
    is_ethanol = name.endswith("ethanol")
    numbers = [1, 6, 8] if is_ethanol else [29]
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    make = partial(
        modules.ScaleShiftMACE,
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=44.0,
        atomic_numbers=numbers,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    if is_ethanol:
        from ase.build import molecule

        atoms = small = molecule("CH3CH2OH")
    else:
        atoms, small = copper(), copper(1)
    model = make()
    batch, few = _batch(atoms, numbers), _batch(small, numbers)
    target = torch.randn(len(atoms), 3)

    def evaluate(model):
        # So does MACE's calculator, or torch.compile frees what the gradient of its graph needs.
        return model(dict(batch), training=type(model).__name__ == "OptimizedModule")

    def step(model):
        out = model(dict(batch), training=True)
        loss = out["energy"].square().sum() + (out["forces"] - target).square().sum()
        model.zero_grad()
        loss.backward()

    return Problem(
        model,
        evaluate,
        step,
        lambda model: model(dict(few)),
        batch["edge_index"].shape[1],
        tools.compile.prepare(make),
    )


def peers(problem: Problem):
    """Symmetrix-XL, if installed: it compiles code for a model at the first call, minutes, and keeps it."""
    try:
        from symmetrix import Symmetrix
    except ImportError:
        return {}
    from ase.calculators.calculator import all_changes

    folder = Path(tempfile.mkdtemp())
    torch.save(problem.model, folder / "model.pt")
    command = [Path(sys.executable).with_name("symmetrix_extract_mace"), "--model", folder / "model.pt"]
    subprocess.run([*command, "--output", folder / "model.json"], check=True, capture_output=True)
    calculator, atoms = Symmetrix(str(folder / "model.json")), copper()
    return {"Symmetrix-XL": lambda: calculator.calculate(atoms, ["energy", "forces"], all_changes)}


def _batch(atoms, numbers):
    configuration = data.config_from_atoms(atoms, key_specification=data.KeySpecification())
    one = data.AtomicData.from_config(configuration, z_table=tools.AtomicNumberTable(numbers), cutoff=5.0)
    batch = next(iter(torch_geometric.dataloader.DataLoader([one], batch_size=1))).to_dict()
    batch["positions"].requires_grad_()  # as the model does; within a graph of torch.compile it cannot
    return batch
