"""Layers and accelerated models on a GPU: the kernels run, agree with the CPU, and nothing waits."""

import pytest
import torch
from device import DEVICE, captured, only_there

import clebsch
from another_device import what_runs
from clebsch import Graph, explain, nn
from test_devices import KERNELS, LAYERS, layer_calls, of_packages

pytestmark = pytest.mark.usefixtures("float64_by_default")


def on_gpu(*values):
    return tuple(value.to(DEVICE) for value in values)


def differentiable(operands):
    """Those of them that gradients are taken of."""
    return [each for each in operands if isinstance(each, torch.Tensor) and each.requires_grad]


def results(model, operands):
    """The value, first and second derivatives by operands that require gradients and by all weights."""
    by = [*differentiable(operands), *model.parameters()]
    out = model(*operands)
    first = torch.autograd.grad(out.sin().sum(), by, create_graph=True)
    total = sum(grad.square().sum() for grad in first)
    second = torch.autograd.grad(total, by, materialize_grads=True)
    return [each.detach().cpu() for each in (out, *first, *second)]


def with_gradients(operands, count):
    first = [each.requires_grad_() for each in operands[:count]]
    return (*first, *operands[count:])


def moved(operands):
    return tuple(
        each.to(DEVICE)
        if isinstance(each, Graph)
        else each.detach().to(DEVICE).requires_grad_(each.requires_grad)
        for each in operands
    )


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, operands, kernels = layer_calls()[name]
    operands = with_gradients(operands, 1)
    expected = results(layer, operands)
    layer, operands = layer.to(DEVICE), moved(operands)
    assert what_runs(lambda: layer(*operands)) >= {f"clebsch::{one}" for one in kernels - {"graph_order"}}
    for a, b in zip(results(layer, operands), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("which", ["ours", "accelerated on the CPU", "accelerated on the GPU"])
def test_models(which):
    theirs, fast, ours, operands, species = of_packages()
    operands = with_gradients((*operands, species), 3)
    expected = results(theirs, operands)
    if which == "accelerated on the GPU":
        model = clebsch.accelerate(theirs.to(DEVICE), strict=True)
    else:
        model = (ours if which == "ours" else fast).to(DEVICE)
    operands = moved(operands)
    assert what_runs(lambda: model(*operands)) >= {f"clebsch::{name}" for name in KERNELS}
    for a, b in zip(results(model, operands), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert "cuda" in {entry.backend for entry in explain(model, measure=False)}


@only_there
@pytest.mark.parametrize("which", ["ours", "accelerated"])
def test_nothing_waits(which):
    _, fast, ours, operands, species = of_packages()
    model = (fast if which == "accelerated" else ours).to(DEVICE)
    operands = moved(with_gradients((*operands, species), 3))
    results(model, operands)  # plans and couplings are read and copied at first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = model(*operands)
        torch.autograd.grad(out.sin().sum(), differentiable(operands))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("which", ["ours", "accelerated"])
def test_capture(which):
    """A model's step in a CUDA graph, replayed with other numbers."""
    _, fast, ours, operands, species = of_packages()
    model = (fast if which == "accelerated" else ours).to(DEVICE).requires_grad_(False)
    operands = on_gpu(*operands, species)

    def step():
        given = [each.detach().requires_grad_() for each in operands[:1]]
        energy = model(*given, *operands[1:]).sum()
        return energy.detach(), torch.autograd.grad(energy, given)[0]

    found, replay = captured(step)
    operands[0].mul_(1.25)
    replay()
    for a, b in zip(found, step(), strict=True):
        torch.testing.assert_close(a, b)


def test_species_without_a_wait():
    """Rows that are one-hot and species say the same."""
    layer = nn.SymmetricContraction("4x0e+4x1o", "4x0e+4x1o", 3, num_elements=3)
    x, index = torch.randn(5, 4, 4), torch.tensor([0, 2, 2, 1, 0])
    seen = layer(x, index)
    layer, x, index = layer.to(DEVICE), *on_gpu(x, index)
    for given in (index, torch.eye(3, device=DEVICE)[index]):
        torch.testing.assert_close(layer(x, given).cpu(), seen, rtol=1e-11, atol=1e-11)


def test_autocast_takes_torchs_operations():
    _, fast, _, operands, species = of_packages()
    model, operands = fast.to(DEVICE), on_gpu(*operands, species)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert not {name for name in what_runs(lambda: model(*operands)) if name.startswith("clebsch::")}
