"""nn.BatchNorm against e3nn 0.6."""

import copy
import io
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import nn, o3

e3nn_nn = pytest.importorskip("e3nn.nn")

OPTIONS = {
    "default": {},
    "eps and momentum": {"eps": 0.3, "momentum": 0.7},
    "not affine": {"affine": False},
    "no bias": {"include_bias": False},
    "neither": {"affine": False, "include_bias": False},
    "max": {"reduce": "max"},
    "norm": {"normalization": "norm"},
    "instance": {"instance": True},
    "instance, max, norm": {"instance": True, "reduce": "max", "normalization": "norm"},
}
IRREPS = ["3x0e+2x0o+3x1o+2x2e", "1x1o+4x0e+1x1e+2x0e", "5x0e", "2x0o+3x1o", "0x0e+2x1o+0x2e+1x0e"]


def both(irreps, **options):
    torch.set_default_dtype(torch.float64)
    filled = o3.Irreps(irreps).remove_zero_multiplicities()  # e3nn cannot reshape empty blocks
    ours, theirs = nn.BatchNorm(irreps, **options), e3nn_nn.BatchNorm(filled, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def derivatives(module, x):
    """The output, its derivatives by x and the parameters, and those of a function of the former."""
    x = x.detach().requires_grad_()
    out = module(x)
    wanted = [x, *module.parameters()]
    options = {"materialize_grads": True}  # an empty bias is used by nobody
    first = torch.autograd.grad(out.sin().sum(), wanted, create_graph=True, **options)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), wanted, **options)
    return out, *first, *second


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * (1 + largest))


@pytest.mark.parametrize("batch", [(6,), (5, 4), (2, 3, 2), (1,)])
@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_e3nn(name, irreps, batch):
    ours, theirs = both(irreps, **OPTIONS[name])
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x = 1.0 + 3.0 * torch.randn(*batch, ours.irreps.dim)
        for mine, its in zip(derivatives(ours, x), derivatives(theirs, x), strict=True):
            assert_close(mine.detach(), its.detach())
        assert_close(ours(x).detach(), theirs(x).detach())
        for key, kept in theirs.state_dict().items():
            assert_close(ours.state_dict()[key], kept)


@settings(max_examples=40)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.sampled_from("eo")), max_size=5),
    name=st.sampled_from(list(OPTIONS)),
    batch=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    training=st.booleans(),
)
def test_equals_e3nn_for_any_irreps(blocks, name, batch, training):
    irreps = "+".join(f"{mul}x{l}{p}" for mul, l, p in blocks)
    ours, theirs = both(irreps, **OPTIONS[name])
    ours.train(training), theirs.train(training)
    x = torch.randn(*batch, ours.irreps.dim)
    if ours.irreps.dim == 0:  # e3nn cannot reshape it
        assert ours(x).shape == x.shape
        return
    for given_x in (x, x.transpose(0, 1), x[:1].expand(batch[0], -1, -1)):
        assert_close(ours(given_x).detach(), theirs(given_x).detach())
    for key, kept in theirs.state_dict().items():
        assert_close(ours.state_dict()[key], kept)


