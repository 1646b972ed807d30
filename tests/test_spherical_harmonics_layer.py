"""o3.SphericalHarmonics and o3.spherical_harmonics against e3nn 0.6: arguments, shapes, numbers."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from clebsch import o3

e3nn_o3 = pytest.importorskip("e3nn.o3")


def close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert not ours.numel() or (ours - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize(
    "degrees", [0, 3, [0, 1, 2, 3, 4], [2, 0, 2, 1], (1, 3), "0e+1o+2e", "2x1o+1x0e", "1e+2e", "12e"]
)
def test_equals_e3nn(degrees, normalization, normalize):
    torch.set_default_dtype(torch.float64)
    x = torch.randn(7, 3, requires_grad=True)
    their_degrees = list(degrees) if isinstance(degrees, tuple) else degrees
    outputs, gradients = [], []
    for package, ls in ((o3, degrees), (e3nn_o3, their_degrees)):
        y = package.spherical_harmonics(ls, x, normalize, normalization)
        outputs.append(y)
        # e3nn's Y^0 does not depend on x as autograd sees it.
        gradients.append(
            torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[1])).sum() + 0 * x.sum(), x)[0]
        )
    close(*outputs)
    close(*gradients)


def test_equals_the_formula_of_its_docstring():
    points = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    x, height, z = points.numpy().T
    phi = np.arctan2(x, z)
    for l in range(7):
        legendre = np.polynomial.Legendre.basis(l)
        harmonics = o3.spherical_harmonics(l, points, normalize=True).numpy()
        for m in range(-l, l + 1):
            n = abs(m)
            square = (2 * l + 1) / (4 * math.pi) * math.factorial(l - n) / math.factorial(l + n)
            wave = 1.0 if m == 0 else math.sqrt(2) * (np.cos(n * phi) if m > 0 else np.sin(n * phi))
            expected = math.sqrt(square) * (1 - height**2) ** (n / 2) * legendre.deriv(n)(height) * wave
            np.testing.assert_allclose(harmonics[:, l + m], expected, rtol=0, atol=1e-13)


def test_irreps_in_and_out():
    for given in (
        "0e+1o+2e",
        e3nn_o3.Irreps("0e+1o+2e"),
        o3.Irreps("0e+1o+2e"),
        [0, 1, 2],
        "2x1o",
        "1e+0e",
        5,
    ):
        ours = o3.SphericalHarmonics(given, True)
        theirs = e3nn_o3.SphericalHarmonics(
            e3nn_o3.Irreps(str(given)) if isinstance(given, o3.Irreps) else given, True
        )
        assert str(ours.irreps_in) == str(theirs.irreps_in)
        assert str(ours.irreps_out) == str(theirs.irreps_out)
    assert str(o3.SphericalHarmonics([0, 1], True, irreps_in="1e").irreps_out) == "1x0e+1x1e"
    assert o3.SphericalHarmonics([0, 1], True).state_dict() == {}


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,), (2, 0, 3)])
def test_leading_dimensions(batch):
    torch.set_default_dtype(torch.float64)
    x = torch.randn(*batch, 3)
    ours = o3.spherical_harmonics("0e+1o+2e", x, True, "component")
    close(ours, e3nn_o3.spherical_harmonics("0e+1o+2e", x, True, "component"))


def test_beyond_e3nns_degrees():
    torch.set_default_dtype(torch.float64)
    x = torch.randn(6, 3)
    y = o3.spherical_harmonics([14], x, normalize=True, normalization="component")
    close(y.square().sum(1), torch.full((6,), 29.0))


def test_copies_compute_the_same():
    module = o3.SphericalHarmonics("0e+1o+2e", True, "component")
    x = torch.randn(5, 3)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
