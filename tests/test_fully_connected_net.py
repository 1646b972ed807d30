"""nn.FullyConnectedNet against e3nn 0.6."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import silu

from clebsch import nn

e3nn_nn = pytest.importorskip("e3nn.nn")

NETS = {
    "radial": ([8, 16, 16, 5], silu, {}),
    "linear": ([8, 16, 5], None, {}),
    "one layer": ([8, 5], silu, {}),
    "no layer": ([8], silu, {}),
    "variances": ([8, 16, 5], torch.tanh, {"variance_in": 2.0, "variance_out": 0.3}),
    "activated output": ([8, 16, 5], torch.tanh, {"variance_in": 2.0, "variance_out": 0.3, "out_act": True}),
    "identity constant": ([3, 4, 2], torch.nn.Identity(), {}),
}


def both(name):
    torch.set_default_dtype(torch.float64)
    sizes, act, options = NETS[name]
    ours, theirs = (package.FullyConnectedNet(sizes, act, **options) for package in (nn, e3nn_nn))
    assert {n: p.shape for n, p in ours.state_dict().items()} == {
        n: p.shape for n, p in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("batch", [(6,), (), (2, 3), (0,)])
@pytest.mark.parametrize("name", NETS)
def test_equals_e3nn(name, batch):
    ours, theirs = both(name)
    assert repr(ours) == repr(theirs)
    x = torch.randn(*batch, ours.hs[0])
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-13)
    for mine, its in zip(ours, theirs, strict=True):
        x = torch.randn(3, mine.h_in)
        torch.testing.assert_close(mine(x), its(x), rtol=1e-12, atol=1e-13)


def test_gradients_equal_e3nns():
    ours, theirs = both("activated output")
    x = torch.randn(6, 8, requires_grad=True)
    gradients = [torch.autograd.grad(net(x).sin().sum(), [x, *net.parameters()]) for net in (ours, theirs)]
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-13)


def test_copies_compute_the_same():
    ours, _ = both("radial")
    x = torch.randn(3, 8)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), ours(x))
