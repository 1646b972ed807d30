"""RadialWeights in the place of a tensor: whatever is done with them, the numbers are those of the tensor."""

import numpy as np
import pytest
import torch

from clebsch.convert.radial import FullyConnectedNet, RadialWeights, SideBySide, activation, multiply
from clebsch.convert.swap import swap

E, H, N = 6, 4, 5


def pair(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(E, H, generator=generator, dtype=torch.float64).to(dtype)
    matrix = torch.randn(H, N, generator=generator, dtype=torch.float64).to(dtype)
    return RadialWeights(hidden, matrix), hidden @ matrix


COLUMN = torch.linspace(-1, 1, E, dtype=torch.float64).unsqueeze(1)
SAME = {
    "column": lambda w: w * COLUMN,
    "column on the left": lambda w: COLUMN * w,
    "number": lambda w: -2 * w,
    "tensor of one": lambda w: w * torch.tensor([3.0]),
    "torch.mul": lambda w: torch.mul(w, COLUMN),
    "torch.mul by name": lambda w: torch.mul(input=w, other=COLUMN),
    "method mul": lambda w: w.mul(COLUMN),
    "twice": lambda w: (w * COLUMN) * 2,
    "row": lambda w: w * torch.arange(N),
    "itself": lambda w: w * w,
    "division": lambda w: w / (COLUMN + 2),
    "divides": lambda w: 1 / (w + 10),
    "sum": lambda w: COLUMN + w - w * 2,
    "negative": lambda w: -w,
    "power": lambda w: w**2,
    "matrix": lambda w: w @ torch.ones(N, 2, dtype=torch.float64),
    "slice": lambda w: w[1:, ::2],
    "function": lambda w: torch.relu(w),
    "list of tensors": lambda w: torch.cat([w, w], dim=1),
    "view": lambda w: w.view(E * N).sum(),
    "compared": lambda w: w > 0,
    "equal": lambda w: (w == w) & ~(w != w),
    "type": lambda w: w.float(),
    "numpy number": lambda w: np.float64(2) * w,
}


@pytest.mark.parametrize("parts", [0, 1, 2])
@pytest.mark.parametrize("case", SAME)
def test_as_the_tensor(case, parts):
    ours, theirs = pair()
    if parts:
        ours = SideBySide(RadialWeights(ours.hidden, part) for part in ours.matrix.tensor_split(parts, dim=1))
    ours = SAME[case](ours)
    ours = ours.whole() if isinstance(ours, RadialWeights) else ours
    torch.testing.assert_close(ours, torch.as_tensor(SAME[case](theirs)), rtol=1e-13, atol=1e-13)


def test_cutoffs_stay_factors():
    ours, _ = pair()
    assert isinstance(ours * COLUMN, RadialWeights) and isinstance(COLUMN * ours, RadialWeights)
    assert not isinstance(ours * torch.ones(E, N), RadialWeights)


def test_types_are_promoted():
    ours, theirs = pair(torch.float32)
    product = ours * COLUMN
    assert product.dtype == torch.float64
    torch.testing.assert_close(product, theirs * COLUMN, rtol=1e-5, atol=1e-5)


def _set(w):
    w[0] = 7.0


WRITES = {
    "mul_": lambda w: w.mul_(COLUMN),
    "set": _set,
    "out": lambda w: torch.mul(w, COLUMN, out=w),
    "function": lambda w: torch.relu_(w),
    "data": lambda w: w.data.add_(1),
}


@pytest.mark.parametrize("case", WRITES)
def test_writing_is_seen(case):
    ours, theirs = pair()
    WRITES[case](ours), WRITES[case](theirs)
    assert not ours.is_factored
    again = ours * 2
    torch.testing.assert_close(again.whole() if isinstance(again, RadialWeights) else again, theirs * 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"act": torch.tanh},
        {"act": torch.tanh, "variance_in": 2.0, "variance_out": 3.0},
        {"act": None},
        {"act": torch.relu, "out_act": True},
    ],
    ids=["tanh", "variances", "no function", "function at the end"],
)
@pytest.mark.parametrize("sizes", [[3, 5], [3, 4, 5], [3, 4, 4, 5]])
def test_net(sizes, arguments):
    from e3nn.nn import FullyConnectedNet as Theirs

    net = Theirs(sizes, **arguments).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    expected = net(x)
    swap(net, FullyConnectedNet)
    ours = net(x)
    assert isinstance(ours, RadialWeights) != arguments.get("out_act", False)
    torch.testing.assert_close(torch.add(ours, 0), expected, rtol=1e-12, atol=1e-12)


