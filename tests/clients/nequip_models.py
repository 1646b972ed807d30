"""Models of NequIP and Allegro with random weights, small ones, of the kinds that their options make."""

from __future__ import annotations

import warnings

import nequip_samples as samples
import pytest
import torch

NEQUIP = {
    "both parities": {"l_max": 2, "parity": True, "num_features": [7, 5, 3]},
    "one parity, wide": {"l_max": 2, "parity": False, "num_features": [32, 16, 8], "radial_mlp_depth": 2},
    "to degree 4": {"l_max": 4, "parity": False, "num_features": [5, 4, 3, 2, 1], "num_layers": 2},
    "degree 3, a resnet": {"l_max": 3, "num_features": 4, "convnet_resnet": True, "num_layers": 2},
    "norm": {"l_max": 1, "num_features": 4, "convnet_nonlinearity_type": "norm", "num_layers": 2},
    "radial layer alone": {"l_max": 1, "num_features": 6, "radial_mlp_depth": 0, "num_layers": 2},
    "no self-connection": {"l_max": 1, "num_features": 6, "convnet_sc": False, "num_layers": 2},
    "neighbors by type, cutoffs by edge": {
        "l_max": 1,
        "num_features": [6, 3],
        "avg_num_neighbors": {"H": 4.0, "C": 8.0, "O": 5.0},
        "per_edge_type_cutoff": {"H": 3.0, "C": {"H": 3.0, "C": 3.7}},
        "bessel_trainable": True,
    },
    "pair potential": {
        "l_max": 1,
        "num_features": 4,
        "pair_potential": {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": ["H", "C", "O"],
        },
    },
}

ALLEGRO = {
    "both parities": {"l_max": 2, "parity": True, "num_tensor_features": 5},
    "one parity, wide": {"l_max": 2, "parity": False, "num_tensor_features": 32},
    "weights of paths": {"l_max": 2, "num_tensor_features": 5, "tp_path_channel_coupling": False},
    "to degree 4": {"l_max": 4, "parity": False, "num_tensor_features": 3},
    "one channel": {"l_max": 3, "num_tensor_features": 1},
    "one layer": {"l_max": 2, "num_tensor_features": 4, "num_layers": 1},
    "one path": {"l_max": 0, "num_tensor_features": 4, "num_layers": 2},
    "one path without channels": {
        "l_max": 0,
        "num_tensor_features": 4,
        "num_layers": 1,
        "tp_path_channel_coupling": False,
    },
    "linear latents": {"l_max": 1, "num_tensor_features": 4, "allegro_mlp_nonlinearity": None},
    "neighbors by type": {
        "l_max": 1,
        "num_tensor_features": 4,
        "avg_num_neighbors": {"H": 4.0, "C": 8.0, "O": 5.0},
    },
}


@pytest.fixture(autouse=True)
def surroundings():
    """Of every test of a module that imports it."""
    torch.set_default_dtype(torch.float64)  # as in every program of NequIP, for models of float32 too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build_nequip(dtype=torch.float64, architecture="both parities", **changes):
    from nequip.model import NequIPGNNModel

    arguments = {"num_layers": 3, "radial_mlp_width": 16, "type_embed_num_features": 6}
    arguments |= {"avg_num_neighbors": 6.0, "num_bessels": 5}
    arguments |= NEQUIP[architecture] | changes
    return samples.seeded(NequIPGNNModel, dtype, **arguments)


def build_allegro(dtype=torch.float64, architecture="both parities", **changes):
    from allegro.model import AllegroModel

    arguments = {
        "num_layers": 3,
        "num_scalar_features": 7,
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 5},
        "radial_chemical_embed_dim": 6,
        "avg_num_neighbors": 6.0,
    }
    for part in ("scalar_embed", "allegro", "readout"):
        arguments |= {f"{part}_mlp_hidden_layers_depth": 1, f"{part}_mlp_hidden_layers_width": 8}
    return samples.seeded(AllegroModel, dtype, **arguments | ALLEGRO[architecture] | changes)
