"""o3.Norm against e3nn 0.6, at zero in particular."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import o3
from clebsch.testing import random_irreps
from layer_comparison import assert_compiles_whole, assert_copies_compute_the_same, assert_same_function

e3nn_o3 = pytest.importorskip("e3nn.o3")


def both(irreps_in, squared=False):
    torch.set_default_dtype(torch.float64)
    return o3.Norm(irreps_in, squared), e3nn_o3.Norm(str(irreps_in), squared)


@settings(max_examples=30)
@given(random_irreps(l_max=5), st.booleans(), st.integers(0, 3))
def test_equals_e3nn(irreps_in, squared, rows):
    ours, theirs = both(irreps_in, squared)
    assert repr(ours) == repr(theirs)
    assert str(ours.irreps_in) == str(theirs.irreps_in) and str(ours.irreps_out) == str(theirs.irreps_out)
    assert_same_function(ours, theirs, [torch.randn(rows, ours.irreps_in.dim)])


@settings(max_examples=20)
@given(random_irreps(l_max=4), st.booleans())
def test_is_the_norm(irreps_in, squared):
    x = torch.randn(3, irreps_in.dim, dtype=torch.float64)
    blocks = [
        x[:, part].reshape(3, mul, ir.dim).norm(dim=2)
        for part, (mul, ir) in zip(irreps_in.slices(), irreps_in, strict=True)
    ]
    expected = torch.cat([x[:, :0], *blocks], dim=1)
    out = o3.Norm(irreps_in, squared)(x)
    assert torch.allclose(out, expected**2 if squared else expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("squared", [False, True])
def test_at_zero(squared):
    ours, theirs = both("2x1o+1x0e+1x2e", squared)
    x = torch.randn(3, 12)
    x[0], x[1, :3], x[1, 6] = 0, 0, 0
    assert_same_function(ours, theirs, [x])
    x.requires_grad_()
    out = ours(x)
    (first,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    (second,) = torch.autograd.grad(first, x, torch.randn_like(x))
    assert out.isfinite().all() and first.isfinite().all() and second.isfinite().all()
    assert not out[0].any() and not first[0].any()
    if not squared:
        assert not second[0].any()


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_leading_dimensions(batch):
    ours, theirs = both("2x1o+3x0e")
    assert_same_function(ours, theirs, [torch.randn(*batch, 9)])


def test_state_dict():
    ours, theirs = both("2x1o+3x0e")
    assert set(ours.state_dict()) == {"tp.weight", "tp.output_mask"} <= set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert not theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys


def test_follows_the_dtype_of_the_input():
    assert o3.Norm("2x1o")(torch.randn(3, 6, dtype=torch.float64)).dtype == torch.float64


def test_copies_and_compilers():
    module, x = o3.Norm("2x1o+3x0e"), torch.randn(4, 9)
    assert_copies_compute_the_same(module, x)
    assert_compiles_whole(module, x)
