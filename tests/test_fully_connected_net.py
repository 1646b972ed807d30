"""nn.FullyConnectedNet against e3nn 0.6."""

import copy
import pickle
import re

import numpy as np
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
    "no inputs": ([0, 4, 2], torch.tanh, {}),
    "no hidden units": ([3, 0, 2], torch.tanh, {}),
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


def test_weights_are_drawn_as_e3nns():
    nets = []
    for package in (nn, e3nn_nn):
        torch.manual_seed(5)
        nets.append(package.FullyConnectedNet([3, 4, 2], torch.tanh))
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_sizes_of_numpy():
    assert repr(nn.FullyConnectedNet(np.array([3, 2]))) == "FullyConnectedNet[3, 2]"


def test_hooks_of_layers_and_weights_made_by_them():
    ours, theirs = both("radial")
    seen = []
    for net in (ours, theirs):
        net.layer0.register_forward_hook(lambda layer, given, out: seen.append(out.detach()))
        torch.nn.utils.parametrizations.weight_norm(net.layer1)
        torch.nn.utils.parametrize.register_parametrization(net.layer2, "weight", torch.nn.Tanh())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(*seen, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_by_hooks():
    ours, theirs = both("radial")
    for net in (ours, theirs):
        torch.nn.utils.weight_norm(net.layer0)
        torch.nn.init.constant_(net.layer0.weight_g, 0.7)
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-13)


def test_further_modules_and_other_layers_are_called():
    ours, theirs = both("variances")
    linear = torch.nn.Linear(16, 5)
    for net in (ours, theirs):
        net.append(torch.nn.ReLU())
        net.layer1 = linear
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "message, sizes, options",
    [
        ("hs must be sizes >= 0, got [3, -1]", [3, -1], {}),
        ("hs must be sizes >= 0, got [3, 2.0]", [3, 2.0], {}),
        ("variance_in must be > 0, got 0", [3, 2], {"variance_in": 0}),
        ("variance_out must be > 0, got -1.0", [3, 2], {"variance_out": -1.0}),
    ],
)
def test_bad_arguments(message, sizes, options):
    with pytest.raises(ValueError, match=f"^{re.escape('FullyConnectedNet: ' + message)}$"):
        nn.FullyConnectedNet(sizes, torch.tanh, **options)
