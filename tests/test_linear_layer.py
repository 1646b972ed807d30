"""o3.Linear against e3nn 0.6."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

from clebsch import o3

e3nn_o3 = pytest.importorskip("e3nn.o3")

# name: (irreps_in, irreps_out, options)
LAYERS = {
    "plain": ("5x0e+3x1o+2x2e", "4x0e+2x1o+3x2e", {}),
    "several blocks of an irrep": ("3x0e+2x0e+3x1o+4x1o+2x0e", "4x0e+2x1o+3x1o+1x0e", {}),
    "blocks that merge": ("3x0e+2x0e+3x1o+4x1o+1x1o", "4x0e+2x1o", {}),
    "path": ("3x0e+2x0e+3x1o+4x1o", "4x0e+2x1o+1x0e", {"path_normalization": "path"}),
    "instructions": ("4x0e+3x0e+2x1e", "4x0e+3x0e+2x1e", {"instructions": [(0, 0), (1, 1), (2, 2)]}),
    "repeated instruction": ("4x0e+3x0e", "4x0e", {"instructions": [(1, 0), (0, 0), (0, 0)]}),
    "biases": ("3x0e+2x0o+3x1o", "4x0e+2x0o+2x1o+3x0e", {"biases": True}),
    "some biases": ("3x0e+3x1o", "4x0e+2x1o+3x0e", {"biases": [False, False, True]}),
    "unreached outputs": ("3x0e", "2x1o+4x0e+1x2e", {}),
    "zero multiplicities": ("0x0e+3x1o+2x0e", "0x1o+2x1o+1x0e+0x2e", {}),
    "nothing": ("2x0e", "2x1o", {}),
    "empty": ("", "", {}),
    "f": ("3x0e+2x1o+1x0e", "2x0e+4x1o", {"f_in": 5, "f_out": 3}),
    "f with biases": ("3x0e+2x1o", "2x0e+4x1o", {"f_in": 5, "f_out": 3, "biases": True}),
}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(((a - b).norm() / b.norm().clamp_min(1e-300)).detach()) if b.numel() else 0.0


def both(name: str, **more):
    torch.set_default_dtype(torch.float64)
    irreps_in, irreps_out, options = LAYERS[name]
    theirs = e3nn_o3.Linear(irreps_in, irreps_out, **options, **more)
    ours = o3.Linear(irreps_in, irreps_out, **options, **more)
    if theirs.bias.numel():
        torch.nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def features(module, *batch):
    extra = () if module.f_in is None else (module.f_in,)
    return torch.randn(*batch, *extra, module.irreps_in.dim)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_e3nn(name, batch):
    ours, theirs = both(name)
    x = features(ours, *batch)
    assert relative(ours(x), theirs(x)) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_attributes_are_e3nns(name):
    ours, theirs = both(name)
    assert [tuple(ins) for ins in ours.instructions] == [tuple(ins) for ins in theirs.instructions]
    assert (ours.weight_numel, ours.bias_numel) == (theirs.weight_numel, theirs.bias_numel)
    assert repr(ours) == repr(theirs)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}
    assert torch.equal(ours.output_mask, theirs.output_mask)
    if ours.f_in is None and not ours.bias_numel:
        for mine, its in zip(ours.weight_views(), theirs.weight_views(), strict=True):
            assert torch.equal(mine, its)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_equal_e3nns(name):
    ours, theirs = both(name)
    x = features(ours, 4).requires_grad_()
    cotangent = torch.randn_like(ours(x))
    gradients = []
    for module in (ours, theirs):
        operands = [x, *module.parameters()]
        out = module(x)
        if not out.requires_grad:
            return
        gradients.append(torch.autograd.grad(out, operands, cotangent, allow_unused=True))
    for mine, its in zip(*gradients, strict=True):
        assert (mine is None) == (its is None)
        assert mine is None or relative(mine, its) < 1e-12


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", [name for name in LAYERS if "bias" not in name])
def test_weights_from_outside(name, shared):
    ours, theirs = both(name, internal_weights=False, shared_weights=shared)
    x = features(ours, 4)
    axes = () if ours.f_in is None else (ours.f_in, ours.f_out)
    weight = torch.randn(*(() if shared else (4,)), *axes, ours.weight_numel)
    assert relative(ours(x, weight), theirs(x, weight)) < 1e-12


def test_weights_per_row_broadcast():
    ours, theirs = both("plain", shared_weights=False)
    x, weight = features(ours, 2, 1), torch.randn(2, 3, ours.weight_numel)
    expected = theirs(x.expand(2, 3, -1).reshape(6, -1), weight.reshape(6, -1)).reshape(2, 3, -1)
    assert relative(ours(x, weight), expected) < 1e-12
    one = torch.randn(1, ours.weight_numel)
    x = features(ours, 6)
    assert relative(ours(x, one), theirs(x, one.expand(6, -1))) < 1e-12


def test_biases_from_outside():
    ours, theirs = both("biases", internal_weights=False)
    x, weight, bias = features(ours, 4), torch.randn(ours.weight_numel), torch.randn(ours.bias_numel)
    assert relative(ours(x, weight, bias), theirs(x, weight, bias)) < 1e-12
    per_row = o3.Linear(*LAYERS["biases"][:2], biases=True, shared_weights=False)
    biases = torch.randn(4, ours.bias_numel)
    out = per_row(x, weight.expand(4, -1), biases)
    single = torch.stack([ours(x[i], weight, biases[i]) for i in range(4)])
    assert relative(out, single) < 1e-12


def test_block_with_a_bias_and_no_input():
    # e3nn 0.6 fails here: it does not broadcast the bias.
    module = o3.Linear("3x1o", "4x0e+2x1o", biases=True)
    torch.nn.init.normal_(module.bias)
    out = module(torch.randn(5, 9))
    assert out.shape == (5, 10) and torch.equal(out[:, :4], module.bias.expand(5, 4))


def test_second_derivatives():
    ours, _ = both("biases")
    weight, bias = (t.detach().requires_grad_() for t in (ours.weight, ours.bias))
    x = features(ours, 2).requires_grad_()
    assert torch.autograd.gradcheck(ours, (x, weight, bias))
    assert torch.autograd.gradgradcheck(ours, (x, weight, bias))


def test_features_that_are_not_contiguous():
    ours, _ = both("plain")
    x = features(ours, 4)
    wide = torch.randn(4, 2 * x.shape[1])
    wide[:, ::2] = x
    assert torch.equal(ours(wide[:, ::2]), ours(x))
    assert torch.equal(ours(x[:1].expand(3, -1)), ours(x[:1].repeat(3, 1)))


def test_copies_compute_the_same():
    ours, _ = both("biases")
    x = features(ours, 4)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), ours(x))


@pytest.mark.parametrize("name", [name for name in LAYERS if "f" not in name.split()])
def test_both_ways_of_computing_agree(name):
    """Kernels, and the matrix products of torch that serve what kernels do not; e3nn itself cannot have
    biases where weights belong to rows."""
    torch.set_default_dtype(torch.float64)
    irreps_in, irreps_out, arguments = LAYERS[name]
    for options in ({}, {"internal_weights": False}, {"shared_weights": False}):
        ours = o3.Linear(irreps_in, irreps_out, **arguments, **options)
        torch.nn.init.normal_(ours.bias)
        by_torch = copy.deepcopy(ours)
        by_torch._sizes = None
        for batch in ((), (5,), (0,), (2, 3)):
            lead = () if ours.shared_weights else batch
            given = [features(ours, *batch)]
            if not ours.internal_weights:
                given += [torch.randn(*lead, ours.weight_numel), torch.randn(*lead, ours.bias_numel)]
            assert relative(ours(*given), by_torch(*given)) < 1e-14


def test_transforms_that_kernels_do_not_know():
    ours, _ = both("biases")
    x = features(ours, 4)
    parameters = dict(ours.named_parameters())

    def loss(given):
        return torch.func.functional_call(ours, given, (x,)).square().sum()

    by_function = torch.func.grad(loss)({name: t.detach() for name, t in parameters.items()})
    for mine, its in zip(
        by_function.values(),
        torch.autograd.grad(ours(x).square().sum(), list(parameters.values())),
        strict=True,
    ):
        assert relative(mine, its) < 1e-14
    assert relative(torch.func.vmap(ours)(x[:, None])[:, 0], ours(x)) < 1e-14
    value, tangent = torch.func.jvp(ours, (x,), (x,))
    assert relative(value, ours(x)) < 1e-14
    assert relative(tangent, ours(x) - ours(torch.zeros_like(x))) < 1e-13
    out = ours(x.requires_grad_())
    cotangents = torch.randn(3, *out.shape)
    (batched,) = torch.autograd.grad(out, x, cotangents, retain_graph=True, is_grads_batched=True)
    for cotangent, gradient in zip(cotangents, batched, strict=True):
        assert relative(gradient, torch.autograd.grad(out, x, cotangent, retain_graph=True)[0]) < 1e-14


def test_types_that_kernels_do_not_know():
    ours, _ = both("plain")
    x = features(ours, 4)
    expected = ours(x)
    half = copy.deepcopy(ours).bfloat16()
    assert relative(half(x.bfloat16()).double(), expected) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = copy.deepcopy(ours).float()(x.float())
    assert under_autocast.dtype == torch.bfloat16 and relative(under_autocast.double(), expected) < 0.05
    assert ours.to("meta")(x.to("meta")).shape == expected.shape


@pytest.mark.parametrize("irreps", ["1x101e", f"{(1 << 20) + 1}x0e"])
def test_beyond_what_kernels_take(irreps):
    """Torch's matrix products take over."""
    layer = o3.Linear(irreps, irreps.replace(str((1 << 20) + 1), "1")).double()
    x = torch.randn(2, layer.irreps_in.dim, dtype=torch.float64)
    assert layer(x).shape == (2, layer.irreps_out.dim) and layer(x).isfinite().all()


