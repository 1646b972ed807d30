"""NequIP, unmodified and accelerated.

Run in an environment that holds nequip, with clebsch on PYTHONPATH.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest
import torch

pytest.importorskip("nequip.model", reason="needs nequip")

import client_checks as checks
import nequip_samples as samples
from nequip_models import build_nequip as build
from nequip_models import surroundings  # noqa: F401

from clebsch.convert import nequip
from clebsch.convert.radial import RadialWeights


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
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(out, [y, table], retain_graph=True)
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


def listen(model, hear):
    """hear(attributes), which a model's type embedding gives out."""
    embedding = model.get_submodule("model.func.type_embed")
    return embedding.register_forward_hook(lambda *call: hear(call[2]["node_attrs"]))


def test_gradients_of_attributes_within_a_model_are_refused():
    """An error, alone and beside the table's; first features, the same numbers, are another tensor."""
    fast, found = checks.accelerate_all(build(num_layers=2)), []
    table = fast.get_submodule("model.func.type_embed").embed_module.weight
    listen(fast, found.append)
    energy = fast(dict(samples.batch("crystal")))["total_energy"].sum()
    with pytest.raises(NotImplementedError, match="gradients with respect to node_attrs"):
        torch.autograd.grad(energy, found, retain_graph=True)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(energy, [*found, table])


def test_gradients_of_attributes_that_somebody_listens_to():
    """Then each atom has its own; those of the unmodified model are those of first features as well."""
    stock, found = build(num_layers=2), {}
    for name, model in {"stock": stock, "fast": checks.accelerate_all(stock)}.items():

        def hear(attributes, name=name):
            attributes.retain_grad()
            found[name] = attributes

        listen(model, hear)
        model(dict(samples.batch("crystal")))["total_energy"].sum().backward()
    assert found["fast"].grad.shape == found["stock"].grad.shape
    assert (found["fast"].grad != 0).any(dim=1).all()


@pytest.mark.parametrize("part", [slice(0, 7), slice(1, 8), slice(0, 8, 2)], ids=str)
def test_rows_of_a_table_of_which_all_are_alike(part):
    """Which row of the table a row is cannot be seen; NequIP can be told to begin with such tables."""
    product, types, x, _ = self_connection()
    table = torch.ones(3, product.irreps_in2.dim, requires_grad=True)
    out = []
    for known in (types[part], None):
        y = torch.nn.functional.embedding(types, table)[part]
        with in_block_of(known):
            out.append(torch.autograd.grad(product(x[part], y).square().sum(), table))
    torch.testing.assert_close(*out, rtol=1e-12, atol=1e-12)


def test_attributes_whose_graph_is_gone():
    product, types, x, table = self_connection()
    y = torch.nn.functional.embedding(types, table)
    y.sum().backward()
    with in_block_of(types), torch.no_grad():
        product(x, y)


@pytest.mark.parametrize(
    "kind", [{"padding_idx": 0}, {"scale_grad_by_freq": True}], ids=["padding", "frequency"]
)
def test_a_table_whose_rows_do_not_have_all_of_their_gradient(kind):
    product, types, x, table = self_connection()
    out = []
    for known in (types, None):
        y = torch.nn.functional.embedding(types, table, **kind)
        with in_block_of(known):
            out.append(torch.autograd.grad(product(x, y).square().sum(), [table, y]))
    torch.testing.assert_close(*out, rtol=1e-12, atol=1e-12)


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
