"""Symmetric contractions against MACE's own module.

Run in an environment that holds mace-torch, with clebsch on PYTHONPATH.
"""

import os

import pytest
import torch

from clebsch import nn

# The e3nn 0.4 that MACE asks for loads its constants as pickles.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
mace = pytest.importorskip("mace.modules.symmetric_contraction", reason="needs mace-torch")

CASES = [
    ("8x0e+8x1o+8x2e+8x3o", "8x0e+8x1o", 3),
    ("8x0e+8x1o+8x2e+8x3o", "8x0e+8x1o+8x2e", 3),
    ("16x0e+16x1o+16x2e", "16x0e", 2),
    ("7x0e+7x1o", "7x0e+7x1o+7x2e", 4),
    ("5x0e+5x0o+5x1e+5x1o", "5x0e+5x1e+5x0o", 3),
    ("3x0e+3x1o+3x2e+3x3o+3x4e", "3x0e+3x4e", 2),
    ("4x0e+4x1o", "4x0e+4x1o", 1),
]
PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(case, dtype, species=3):
    """MACE's module and ours with its state."""
    irreps_in, irreps_out, correlation = case
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        theirs = mace.SymmetricContraction(irreps_in, irreps_out, correlation, num_elements=species)
        ours = nn.SymmetricContraction(irreps_in, irreps_out, correlation, num_elements=species)
    finally:
        torch.set_default_dtype(before)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def operands(ours, dtype, nodes=9):
    generator = torch.Generator().manual_seed(1)
    species = ours.contractions[0].weights_max.shape[0]
    x = torch.randn(nodes, ours.num_channels, ours._dim, generator=generator).to(dtype).requires_grad_()
    index = torch.randint(0, species, (nodes,), generator=generator)
    return x, torch.nn.functional.one_hot(index, species).to(dtype)


def trained(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def derivatives(module, x, node_attrs):
    """The output, first derivatives, and second ones along fixed directions."""
    out = module(x, node_attrs)
    generator = torch.Generator().manual_seed(2)
    inputs = [x, *trained(module)]
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    first = torch.autograd.grad(out, inputs, grad, create_graph=True)
    tangents = [torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.dtype) for g in first]
    scalar = sum((g * t).sum() for g, t in zip(first, tangents, strict=True))
    second = torch.autograd.grad(scalar, inputs, allow_unused=True)
    return [out, *first, *(torch.zeros(()) if value is None else value for value in second)]


def assert_same(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= PRECISION[dtype] * b.norm().clamp(min=1e-30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_two_derivatives(case, dtype):
    theirs, ours = pair(case, dtype)
    x, node_attrs = operands(ours, dtype)
    assert_same(derivatives(ours, x, node_attrs), derivatives(theirs, x, node_attrs), dtype)
    assert ours(x, node_attrs).shape == theirs(x, node_attrs).shape


def test_attributes_of_nodes_that_are_not_one_hot():
    theirs, ours = pair(CASES[0], torch.float64)
    x, node_attrs = operands(ours, torch.float64)
    mixed = (node_attrs + 0.3 * torch.rand_like(node_attrs)).requires_grad_()
    for given in (mixed.detach(), mixed):
        assert_same(derivatives(ours, x, given), derivatives(theirs, x, given), torch.float64)
    grads = [torch.autograd.grad(module(x, mixed).square().sum(), mixed)[0] for module in (ours, theirs)]
    assert_same(grads[:1], grads[1:], torch.float64)


def test_state_dicts_load_both_ways():
    for case in CASES:
        theirs, ours = pair(case, torch.float32)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        fresh = nn.SymmetricContraction(*case, num_elements=3)
        theirs.load_state_dict(fresh.state_dict(), strict=True)
        x, node_attrs = operands(fresh, torch.float32)
        assert_same([fresh(x, node_attrs)], [theirs(x, node_attrs)], torch.float32)


def test_couplings_are_those_of_mace():
    """The same paths in the same order with the same signs, to the rounding of MACE's own."""
    for case in CASES:
        theirs, _ = pair(case, torch.float64)
        ours = nn.SymmetricContraction(*case, num_elements=3).double()
        fresh = dict(ours.named_buffers())
        for name, buffer in theirs.named_buffers():
            assert fresh[name].shape == buffer.shape
            if buffer.dtype != torch.bool:
                assert torch.allclose(fresh[name].to(buffer.dtype), buffer, atol=3e-7)
            else:
                assert fresh[name] == buffer


def test_parameters_that_are_trained_are_those_of_mace():
    for case in CASES:
        theirs, ours = pair(case, torch.float32)
        wanted = {name: parameter.requires_grad for name, parameter in theirs.named_parameters()}
        assert {name: p.requires_grad for name, p in ours.named_parameters()} == wanted


@pytest.mark.parametrize("case", CASES[:3])
def test_a_float32_model_taken_to_float64(case):
    """Couplings then carry the rounding of float32, and the table keeps it."""
    theirs, ours = pair(case, torch.float32)
    theirs, ours = theirs.double(), ours.double()
    x, node_attrs = operands(ours, torch.float64)
    assert_same(derivatives(ours, x, node_attrs), derivatives(theirs, x, node_attrs), torch.float64)


def test_tables_of_a_live_module():
    theirs, ours = pair(CASES[1], torch.float64)
    table = nn.contraction_table(
        [[c.U_tensors(nu) for nu in range(1, c.correlation + 1)] for c in theirs.contractions]
    )
    assert torch.equal(table.tensor, ours._table)
