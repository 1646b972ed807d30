"""Allegro, unmodified and accelerated.

Run in an environment that holds nequip-allegro, with clebsch on PYTHONPATH.
"""

import copy
import warnings

import pytest
import torch

import clebsch
from clebsch.convert.swap import is_accelerated

model = pytest.importorskip("allegro.model", reason="needs nequip-allegro")

import client_checks as checks  # noqa: E402
import nequip_samples as samples  # noqa: E402
from allegro.nn._strided import Contracter  # noqa: E402

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

ARCHITECTURES = {
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
    torch.set_default_dtype(torch.float64)  # as in every program of NequIP, for models of float32 too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(dtype=torch.float64, architecture="both parities", **changes):
    arguments = {
        "num_layers": 3,
        "num_scalar_features": 7,
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 5},
        "radial_chemical_embed_dim": 6,
        "avg_num_neighbors": 6.0,
    }
    for part in ("scalar_embed", "allegro", "readout"):
        arguments |= {f"{part}_mlp_hidden_layers_depth": 1, f"{part}_mlp_hidden_layers_width": 8}
    return samples.seeded(model.AllegroModel, dtype, **arguments | ARCHITECTURES[architecture] | changes)


@pytest.mark.parametrize("name", samples.CONFIGURATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs(name, dtype):
    stock = build(dtype)
    evaluate = samples.evaluation(samples.batch(name))
    checks.assert_same_outputs(stock.eval(), checks.accelerate_all(stock).eval(), evaluate, TOLERANCE[dtype])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures(architecture):
    stock = build(architecture=architecture)
    fast = checks.accelerate_all(stock)
    given = samples.batch("batch")
    checks.assert_same_outputs(stock, fast, samples.evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, samples.loss_of(given), 1e-10)


def test_as_on_a_gpu(monkeypatch):
    given = samples.batch("batch")
    operands = samples.evaluation(given), samples.loss_of(given), monkeypatch, 1e-10
    checks.assert_same_on_gpu(build(), *operands, left=["bessel_encode"])


def test_training_gradients_in_float32():
    stock = build(torch.float32)
    loss = samples.loss_of(samples.batch("batch"))
    checks.assert_same_gradients(stock, checks.accelerate_all(stock), loss, 1e-4)


def test_forces_are_gradients_of_the_energy():
    samples.assert_forces_are_gradients(checks.accelerate_all(build()).eval(), "crystal")


def test_dynamics_conserve_energy():
    stock = build()
    samples.assert_conserves_energy(stock, checks.accelerate_all(stock))


def test_fine_tuning():
    stock = build(num_layers=2)
    loss = samples.loss_of(samples.batch("molecule"))
    checks.assert_trains_alike(stock, checks.accelerate_all(stock), loss)


def test_round_trip():
    given = samples.batch("crystal")
    checks.assert_round_trip(build(), samples.loss_of(given), samples.evaluation(given), 1e-10)


def test_copies_and_explanation():
    fast = checks.accelerate_all(build())
    checks.assert_copies(fast, samples.evaluation(samples.batch("molecule")), 1e-12)
    checks.assert_explained(fast)


def products(model):
    return [module for module in model.modules() if isinstance(module, Contracter)]


def operands(module, edges=9, nodes=3):
    x1 = torch.randn(edges, module.mul, module.base_dim1, dtype=module.w3j.dtype)
    x2 = torch.randn(nodes, module.mul, module.base_dim2, dtype=module.w3j.dtype)
    return x1, x2, torch.randint(0, nodes, (edges,))


def test_signs_are_those_of_the_table():
    stock = build()
    for product in products(stock):
        product.w3j.neg_()
    fast = checks.accelerate_all(stock)
    given = samples.evaluation(samples.batch("molecule"))
    checks.assert_same_outputs(stock, fast, given, 1e-10)
    # What is written later is read again.
    for product in [*products(stock), *products(fast)]:
        product.w3j.neg_()
    checks.assert_same_outputs(stock, fast, given, 1e-10)


@pytest.mark.parametrize("edges", [0, 1, 40])
def test_products_of_any_strides(edges):
    stock = products(build())[0]
    fast = clebsch.accelerate(stock, strict=True)
    x1, x2, centers = operands(stock, edges)
    expected = stock(x1, x2, centers)
    for given in (x1, x1.mT.contiguous().mT, x1.flatten(1)):
        torch.testing.assert_close(fast(given, x2, centers), expected, rtol=1e-12, atol=1e-12)


def test_a_table_that_is_no_coupling_is_left():
    stock = build()
    products(stock)[0].w3j[2] *= 1.5
    fast = clebsch.accelerate(stock)
    assert [is_accelerated(product) for product in products(fast)] == [False, True, True]
    checks.assert_same_outputs(stock, fast, samples.evaluation(samples.batch("molecule")), 1e-10)
    message = (
        r"tps\.0 \(Contracter\): path 2 of w3j is not \+1 or -1 times the coupling coefficients of l = \("
    )
    with pytest.raises(ValueError, match=message):
        clebsch.accelerate(stock, strict=True)


def own_product(product):
    class Own(type(product)):
        def _contract_conv(self, *arguments):
            return super()._contract_conv(*arguments)

    product.__class__ = Own


def no_coupling(product):
    product.w3j[1] *= 1.5


@pytest.mark.parametrize(
    "name, harm, reason",
    [
        ("allegro.tps.1", checks.own_forward, "client_checks.own_forward.<locals>.Own has a forward of its"),
        ("allegro.tps.1", own_product, "its class has a product of its own"),
        (
            "allegro.tps.1",
            no_coupling,
            "path 1 of w3j is not +1 or -1 times the coupling coefficients of l =",
        ),
        ("tensor_embed._edge_weighter", checks.own_forward, "client_checks.own_forward.<locals>.Own has a"),
    ],
)
def test_what_is_unlike_the_expected_is_left(name, harm, reason):
    stock, name = build(), f"model.func.{name}"
    harm(stock.get_submodule(name))
    checks.assert_left(stock, name, reason, samples.evaluation(samples.batch("molecule")))


def test_autocast_is_allegros():
    stock = build(torch.float32)
    evaluate = samples.evaluation(samples.batch("crystal"))
    checks.assert_autocast_is_the_packages(stock, checks.accelerate_all(stock), evaluate)


def test_all_hooks_are_heard():
    stock = build(num_layers=2)
    evaluate = samples.evaluation(samples.batch("crystal"))
    checks.assert_hooks_are_heard(stock, checks.accelerate_all(stock), evaluate, 1e-10)


def test_allegros_own_code_takes_what_ours_makes():
    """Weights of paths alone: its code wants contiguous arrays, and ours are transposed."""
    stock = build(tp_path_channel_coupling=False)
    for product in products(stock)[:2]:
        product.w3j[1] *= 1.5
        fast = clebsch.accelerate(stock)
        checks.assert_same_outputs(stock, fast, samples.evaluation(samples.batch("molecule")), 1e-10)
        product.w3j[1] /= 1.5


def test_a_call_that_no_kernel_takes_is_allegros_own():
    for coupled in (True, False):
        stock = products(build(tp_path_channel_coupling=coupled))[0]
        fast = clebsch.accelerate(stock, strict=True)
        x1, x2, centers = operands(stock)
        x1 = x1.mT.contiguous().mT
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = stock(x1.contiguous(), x2, centers)
            assert torch.equal(fast(x1, x2, centers), expected)
        assert vars(fast)["_clebsch_reason"] == "autocast is on"


@pytest.mark.parametrize("harm", ["_rtoi[0, 2] = 1", "_rtoi[1, 1] = 0", "_rtoi[1] *= 2", "_rtoi[:] = 0"])
def test_harmonics_whose_table_is_another_are_left(harm):
    stock = build().model.func.tensor_embed._edge_weighter
    exec(f"stock.{harm}")
    with pytest.raises(ValueError, match="its table does not give every component a degree"):
        clebsch.accelerate(stock, strict=True)


def test_a_table_with_more_than_its_paths_is_left():
    stock = copy.deepcopy(products(build())[0])
    stock.w3j[0, 0, 1, 0] = 1e-3
    with pytest.raises(ValueError, match="its table holds more than its paths"):
        clebsch.accelerate(stock, strict=True)


# What the layers as a whole and the network around them do besides.


def rule_of(module):
    return type(module)._clebsch_rule.__name__ if is_accelerated(module) else None


def network_of(model):
    return model.model.func


def edges_of(given):
    return given["edge_index"].shape[1]


SPLINES = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 6, "spline_span": 4}