def test_float32_data_far_from_zero():
    """As accurate as e3nn where the mean of scalars is large beside their spread."""
    ours, theirs = both("4x0e+2x1o")
    ours.float(), theirs.float()
    x = torch.randn(200, 10, dtype=torch.float32)
    x[:, :4] += 1e4
    exact = copy.deepcopy(theirs).double()(x.double())
    errors = [float((module(x).double() - exact).detach().abs().max()) for module in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_other_dtype_than_the_parameters(dtype):
    ours, theirs = both("4x0e+2x1o")
    ours.float(), theirs.float()
    x = torch.randn(50, 10).to(dtype)
    mine, its = ours(x), theirs(x)
    assert mine.dtype == its.dtype
    allowed = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(mine, its, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("options", [{}, {"instance": True}, {"affine": False}])
def test_no_rows_leave_the_running_means_alone(options):
    layer = nn.BatchNorm("4x0e+2x1o", **options)
    before = copy.deepcopy(layer.state_dict())
    for shape in ((0, 10), (0, 3, 10), (3, 0, 10)):
        assert layer(torch.zeros(shape)).shape == shape
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_training_normalizes():
    torch.set_default_dtype(torch.float64)
    layer = nn.BatchNorm("4x0e+3x1o", eps=0.0)
    y = layer(5.0 + 2.0 * torch.randn(100, 13))
    scalars, vectors = y[:, :4], y[:, 4:].reshape(-1, 3, 3)
    torch.testing.assert_close(scalars.mean(0), torch.zeros(4), rtol=0, atol=1e-12)
    torch.testing.assert_close(scalars.square().mean(0), torch.ones(4))
    torch.testing.assert_close(vectors.square().mean((0, 2)), torch.ones(3))


def test_is_equivariant():
    torch.set_default_dtype(torch.float64)
    layer = nn.BatchNorm("3x0e+2x0o+3x1o+2x2e")
    matrix = layer.irreps.D_from_matrix(-o3.rand_matrix())
    x = torch.randn(7, layer.irreps.dim)
    torch.testing.assert_close(layer(x @ matrix.T), layer(x) @ matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"instance": True}, {"reduce": "max"}])
def test_gradcheck(options):
    layer = nn.BatchNorm("2x0e+2x1o", eps=0.1, **options).double()
    x = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    names = [name for name, _ in layer.named_parameters()]
    parameters = list(layer.parameters())
    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_copies():
    layer = nn.BatchNorm("3x0e+2x1o")
    layer(torch.randn(5, 9))
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    x = torch.randn(4, 9)
    loaded = torch.load(saved, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other.eval()(x), layer.eval()(x))


def test_made_on_the_meta_device():
    torch.manual_seed(0)
    layer, x = nn.BatchNorm("3x0e+2x1o"), torch.randn(5, 9)
    with torch.device("meta"):
        empty = nn.BatchNorm("3x0e+2x1o")
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict())
    assert torch.equal(filled(x), layer(x))


def test_gradients_of_each_row_under_vmap():
    layer = nn.BatchNorm("2x0e+1x1o").double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)

    def loss(weight, row):
        return torch.func.functional_call(layer, {"weight": weight}, (row[None],)).sin().sum()

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(layer.weight.detach(), x)
    expected = torch.autograd.grad(layer(x).sin().sum(), layer.weight)[0]
    torch.testing.assert_close(rows.sum(0), expected)


def test_repr():
    assert repr(nn.BatchNorm("3x0e", eps=0.1)) == repr(e3nn_nn.BatchNorm("3x0e", eps=0.1))


@pytest.mark.parametrize(
    "error, message, value",
    [
        (TypeError, "input must be a tensor, got list", [[1.0] * 7]),
        (TypeError, "input must be floating point, got int64", torch.ones(2, 7, dtype=torch.long)),
        (ValueError, "input must have shape (batch, ..., 7), got (2, 6)", torch.ones(2, 6)),
        (ValueError, "input must have shape (batch, ..., 7), got (7,)", torch.ones(7)),
        (ValueError, "input must have shape (batch, ..., 7), got ()", torch.ones(())),
    ],
)
def test_bad_input(error, message, value):
    layer = nn.BatchNorm("4x0e+1x1o")
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=f"^{re.escape('BatchNorm: ' + message)}$"):
        layer(value)
    assert all(torch.equal(before[key], kept) for key, kept in layer.state_dict().items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reduce": "sum"}, "reduce must be 'mean' or 'max', got 'sum'"),
        ({"reduce": None}, "reduce must be 'mean' or 'max', got None"),
        ({"normalization": "integral"}, "normalization must be 'norm' or 'component', got 'integral'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape('BatchNorm: ' + message)}$"):
        nn.BatchNorm("4x0e", **options)
