"""With one seed, every layer begins with e3nn's parameters and leaves the generator where e3nn leaves it."""

import pytest
import torch

from clebsch import nn, o3

e3nn_o3 = pytest.importorskip("e3nn.o3")
import e3nn.nn  # noqa: E402

silu = torch.nn.functional.silu
IRREPS = "4x0e+3x1o+2x2e"
PATHS = [
    (0, 0, 0, "uvw", True),
    (1, 1, 0, "uvu", False),
    (1, 0, 1, "uvu", True),
    (2, 2, 2, "uuu", True),
    (0, 1, 1, "uvv", True),
    (1, 1, 0, "uuw", True),
]

# What is made of (o3, nn).
LAYERS = {
    "FullyConnectedTensorProduct": lambda o3, nn: o3.FullyConnectedTensorProduct(IRREPS, "1x0e+1x1o", IRREPS),
    "external weights": lambda o3, nn: o3.FullyConnectedTensorProduct(
        IRREPS, "1x0e+1x1o", IRREPS, shared_weights=False
    ),
    "ElementwiseTensorProduct": lambda o3, nn: o3.ElementwiseTensorProduct(IRREPS, IRREPS),
    "FullTensorProduct": lambda o3, nn: o3.FullTensorProduct(IRREPS, "1x0e+1x1o"),
    "TensorSquare": lambda o3, nn: o3.TensorSquare("4x0e+3x1o", "4x0e+2x2e"),
    "Norm": lambda o3, nn: o3.Norm(IRREPS),
    "Linear": lambda o3, nn: o3.Linear(IRREPS, "3x0e+2x1o+2x0e", biases=True),
    "Linear, f": lambda o3, nn: o3.Linear(IRREPS, "3x0e+2x1o", f_in=3, f_out=2),
    "Linear, external weights": lambda o3, nn: o3.Linear(IRREPS, "3x0e+2x1o", shared_weights=False),
    "Gate": lambda o3, nn: nn.Gate("4x0e", [silu], "2x0e", [torch.sigmoid], "2x1o"),
    "Activation": lambda o3, nn: nn.Activation("4x0e", [silu]),
    "NormActivation": lambda o3, nn: nn.NormActivation(o3.Irreps(IRREPS), torch.sigmoid, bias=True),
    "BatchNorm": lambda o3, nn: nn.BatchNorm(IRREPS),
    "Dropout": lambda o3, nn: nn.Dropout(IRREPS, 0.5),
    "FullyConnectedNet": lambda o3, nn: nn.FullyConnectedNet([3, 5, 4], silu),
    "SphericalHarmonics": lambda o3, nn: o3.SphericalHarmonics(2, True),
    "TensorProduct": lambda o3, nn: o3.TensorProduct(
        "3x0e+3x1o+2x2e", "3x0e+3x1o+2x2e", "3x0e+3x1o+2x2e", PATHS
    ),
}


def parameters_and_generator(make, *package):
    torch.manual_seed(11)
    layer = make(*package)
    return dict(layer.named_parameters()), torch.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_initial_parameters_are_e3nns(name, dtype):
    torch.set_default_dtype(dtype)
    ours, our_state = parameters_and_generator(LAYERS[name], o3, nn)
    theirs, their_state = parameters_and_generator(LAYERS[name], e3nn_o3, e3nn.nn)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == dtype for key in theirs)
    assert torch.equal(our_state, their_state)


DRAWS = {
    "randn": lambda o3: o3.Irreps(IRREPS).randn(3, -1),
    "randn, norm": lambda o3: o3.Irreps(IRREPS).randn(3, -1, normalization="norm"),
    "rand_matrix": lambda o3: o3.rand_matrix(3),
    "rand_angles": lambda o3: torch.stack(o3.rand_angles(3)),
    "rand_quaternion": lambda o3: o3.rand_quaternion(3),
    "rand_axis_angle": lambda o3: torch.cat([part.flatten() for part in o3.rand_axis_angle(3)]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_e3nns(name):
    torch.set_default_dtype(torch.float64)
    results = []
    for package in (o3, e3nn_o3):
        torch.manual_seed(11)
        results.append((DRAWS[name](package), torch.get_rng_state()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-14, atol=1e-14)
    assert torch.equal(results[0][1], results[1][1])