@pytest.mark.parametrize("name", ["batch", "one atom", "crystal"])
@pytest.mark.parametrize(
    "changes",
    [
        {"radial_chemical_embed": SPLINES},
        {"scalar_embed_mlp_nonlinearity": None, "readout_mlp_nonlinearity": None},
        {"scalar_embed_mlp_hidden_layers_depth": 2, "allegro_mlp_hidden_layers_depth": 2},
        {"readout_mlp_hidden_layers_depth": 0, "num_layers": 1},
        {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal"}},
        {"num_tensor_features": 1, "num_scalar_features": 1},
    ],
    ids=["splines", "linear nets", "deep nets", "linear readout", "pair potential", "single features"],
)
def test_networks(name, changes):
    if "pair_potential" in changes:
        changes = {"pair_potential": changes["pair_potential"] | {"chemical_species": samples.NAMES}}
    stock = build(**changes)
    fast = checks.accelerate_all(stock)
    assert rule_of(network_of(fast)) == "Network" and rule_of(network_of(fast).allegro) == "Layers"
    given = samples.batch(name)
    checks.assert_same_outputs(stock, fast, samples.evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, samples.loss_of(given), 1e-10)


@pytest.mark.parametrize("types", [["C"], samples.NAMES])
def test_matrices_of_pairs_of_types(types, monkeypatch):
    """One type, and three whose pairs are few beside the edges."""
    stock = samples.seeded(
        model.AllegroModel,
        torch.float64,
        l_max=1,
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
        avg_num_neighbors=6.0,
    )
    if len(types) == 1:
        monkeypatch.setattr(samples, "NAMES", types)
        stock = build()
    fast = checks.accelerate_all(stock)
    given = samples.batch("crystal")
    assert edges_of(given) >= 2 * 9 * 5
    made = []
    embedding = network_of(fast).radial_chemical_embed.type_embed
    forward = type(embedding).forward

    def seen(self, data):
        data = forward(self, data)
        made.append(type(data["edge_embedding"]).__name__)
        return data

    monkeypatch.setattr(type(embedding), "forward", seen)
    checks.assert_same_outputs(stock, fast, samples.evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, samples.loss_of(given), 1e-10)
    assert set(made) == {"RadialWeights" if len(types) == 1 else "TypedFeatures"}


def test_what_a_network_leaves_in_its_data():
    """All of it tensors, the same, with the same gradients."""
    stock = build()
    fast = checks.accelerate_all(stock)
    given = samples.batch("crystal")
    theirs, ours = stock(dict(given)), fast(dict(given))
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            checks.assert_close(name, ours[name], value, 1e-10)
    parameter = "model.func.radial_chemical_embed.type_embed.basis_linear.mlp.0.weight"
    for name in ("edge_features", "edge_embedding", "node_features"):
        grads = [
            torch.autograd.grad(out[name].sin().sum(), model.get_parameter(parameter), retain_graph=True)[0]
            for model, out in ((stock, theirs), (fast, ours))
        ]
        checks.assert_close(name, grads[1], grads[0], 1e-10)


LISTENED = ["allegro", "edge_readout", "allegro.latents.0", "allegro.tps.1", "allegro._env_weighter"]
LISTENED += ["radial_chemical_embed", "radial_chemical_embed.type_embed", "tensor_embed.env_embed_linear"]
LISTENED += ["scalar_embed_mlp.mlp_module", "tensor_embed._edge_weighter", "allegro.latents.1.mlp.0"]


@pytest.mark.parametrize("name", LISTENED)
def test_who_listens_sees_tensors(name):
    stock = build(num_layers=2)
    fast = checks.accelerate_all(stock)
    heard = {}

    def listen(who):
        def hook(module, given, out):
            flat = [*(given[0].values() if isinstance(given[0], dict) else given)]
            flat += out.values() if isinstance(out, dict) else [out]
            tensors = [one for one in flat if not isinstance(one, (bool, int))]
            assert all(isinstance(one, torch.Tensor) for one in tensors), list(map(type, tensors))
            heard[who] = [one.detach().clone() for one in tensors if one.is_floating_point()]

        return hook

    given = samples.batch("crystal")
    for who, one in (("stock", stock), ("fast", fast)):
        network_of(one).get_submodule(name).register_forward_hook(listen(who))
    theirs, ours = stock(dict(given)), fast(dict(given))
    checks.assert_close("forces", ours["forces"], theirs["forces"], 1e-10)
    assert sum(map(torch.numel, heard["fast"])) == sum(map(torch.numel, heard["stock"])) > 0
    loss = samples.loss_of(given)
    checks.assert_same_gradients(stock, fast, loss, 1e-10)


class Doubled(torch.autograd.Function):
    """Of somebody else's: an operand that is no tensor has no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Doubling(torch.nn.Module):
    def forward(self, data):
        data["edge_features"] = Doubled.apply(data["edge_features"])
        return data


def test_a_module_of_somebody_else_in_a_network():
    stock, given = build(num_layers=2), samples.batch("crystal")
    parts = network_of(stock)._modules
    network_of(stock)._modules = {}
    for name, part in parts.items():
        network_of(stock).add_module(name, part)
        if name == "allegro":
            network_of(stock).add_module("doubling", Doubling())
    fast = clebsch.accelerate(stock)
    theirs, ours = stock(dict(given)), fast(dict(given))
    checks.assert_close("forces", ours["forces"], theirs["forces"], 1e-10)
    checks.assert_same_gradients(stock, fast, samples.loss_of(given), 1e-10)
    assert vars(network_of(fast))["_clebsch_reason"] == "it holds a module of another package"


def test_autocast_is_allegros_own():
    stock, given = build(torch.float32), samples.batch("crystal")
    fast = checks.accelerate_all(stock)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = stock(dict(given)), fast(dict(given))
    checks.assert_close("energy", ours["total_energy"], theirs["total_energy"], 1e-2)
    assert vars(network_of(fast).allegro)["_clebsch_reason"] is not None


def test_a_coupling_that_changes_while_it_runs():
    stock, given = build(), samples.batch("crystal")
    fast = checks.accelerate_all(stock)
    for one in (stock, fast):
        products(one)[1].w3j[0] *= 1.5
    theirs, ours = stock(dict(given)), fast(dict(given))
    checks.assert_close("forces", ours["forces"], theirs["forces"], 1e-10)
    assert "is not +1 or -1 times" in vars(network_of(fast).allegro)["_clebsch_reason"]


def test_layers_of_another_version_are_left(monkeypatch):
    from allegro.nn import Allegro_Module

    def forward(self, data):
        return given_forward(self, data)

    given_forward = Allegro_Module.forward
    monkeypatch.setattr(Allegro_Module, "forward", forward)
    stock, given = build(), samples.batch("crystal")
    fast = checks.accelerate_all(stock)
    assert rule_of(network_of(fast)) is rule_of(network_of(fast).allegro) is None
    assert all(map(is_accelerated, products(fast)))
    checks.assert_same_outputs(stock, fast, samples.evaluation(given), 1e-10)


def test_a_graph_that_goes_nowhere():
    """Energies alone, without gradients."""
    stock, given = build(do_derivatives=False), samples.batch("crystal")
    fast = checks.accelerate_all(stock)
    with torch.no_grad():
        theirs, ours = stock(dict(given)), fast(dict(given))
    checks.assert_close("energy", ours["atomic_energy"], theirs["atomic_energy"], 1e-10)
    assert not ours["edge_features"].requires_grad


def test_large_systems_train_alike():
    """So many edges that functions run on our kernel."""
    stock = build(num_layers=2, allegro_mlp_hidden_layers_width=128)
    given = samples.batch("crystal", 5.5)
    assert 128 * edges_of(given) >= 1 << 16
    checks.assert_same_gradients(stock, checks.accelerate_all(stock), samples.loss_of(given), 1e-10)


def test_bessel_functions_with_trainable_frequencies():
    bessel = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "bessel_trainable": True}
    stock = build(radial_chemical_embed=bessel | {"polynomial_cutoff_p": 5})
    fast = checks.accelerate_all(stock)
    given = samples.batch("batch", samples.CUTOFF + 1)  # also lengths beyond the cutoff
    checks.assert_same_outputs(stock, fast, samples.evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, samples.loss_of(given), 1e-10)


def test_bessel_functions_at_zero_and_beyond():
    stock = network_of(build()).radial_chemical_embed.bessel_encode
    fast = clebsch.accelerate(stock, strict=True)
    assert rule_of(fast) == "BesselEncoding"
    x = torch.tensor([[0.0], [1e-8], [0.3], [1.0 - 1e-9], [1.0], [1.7]], requires_grad=True)
    found = []
    for one in (stock, fast):
        data = one({"normed_edge_lengths": x})
        first = torch.autograd.grad(data["edge_embedding"].sin().sum(), x, create_graph=True)[0]
        # Formulas that divide by x lose digits near 0, NequIP's as well.
        second = torch.autograd.grad(first[2:].sin().sum(), x)[0][2:]
        found.append((data["edge_embedding"], data["edge_cutoff"], first[2:], second))
        assert first[0] == 0
    for ours, theirs in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
