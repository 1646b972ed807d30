"""nn.Gate and nn.Activation against e3nn 0.6."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import relu, silu, softplus

from clebsch import nn, o3
from clebsch.nn.activation import second_moment_constant

e3nn_nn = pytest.importorskip("e3nn.nn")
from e3nn.math import normalize2mom  # noqa: E402

GATES = {
    "mace": ("16x0e", [silu], "8x0e", [torch.sigmoid], "4x1o+4x2e"),
    "odd scalars": ("4x0e+3x0o", [silu, torch.tanh], "5x0e", [torch.sigmoid], "2x1o+3x2e"),
    "odd gates": ("16x0o", [torch.tanh], "32x0o", [torch.tanh], "16x1e+16x1o"),
    "even function of odd": ("4x0o", [torch.abs], "2x0e+2x0o", [silu, torch.tanh], "3x1o+1x1e"),
    "no gates": ("4x0e+2x0o", [silu, torch.tanh], "", [], ""),
    "no scalars": ("", [], "3x0e", [torch.sigmoid], "3x1o"),
    "identity": ("4x0e+2x0o", [None, None], "3x0e", [None], "3x1o"),
    "uneven blocks": ("2x0e+3x0e", [silu, relu], "1x0e+4x0e", [silu, torch.sigmoid], "2x1o+1x1o+2x3e"),
}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(((a - b).norm() / b.norm().clamp_min(1e-300)).detach()) if b.numel() else 0.0


@pytest.mark.parametrize("batch", [(6,), (2, 3), ()])
@pytest.mark.parametrize("name", GATES)
def test_equals_e3nn(name, batch):
    torch.set_default_dtype(torch.float64)
    ours, theirs = nn.Gate(*GATES[name]), e3nn_nn.Gate(*GATES[name])
    assert (str(ours.irreps_in), str(ours.irreps_out)) == (str(theirs.irreps_in), str(theirs.irreps_out))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    outputs, gradients = [], []
    x = torch.randn(*batch, ours.irreps_in.dim, requires_grad=True)
    for module in (ours, theirs):
        out = module(x)
        outputs.append(out.detach())
        gradients.append(torch.autograd.grad(out.sin().sum(), x)[0])
    assert relative(*outputs) < 1e-12 and relative(*gradients) < 1e-12


def test_gate_of_no_rows():
    gate = nn.Gate(*GATES["odd scalars"])
    assert gate(torch.zeros(0, gate.irreps_in.dim)).shape == (0, gate.irreps_out.dim)


def test_gate_second_derivatives():
    gate = nn.Gate(*GATES["odd scalars"]).double()
    x = torch.randn(2, gate.irreps_in.dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gate, x) and torch.autograd.gradgradcheck(gate, x)


def test_gate_copies():
    gate = nn.Gate(*GATES["mace"])
    x = torch.randn(3, gate.irreps_in.dim)
    for other in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert torch.equal(other(x), gate(x))


def test_gate_is_equivariant():
    torch.set_default_dtype(torch.float64)
    gate = nn.Gate("4x0e+3x0o", [silu, torch.tanh], "5x0e", [torch.sigmoid], "2x1o+3x2e")
    rotation = -o3.rand_matrix()
    x = torch.randn(5, gate.irreps_in.dim)
    into, out = (irreps.D_from_matrix(rotation) for irreps in (gate.irreps_in, gate.irreps_out))
    assert relative(gate(x @ into.T), gate(x) @ out.T) < 1e-12


@pytest.mark.parametrize(
    "irreps, acts",
    [
        ("4x0e", [silu]),
        ("4x0e+2x0o+3x1o", [silu, torch.tanh, None]),
        ("4x0o", [torch.abs]),
        ("256x0o+16x1e", [None, None]),
        ("", []),
    ],
)
def test_activation_equals_e3nn(irreps, acts):
    torch.set_default_dtype(torch.float64)
    ours, theirs = nn.Activation(irreps, acts), e3nn_nn.Activation(irreps, acts)
    assert str(ours.irreps_out) == str(theirs.irreps_out) and repr(ours) == repr(theirs)
    x = torch.randn(3, ours.irreps_in.dim)
    assert relative(ours(x), theirs(x)) < 1e-12
    assert relative(ours(x.T, dim=0), theirs(x.T, dim=0)) < 1e-12


@pytest.mark.parametrize(
    "function, constant", [(silu, 1.679177), (torch.tanh, 1.593734), (torch.sigmoid, 1.846706)]
)
def test_constants(function, constant):
    assert second_moment_constant(function) == pytest.approx(constant, abs=1e-6)


@pytest.mark.parametrize("function", [silu, torch.tanh, torch.sigmoid, relu, softplus, torch.nn.SiLU()])
def test_constants_are_e3nns(function):
    assert second_moment_constant(function) == pytest.approx(normalize2mom(function).cst, abs=1e-12)
