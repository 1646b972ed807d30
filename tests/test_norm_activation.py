"""nn.NormActivation against e3nn 0.6, and against its formula where e3nn fails."""

import copy
import io
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from clebsch import nn, o3

e3nn_nn = pytest.importorskip("e3nn.nn")
import e3nn.o3  # noqa: E402

IRREPS = ["3x0e+2x1o+1x2e", "1x1o+4x0o+1x1o+3x2e", "0x0e+2x3o+0x1e", "5x0o", ""]
OPTIONS = {
    "default": {},
    "bias": {"bias": True},
    "epsilon": {"epsilon": 0.8},
    "epsilon and bias": {"epsilon": 0.8, "bias": True},
    "not normalized": {"normalize": False},
    "not normalized, bias": {"normalize": False, "bias": True},
}


def made_by_e3nn(irreps, function, normalize=True, **options):
    """e3nn's layer; with normalize=False, for which its constructor fails, as its constructor means it."""
    layer = e3nn_nn.NormActivation(e3nn.o3.Irreps(irreps), function, **options)
    if not normalize:
        layer.normalize, layer.epsilon, layer._eps_squared = False, None, 0.0
        layer.norm.squared = False
    return layer


def both(irreps, function=torch.sigmoid, **options):
    torch.set_default_dtype(torch.float64)
    ours, theirs = nn.NormActivation(irreps, function, **options), made_by_e3nn(irreps, function, **options)
    if options.get("bias"):
        torch.nn.init.normal_(theirs.biases)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def derivatives(module, x):
    x = x.detach().requires_grad_()
    out = module(x)
    if x.shape[-1] == 0:  # nothing to differentiate, and e3nn's result does not know its input
        return (out,)
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(out.sin().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), wanted)
    return out, *first, *second


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * (1 + largest))


@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh, silu], ids=lambda f: f.__name__)
@pytest.mark.parametrize("batch", [(6,), (2, 3), ()])
@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_e3nn(name, irreps, batch, function):
    ours, theirs = both(irreps, function, **OPTIONS[name])
    x = torch.randn(*batch, ours.irreps_in.dim)
    for mine, its in zip(derivatives(ours, x), derivatives(theirs, x), strict=True):
        assert_close(mine.detach(), its.detach())


@settings(max_examples=30)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.sampled_from("eo")), max_size=4),
    name=st.sampled_from(list(OPTIONS)),
    rows=st.integers(0, 4),
)
def test_equals_e3nn_for_any_irreps(blocks, name, rows):
    irreps = "+".join(f"{mul}x{l}{p}" for mul, l, p in blocks)
    ours, theirs = both(irreps, **OPTIONS[name])
    x = torch.randn(ours.irreps_in.dim, rows).T
    for given_x in (x, x[:1].expand(3, -1) if rows else x):
        assert_close(ours(given_x).detach(), theirs(given_x).detach())


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_and_buffers_are_e3nns(name):
    ours, theirs = both("3x0e+2x1o+1x1o", **OPTIONS[name])
    constant = re.compile(r"_compiled_main_left_right\._w3j_\d_\d_\d$")
    expected = [key for key in theirs.state_dict() if not constant.search(key)]
    assert sorted(ours.state_dict()) == sorted(expected)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    theirs.load_state_dict(theirs.state_dict() | ours.state_dict())
    for attribute in ("irreps_in", "irreps_out"):
        assert str(getattr(ours, attribute)) == str(getattr(theirs, attribute))
    assert (ours.epsilon, ours.normalize, ours.bias) == (theirs.epsilon, theirs.normalize, theirs.bias)


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.1}, {"normalize": False}])
def test_formula(options):
    torch.set_default_dtype(torch.float64)
    x = torch.randn(5, 2, 3)
    x[0] = 0.01 * x[0]
    y = nn.NormActivation("2x1o", torch.tanh, **options)(x.reshape(5, 6)).reshape(5, 2, 3)
    norm = x.norm(dim=-1, keepdim=True).clamp_min(options.get("epsilon", 0.0))
    assert_close(y, x * torch.tanh(norm) / (1.0 if options.get("normalize") is False else norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"epsilon": 1e-30}, {"epsilon": 1e-200}, {"normalize": False}])
def test_zero_features_have_finite_derivatives(options, dtype):
    layer = nn.NormActivation("2x0e+2x1o", torch.tanh, **options)
    x = torch.zeros(3, 8, dtype=dtype, requires_grad=True)
    out = layer(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, torch.zeros_like(x)) and grad.isfinite().all()


def test_not_a_number_stays_with_its_irrep():
    x = torch.randn(2, 8)
    x[0, 3] = float("nan")
    y = nn.NormActivation("2x0e+2x1o", torch.tanh)(x)
    assert y[0, 2:5].isnan().all() and y.isnan().sum() == 3


def test_is_equivariant():
    torch.set_default_dtype(torch.float64)
    layer = nn.NormActivation("3x0e+2x0o+3x1o+2x2e", torch.sigmoid, bias=True)
    torch.nn.init.normal_(layer.biases)
    matrix = layer.irreps_in.D_from_matrix(-o3.rand_matrix())
    x = torch.randn(7, layer.irreps_in.dim)
    assert_close(layer(x @ matrix.T), layer(x) @ matrix.T)


@pytest.mark.parametrize("name", OPTIONS)
def test_second_derivatives(name):
    layer = nn.NormActivation("2x0e+2x1o", torch.sigmoid, **OPTIONS[name]).double()
    x = torch.randn(2, 8, dtype=torch.float64) + 0.3
    x.requires_grad_()
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)


def test_function_with_parameters():
    ours, theirs = both("3x0e+2x1o", torch.nn.PReLU(dtype=torch.float64))
    assert "scalar_nonlinearity.weight" in ours.state_dict()
    x = torch.randn(3, 9)
    assert_close(ours(x).detach(), theirs(x).detach())


def test_copies():
    layer = nn.NormActivation("3x0e+2x1o", torch.sigmoid, bias=True)
    torch.nn.init.normal_(layer.biases)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    x = torch.randn(4, 9)
    loaded = torch.load(saved, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": 0.0}, "epsilon must be > 0, got 0.0"),
        ({"epsilon": -1}, "epsilon must be > 0, got -1"),
        ({"epsilon": float("nan")}, "epsilon must be > 0, got nan"),
        (
            {"epsilon": 0.1, "normalize": False},
            "epsilon must be None where normalize is False, got 0.1: nothing is divided by norms",
        ),
    ],
)
def test_bad_epsilon(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape('NormActivation: ' + message)}$"):
        nn.NormActivation("4x0e", torch.sigmoid, **options)


@pytest.mark.parametrize(
    "error, message, value",
    [
        (TypeError, "NormActivation: features must be a tensor, got list", [[1.0] * 7]),
        (
            TypeError,
            "NormActivation: features must be floating point, got int64",
            torch.ones(2, 7, dtype=torch.long),
        ),
        (
            TypeError,
            "NormActivation: features must be float32 or float64, got float16",
            torch.ones(2, 7, dtype=torch.float16),
        ),
        (ValueError, "NormActivation: features must have shape (..., 7), got (2, 6)", torch.ones(2, 6)),
        (ValueError, "NormActivation: features must have shape (..., 7), got ()", torch.ones(())),
    ],
)
def test_bad_input(error, message, value):
    layer = nn.NormActivation("4x0e+1x1o", torch.sigmoid, bias=True)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        layer(value)
