"""NequIP's own switches: its model modifiers, its compiler, its packages.

Run in an environment that holds nequip, with clebsch on PYTHONPATH.
"""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import clebsch
from clebsch.convert.swap import is_accelerated

model = pytest.importorskip("nequip.model", reason="needs nequip")

import client_checks as checks  # noqa: E402
import nequip_samples as samples  # noqa: E402
from nequip.model.modify_utils import only_apply_persistent_modifiers  # noqa: E402
from nequip.nn.compile import ListInputOutputWrapper  # noqa: E402
from nequip.utils.fx import nequip_make_fx  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import clebsch.nequip_modifier  # noqa: E402

MODIFIERS = [{"modifier": "enable_clebsch"}]


@pytest.fixture(autouse=True)
def surroundings():
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(**changes):
    arguments = {"num_layers": 2, "l_max": 2, "num_features": [6, 4, 2], "avg_num_neighbors": 6.0}
    return samples.seeded(model.NequIPGNNModel, torch.float64, **arguments | changes)


def test_modifier_accelerates_in_place():
    stock, fast = build(), build()
    assert model.modify(fast, MODIFIERS) is fast
    assert any(map(is_accelerated, fast.modules()))
    checks.assert_same_outputs(stock, fast, samples.evaluation(samples.batch("crystal")), 1e-10)
    assert fast.metadata["nequip_custom_ops_libs"] == "clebsch.ops"
    assert "nequip_custom_ops_libs" not in clebsch.restore(fast).metadata


def test_modifier_is_offered_once_and_is_not_persistent():
    stock = build()
    clebsch.nequip_modifier.offer(model.modify_utils)
    assert list(model.modify_utils.get_all_modifiers(stock)).count("enable_clebsch") == 1
    with only_apply_persistent_modifiers(True):
        model.modify(stock, MODIFIERS)
    assert not any(map(is_accelerated, stock.modules()))


def test_extension_is_loaded_by_nequip(tmp_path):
    """As an installed clebsch would be: NequIP finds its entry point, in the middle of its own import."""
    folder = tmp_path / "clebsch-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: clebsch\nVersion: 0.1.0\n")
    (folder / "entry_points.txt").write_text("[nequip.extension]\ninit_always = clebsch.nequip_modifier\n")
    program = """
import sys, nequip
assert "clebsch.nequip_modifier" in sys.modules and "clebsch.convert" not in sys.modules
from nequip.model.modify_utils import get_all_modifiers
import torch
assert "enable_clebsch" in get_all_modifiers(torch.nn.Linear(1, 1))
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path])
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": path})


def test_recorded_model_computes_the_same():
    """What `nequip-compile` gives to torch.export: forces are part of the record."""
    inputs, outputs = (
        ["pos", "edge_index", "atom_types", "cell", "edge_cell_shift"],
        ["total_energy", "forces"],
    )
    stock, fast = build().eval(), checks.accelerate_all(build()).eval()
    given = samples.batch("crystal")
    recorded = nequip_make_fx(ListInputOutputWrapper(fast, inputs, outputs), given, inputs)
    assert "clebsch.radial_convolution_backward" in recorded.code
    expected = stock(dict(given))
    for name, value in zip(outputs, recorded(*[given[name] for name in inputs]), strict=True):
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


def test_recorded_training_step_of_allegro():
    """As NequIP's training compiles models: parameters and buffers are arguments of what is recorded."""
    allegro = pytest.importorskip("allegro.model", reason="needs nequip-allegro")
    arguments = {"l_max": 2, "num_layers": 2, "num_scalar_features": 5, "num_tensor_features": 3}
    arguments |= {"radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"}}
    arguments |= {"radial_chemical_embed_dim": 4, "avg_num_neighbors": 6.0}
    stock = samples.seeded(allegro.AllegroModel, torch.float64, **arguments)
    fast = checks.accelerate_all(stock)
    names = [*dict(fast.named_parameters()), *dict(fast.named_buffers())]
    given = samples.batch("crystal")

    def energy(positions, *tensors):
        held = dict(zip(names, tensors, strict=True))
        out = torch.func.functional_call(fast, held, ({**given, "pos": positions},))
        return out["total_energy"], out["forces"]

    tensors = [value.detach() for value in (*fast.parameters(), *fast.buffers())]
    record = make_fx(energy, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    recorded = record(given["pos"], *tensors)
    assert recorded.code.count("clebsch.tensor_product_backward") >= 2
    expected = stock(dict(given))
    for name, value in zip(("total_energy", "forces"), recorded(given["pos"], *tensors), strict=True):
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


def test_packaged_model(tmp_path):
    """Classes that torch.package has read are known by the package that they are of."""
    stock = build()
    path = tmp_path / "model.zip"
    with torch.package.PackageExporter(path) as exporter:
        exporter.extern(
            ["torch.**", "numpy.**", "opt_einsum_fx.**", "triton.**", "io", "sys", "packaging.**"]
        )
        exporter.mock(["matplotlib.**", "cuequivariance.**", "openequivariance.**", "lightning.**"])
        exporter.intern(["e3nn.**", "nequip.**"])
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", stock)
    packaged = torch.package.PackageImporter(path).load_pickle("model", "model.pkl")
    fast = checks.accelerate_all(packaged)
    assert sum(map(is_accelerated, fast.modules())) == sum(
        map(is_accelerated, clebsch.accelerate(stock).modules())
    )
    checks.assert_same_outputs(stock, fast, samples.evaluation(samples.batch("molecule")), 1e-10)
    checks.assert_explained(fast)
