"""nn.Dropout against e3nn 0.6."""

import copy
import pickle
import re

import pytest
import torch

from clebsch import nn, o3

e3nn_nn = pytest.importorskip("e3nn.nn")

IRREPS = ["3x0e+2x1o+1x2e", "64x0e+64x1o+64x2e", "1x1o+4x0e+1x1o", "0x0e+2x3o+0x1e", "5x0o", ""]


@pytest.mark.parametrize("batch", [(6,), (5, 4), (2, 3, 2), (1,), (0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_same_irreps_as_e3nn_for_the_same_seed(p, dtype, irreps, batch):
    ours, theirs = nn.Dropout(irreps, p), e3nn_nn.Dropout(o3.Irreps(irreps).remove_zero_multiplicities(), p)
    x = torch.randn(*batch, ours.irreps.dim, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    mine = ours(x)
    state = torch.get_rng_state()
    assert mine.shape == x.shape and mine.dtype == dtype
    if x.numel() == 0:  # e3nn cannot reshape these
        return
    torch.manual_seed(3)
    its = theirs(x)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(mine, its)
    assert torch.equal(*(torch.autograd.grad(out.sin().sum(), x)[0] for out in (mine, its)))


def test_drops_whole_irreps_and_scales_the_others():
    layer = nn.Dropout("5x0e+5x2o", 0.25)
    x = torch.rand(200, 30) + 1.0
    ratio = layer(x) / x
    irreps = torch.cat([ratio[:, :5, None].expand(-1, -1, 5), ratio[:, 5:].reshape(-1, 5, 5)], dim=1)
    assert torch.all((irreps == 0).all(-1) | ((irreps - 4 / 3).abs() < 1e-5).all(-1))
    assert float((irreps[..., 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_one_draw_for_all_dimensions_between():
    ratio = nn.Dropout("7x0e", 0.5)(torch.ones(20, 5, 7))
    assert torch.equal(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio.unique().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("p, factor", [(0.0, 1.0), (-0.5, 1.0), (1.0, 0.0), (1.5, 0.0), (0, 1.0), (1, 0.0)])
def test_extreme_probabilities(p, factor):
    x, state = torch.randn(4, 9), torch.get_rng_state()
    assert torch.equal(nn.Dropout("3x0e+2x1o", p)(x), factor * x)
    assert torch.equal(e3nn_nn.Dropout("3x0e+2x1o", p)(x), factor * x)
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_is_the_identity():
    layer, x = nn.Dropout("3x0e+2x1o", 0.5).eval(), torch.randn(4, 9)
    assert layer(x) is x


def test_views_and_broadcast_rows():
    layer = nn.Dropout("3x0e+2x1o", 0.5)
    for x in (torch.randn(9, 4).T, torch.randn(1, 9).expand(4, 9), torch.randn(4, 18)[:, ::2]):
        torch.manual_seed(1)
        expected = layer(x.contiguous())
        torch.manual_seed(1)
        assert torch.equal(layer(x), expected)


def test_copies_and_state_dict():
    layer, x = nn.Dropout("3x0e+2x1o", 0.5), torch.randn(4, 9)
    assert not layer.state_dict()
    assert repr(layer) == repr(e3nn_nn.Dropout("3x0e+2x1o", 0.5))
    results = []
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(1)
        results.append(other(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_second_derivatives():
    layer, x = nn.Dropout("3x0e+2x1o", 0.5), torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def function(x):
        torch.manual_seed(1)
        return layer(x)

    assert torch.autograd.gradcheck(function, x) and torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize(
    "error, message, value",
    [
        (TypeError, "Dropout: x must be a tensor, got list", [[1.0] * 7]),
        (TypeError, "Dropout: x must be floating point, got int64", torch.ones(2, 7, dtype=torch.long)),
        (ValueError, "Dropout: x must have shape (batch, ..., 7), got (2, 6)", torch.ones(2, 6)),
        (ValueError, "Dropout: x must have shape (batch, ..., 7), got (7,)", torch.ones(7)),
    ],
)
def test_bad_input(error, message, value):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        nn.Dropout("4x0e+1x1o", 0.5)(value)


@pytest.mark.parametrize(
    "error, message, p",
    [
        (TypeError, "Dropout: p must be a number, got NoneType", None),
        (TypeError, "Dropout: p must be a number, got str", "half"),
        (ValueError, "Dropout: p must be a probability, got nan", float("nan")),
    ],
)
def test_bad_probability(error, message, p):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        nn.Dropout("4x0e+1x1o", p)
