"""NequIP, unmodified and accelerated.

Run in an environment that holds nequip, with clebsch on PYTHONPATH.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest
import torch

model = pytest.importorskip("nequip.model", reason="needs nequip")

import client_checks as checks  # noqa: E402
import nequip_samples as samples  # noqa: E402

from clebsch.convert import nequip  # noqa: E402
from clebsch.convert.radial import RadialWeights  # noqa: E402

DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

ARCHITECTURES = {
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


@pytest.fixture(autouse=True)
def surroundings():
    torch.set_default_dtype(torch.float64)  # as in every program of NequIP, for models of float32 too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(dtype=torch.float64, architecture="both parities", **changes):
    arguments = {"num_layers": 3, "radial_mlp_width": 16, "type_embed_num_features": 6}
    arguments |= {"avg_num_neighbors": 6.0, "num_bessels": 5}
    arguments |= ARCHITECTURES[architecture] | changes
    return samples.seeded(model.NequIPGNNModel, dtype, **arguments)


@pytest.mark.parametrize("name", samples.CONFIGURATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
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
    checks.assert_same_on_gpu(build(), *operands, left=["sc", "bessel_encode"])


def test_training_gradients_in_float32():
    stock = build(torch.float32)
    loss = samples.loss_of(samples.batch("batch"))
    checks.assert_same_gradients(stock, checks.accelerate_all(stock), loss, 1e-4)


def test_forces_are_gradients_of_the_energy():
    fast = checks.accelerate_all(build()).eval()
    samples.assert_forces_are_gradients(fast, "crystal")


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


def replace_product(convolution):
    convolution.tp = checks.OwnProduct(convolution.tp)


@pytest.mark.parametrize(
    "name, harm, reason",
    [
        ("conv", checks.own_forward, "client_checks.own_forward.<locals>.Own has a forward of its own"),
        ("conv.tp_scatter", checks.own_forward, "client_checks.own_forward.<locals>.Own has a forward of"),
        ("conv.tp_scatter", replace_product, "its product is a OwnProduct, not one of e3nn's"),
        ("conv.tp_scatter.tp", checks.no_coupling, "_compiled_main_left_right._w3j_1_1_"),
        ("conv.sc", checks.own_forward, "client_checks.own_forward.<locals>.Own has a forward of its own"),
    ],
)
def test_what_is_unlike_the_expected_is_left(name, harm, reason):
    stock, name = build(), f"model.func.layer1_convnet.{name}"
    harm(stock.get_submodule(name))
    checks.assert_left(stock, name, reason, samples.evaluation(samples.batch("molecule")))


def test_autocast_is_nequips():
    stock = build(torch.float32)
    evaluate = samples.evaluation(samples.batch("crystal"))
    checks.assert_autocast_is_the_packages(stock, checks.accelerate_all(stock), evaluate)


def test_all_hooks_are_heard():
    stock = build(num_layers=2)
    evaluate = samples.evaluation(samples.batch("crystal"))
    checks.assert_hooks_are_heard(stock, checks.accelerate_all(stock), evaluate, 1e-10)


def self_connection(features=5):
    """One of a model, accelerated, and rows for nodes of three types."""
    fast = checks.accelerate_all(build(num_features=features))
    product = fast.model.func.layer1_convnet.conv.sc
    types = torch.tensor([2, 0, 0, 2, 2, 1, 0, 2])
    x = torch.randn(8, product.irreps_in1.dim, requires_grad=True)
    attributes = torch.randn(3, product.irreps_in2.dim, requires_grad=True)
    return product, types, x, attributes


@contextmanager
def in_block_of(types):
    """As within an interaction block that was given these types of atoms."""
    before = nequip.TYPES.set(types)
    yield
    nequip.TYPES.reset(before)


def outcome(product, types, x, attributes, change=0.0):
    y = torch.nn.functional.embedding(torch.tensor([2, 0, 0, 2, 2, 1, 0, 2]), attributes)
    if change:
        y = y + torch.eye(*y.shape) * change
    with in_block_of(types):
        out = product(x, y)
    return out, *torch.autograd.grad(out.square().sum(), [x, attributes, product.weight])


def test_self_connection_makes_a_matrix_for_every_type(monkeypatch):
    product, types, *operands = self_connection()
    expected = outcome(product, None, *operands)
    monkeypatch.setattr(nequip.TensorProduct, "forward", lambda *_: pytest.fail("a sum for every node"))
    torch.testing.assert_close(outcome(product, types, *operands), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kind", [torch.nn.Parameter, torch.Tensor.requires_grad_], ids=["parameter", "tensor"]
)
def test_gradients_of_attributes_themselves_are_refused(kind):
    """A matrix for every type has no gradient for each atom: an error, and no number."""
    product, types, x, attributes = self_connection()
    table = kind(attributes.detach())
    y = torch.nn.functional.embedding(types, table)
    with in_block_of(types):
        out = product(x, y).square().sum()
    with pytest.raises(
        NotImplementedError, match="gradients with respect to node_attrs are there for the table"
    ):
        torch.autograd.grad(out, y, retain_graph=True)
    expected = torch.autograd.grad(product(x, y).square().sum(), table, retain_graph=True)
    found = torch.autograd.grad(out, table, retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.autograd.grad(out, x, retain_graph=True)  # nobody asks for those of attributes
    out.backward()
    torch.testing.assert_close(table.grad, expected[0], rtol=1e-12, atol=1e-12)
    leaf = attributes.detach()[types].requires_grad_()  # not looked up in a table: a sum for every atom
    with in_block_of(types):
        (grad,) = torch.autograd.grad(product(x, leaf).square().sum(), leaf)
    assert (grad != 0).any(dim=1).all()


def test_threads_that_run_one_model(monkeypatch):
    """Each on its atoms, at the same time, within the same blocks."""
    fast = checks.accelerate_all(build()).eval()
    blocks = [module for module in fast.modules() if isinstance(module, nequip.InteractionBlock)]
    batches = [samples.batch(name) for name in ("molecule", "crystal")]
    expected = [samples.evaluation(given)(fast) for given in batches]
    sums = []
    make = nequip._by_type
    monkeypatch.setattr(nequip, "_by_type", lambda *given: sums.append(make(*given)) or sums[-1])
    both = Barrier(2)

    def meet(*_):
        both.wait(60)

    for block in blocks:
        block.sc.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda given: samples.evaluation(given)(fast), batches))
    assert len(sums) == 2 * len(blocks) and all(out is not None for out in sums)
    for theirs, ours in zip(expected, found, strict=True):
        for name in theirs:
            checks.assert_close(name, ours[name], theirs[name], 1e-12)


def test_self_connection_with_attributes_that_differ_within_a_type():
    product, types, *operands = self_connection()
    expected = outcome(product, None, *operands, change=0.1)
    torch.testing.assert_close(
        outcome(product, types, *operands, change=0.1), expected, rtol=1e-12, atol=1e-12
    )


def test_radial_weights_are_never_whole(monkeypatch):
    fast = checks.accelerate_all(build())
    monkeypatch.setattr(RadialWeights, "whole", lambda self: pytest.fail("weights of all edges"))
    samples.loss_of(samples.batch("molecule"))(fast).backward()