def parts():
    """Factors, a tensor, factors; all with gradients."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(E, H), (H, 2), (E, 3), (E, 1), (1, 4), (9, 5), (5,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
def test_products_of_what_is_side_by_side(with_bias):
    given = parts()
    a, b, x, c, d, matrix, bias = given
    bias = bias if with_bias else None
    joined = SideBySide([RadialWeights(a, b), x, RadialWeights(c, d)])
    expected = torch.cat([a @ b, x, c @ d], dim=1)
    assert joined.columns == 9
    torch.testing.assert_close(joined.whole(), expected)
    expected = expected @ matrix + (0 if bias is None else bias)
    ours = multiply(joined, matrix, bias)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)
    wanted = given[:-1] + [bias] * with_bias
    for one, other in zip(
        *(torch.autograd.grad(value.sin().sum(), wanted) for value in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_was_written_is_what_is_multiplied():
    a, b, x, _, _, matrix, _ = (value.detach() for value in parts())
    joined, part = SideBySide([RadialWeights(a, b), x, x]), RadialWeights(a, b)
    expected = joined.whole()[:, :8].clone()
    joined[0] = 7.0
    expected[0] = 7.0
    torch.testing.assert_close(multiply(joined, matrix[:8]), expected @ matrix[:8])
    part.mul_(2)
    torch.testing.assert_close(
        multiply(SideBySide([part, x]), matrix[:5]), torch.cat([2 * (a @ b), x], 1) @ matrix[:5]
    )


def test_wholes_of_products_to_second_order():
    a, b, _, c, d, _, _ = parts()

    def whole(a, b, c, d):
        return SideBySide([RadialWeights(a, b), RadialWeights(c, d)]).whole()

    torch.testing.assert_close(whole(a, b, c, d), torch.cat([a @ b, c @ d], 1))
    assert torch.autograd.gradcheck(whole, (a, b, c, d))
    assert torch.autograd.gradgradcheck(whole, (a, b, c, d))


def test_looked_at_without_gradients_and_used_with_them():
    a, b, *_ = parts()
    weights = RadialWeights(a, b)
    with torch.no_grad():
        assert weights.shape == (E, 2) and weights.whole().requires_grad
        assert not RadialWeights(a, b).whole().requires_grad
    (found,) = torch.autograd.grad(torch.add(weights, 0).sin().sum(), b)
    (expected,) = torch.autograd.grad((a @ b).sin().sum(), b)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [4, 1 << 16])
def test_functions(size):
    x = torch.linspace(-9, 9, size, dtype=torch.float64)
    for function in (torch.nn.SiLU(), torch.nn.functional.silu, torch.tanh, torch.nn.SiLU(inplace=True)):
        torch.testing.assert_close(
            activation(function, x.clone()), function(x.clone()), rtol=1e-13, atol=1e-15
        )
    listened = torch.nn.SiLU()
    listened.register_forward_hook(lambda module, given, out: 2 * out)
    torch.testing.assert_close(activation(listened, x), listened(x), rtol=1e-13, atol=1e-15)
    half = x.to(torch.bfloat16)
    assert torch.equal(activation(torch.nn.SiLU(), half), torch.nn.functional.silu(half))
