"""Allegro with random weights: the architecture of its tutorial."""

from __future__ import annotations

import torch

from . import Case, Problem
from .nequip import problem, set_global_state

CASES = {"Allegro, tutorial": Case(5, 4)}


def build(name: str, dtype: torch.dtype) -> Problem:
    from allegro.model import AllegroModel

    set_global_state()
    model = AllegroModel(
        seed=0,
        model_dtype=str(dtype).removeprefix("torch."),
        r_max=5.0,
        type_names=["Cu"],
        l_max=1,
        parity=True,
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
        radial_chemical_embed_dim=64,
        scalar_embed_mlp_hidden_layers_depth=1,
        scalar_embed_mlp_hidden_layers_width=64,
        num_layers=2,
        num_scalar_features=64,
        num_tensor_features=32,
        allegro_mlp_hidden_layers_depth=1,
        allegro_mlp_hidden_layers_width=64,
        readout_mlp_hidden_layers_depth=1,
        readout_mlp_hidden_layers_width=64,
        avg_num_neighbors=44.0,
    )
    return problem(model)
