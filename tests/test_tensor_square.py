"""o3.TensorSquare against e3nn 0.6: instructions, numbers, derivatives, state_dict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import o3
from clebsch.testing import random_irreps
from layer_comparison import assert_compiles_whole, assert_copies_compute_the_same, assert_same_function

e3nn_o3 = pytest.importorskip("e3nn.o3")

NORMALIZATIONS = [None, "component", "norm", "none"]
SMALL = (0, 1, 2, 3)


def both(irreps_in, irreps_out=None, **options):
    """Both packages' layers, in float64, with the same weights."""
    torch.set_default_dtype(torch.float64)
    theirs = e3nn_o3.TensorSquare(str(irreps_in), irreps_out, **options)
    ours = o3.TensorSquare(irreps_in, irreps_out, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same_layer(ours, theirs, rows=2):
    assert [tuple(ins) for ins in ours.instructions] == [tuple(ins) for ins in theirs.instructions]
    assert repr(ours) == repr(theirs)
    assert str(ours.irreps_in) == str(theirs.irreps_in) and str(ours.irreps_out) == str(theirs.irreps_out)
    assert torch.equal(ours.output_mask, theirs.output_mask)
    x = torch.randn(rows, ours.irreps_in.dim)
    assert_same_function(ours, theirs, [x], (list(ours.parameters()), list(theirs.parameters())))


@pytest.mark.parametrize("irrep_normalization", NORMALIZATIONS)
@pytest.mark.parametrize("irreps_out", [None, "3x0e+2x1o+1x1e+2x0e+2x0e+1x2e", "2x2e+0x1o+1x3o"])
@pytest.mark.parametrize("irreps_in", ["2x0e+3x1o+1x2e+2x1e", "3x1o+0x2e+2x1o", "1x0e", "1x3o+1x0o", ""])
def test_equals_e3nn(irreps_in, irreps_out, irrep_normalization):
    assert_same_layer(*both(irreps_in, irreps_out, irrep_normalization=irrep_normalization))


@settings(max_examples=25)
@given(random_irreps(l_max=3, max_terms=3, multiplicities=SMALL), st.data())
def test_equals_e3nn_for_random_arguments(irreps_in, data):
    normalizations = {
        "irrep_normalization": data.draw(st.sampled_from(NORMALIZATIONS)),
        "path_normalization": data.draw(st.sampled_from([None, "element", "path", "none"])),
    }
    if data.draw(st.booleans()):
        irreps_out = str(data.draw(random_irreps(l_max=3, max_terms=3, multiplicities=SMALL)))
        layers = both(irreps_in, irreps_out, **normalizations)
    else:
        kept = data.draw(st.none() | st.lists(st.sampled_from(["0e", "1e", "1o", "2e", "2o"])))
        layers = both(irreps_in, filter_ir_out=kept, **normalizations)
    assert_same_layer(*layers, rows=data.draw(st.integers(0, 3)))


def test_weights_of_every_row():
    ours, theirs = both("2x0e+3x1o", "2x0e+3x1e+2x2e", shared_weights=False)
    assert not ours.internal_weights
    weight = torch.randn(4, ours.weight_numel)
    assert_same_function(ours, theirs, [torch.randn(4, 11), weight])
    x = torch.randn(4, 11)
    assert torch.equal(ours(x, list(ours.weight_views(weight))), ours(x, weight))


def test_weights_from_outside():
    ours, theirs = both("2x0e+3x1o", "2x0e", internal_weights=False)
    assert_same_function(ours, theirs, [torch.randn(4, 11), torch.randn(ours.weight_numel)])


@pytest.mark.parametrize("batch", [(), (0,), (2, 3), (1,)])
def test_leading_dimensions(batch):
    ours, theirs = both("2x0e+3x1o")
    assert_same_function(ours, theirs, [torch.randn(*batch, 11)])


def test_operands_that_are_not_contiguous():
    ours, _ = both("2x0e+3x1o")
    x = torch.randn(4, 11)
    assert torch.equal(ours(x.T.contiguous().T), ours(x))
    assert torch.equal(ours(x[:1].expand(4, 11)), ours(x[:1].repeat(4, 1)))


@pytest.mark.not_emulated("a mean that takes 60,000 rows")
def test_components_are_normalized():
    # What the normalisation is for; the pairs of different copies have it from TensorProduct.
    module = o3.TensorSquare("1x0e+1x1o+1x2e+1x3o")
    squares = module(torch.randn(60_000, 16)).square()
    for part, (_, ir) in zip(module.irreps_out.slices(), module.irreps_out, strict=True):
        assert abs(squares[:, part].mean() - 1) < 0.1, ir
    module = o3.TensorSquare("1x1o+1x2e", irrep_normalization="norm")
    units = torch.cat([torch.nn.functional.normalize(torch.randn(60_000, d), dim=1) for d in (3, 5)], dim=1)
    norms = module(units).square()
    for part, (mul, ir) in zip(module.irreps_out.slices(), module.irreps_out, strict=True):
        assert abs(norms[:, part].sum(1).mean() / mul - 1) < 0.1, ir


def test_layout_ir_mul():
    ours, _ = both("2x1o")
    transposed = o3.TensorSquare("2x1o", layout="ir_mul")
    x = torch.randn(5, 2, 3)
    expected, out = ours(x.flatten(1)), transposed(x.transpose(1, 2).flatten(1))
    for part, (mul, ir) in zip(ours.irreps_out.slices(), ours.irreps_out, strict=True):
        turned = out[:, part].reshape(5, ir.dim, mul).transpose(1, 2).flatten(1)
        assert torch.allclose(turned, expected[:, part], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("irreps_out", [None, "2x0e+2x2e"])
def test_copies_and_compilers(irreps_out):
    module = o3.TensorSquare("2x0e+3x1o", irreps_out)
    x = torch.randn(4, 11)
    assert_copies_compute_the_same(module, x)
    assert_compiles_whole(module, x)


def test_state_dict():
    ours, theirs = both("2x0e+3x1o", "2x0e+2x1e")
    assert set(ours.state_dict()) == set(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
