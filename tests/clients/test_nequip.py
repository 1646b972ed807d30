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
