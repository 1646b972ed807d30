"""RadialWeights in the place of a tensor: whatever is done with them, the numbers are those of the tensor."""

import numpy as np
import pytest
import torch

from clebsch.convert.radial import FullyConnectedNet, RadialWeights
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


@pytest.mark.parametrize("case", SAME)
def test_as_the_tensor(case):
    ours, theirs = pair()
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