def test_tangents_reach_a_compiled_function():
    layer = o3.Linear("4x0e+3x1o", "2x0e+2x1o").double().requires_grad_(False)
    x, v = torch.randn(5, 13, dtype=torch.float64), torch.randn(5, 13, dtype=torch.float64)

    def tangent(x, v):
        return torch.func.jvp(layer, (x,), (v,))[1]

    compiled = torch.compile(tangent, backend="aot_eager")
    torch.testing.assert_close(compiled(x, v), layer(v), rtol=1e-12, atol=1e-14)
    assert layer(v).abs().sum() > 0


@pytest.mark.not_emulated("other processes have the kernels of the CPU")
@pytest.mark.parametrize("kind", ["Linear", "FullTensorProduct"])
def test_another_process_learns_the_couplings(kind, tmp_path):
    """Degrees beyond the compiled table are made known where a layer is constructed, or unpickled."""
    module = o3.Linear("4x9e", "4x9e") if kind == "Linear" else o3.FullTensorProduct("1x9e", "1x1e")
    inputs = [module.irreps_in] if kind == "Linear" else [module.irreps_in1, module.irreps_in2]
    operands = [torch.randn(2, irreps.dim) for irreps in inputs]
    torch.save((module, operands, module(*operands)), tmp_path / "saved")
    program = (
        "import sys, torch; layer, x, y = torch.load(sys.argv[1], weights_only=False); "
        "assert torch.equal(layer(*x), y)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "saved")], check=True, env=environment)


@pytest.mark.parametrize("axes", [{}, {"f_in": 3, "f_out": 2}], ids=["plain", "axes"])
def test_forms_of_shared_weights_are_e3nns(axes, float64_by_default):
    arguments = "3x0e+2x1o", "2x0e+2x1o"
    options = {"internal_weights": False, "biases": True, **axes}
    ours, theirs = (package.Linear(*arguments, **options) for package in (o3, e3nn_o3))
    features = torch.randn(4, *([3] if axes else []), 9)
    weight, bias = torch.randn(*axes.values(), 10), torch.randn(*list(axes.values())[1:], 2)
    expected = theirs(features, weight, bias)
    for w, b in ((weight, bias), (weight.flatten(), bias.flatten()), (weight[None], bias[None])):
        torch.testing.assert_close(theirs(features, w, b), expected)
        torch.testing.assert_close(ours(features, w, b), expected)


def test_weight_index_slices_are_e3nns():
    arguments, options = ("3x0e+2x1o", "2x0e+2x1o+0x1o"), {"biases": True}
    ours, theirs = (package.Linear(*arguments, **options) for package in (o3, e3nn_o3))
    assert [tuple(part) for part in ours.weight_index_slices] == [
        tuple(part) for part in theirs.weight_index_slices
    ]
    assert ours.weight_index_slices[0]._fields == theirs.weight_index_slices[0]._fields
