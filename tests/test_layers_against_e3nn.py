"""Every layer against e3nn 0.6's for random arguments: values, first and second derivatives, running means.

A strategy for the arguments of each layer, and one comparison.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import nn, o3
from clebsch.testing import random_irreps, random_plans
from layer_comparison import assert_same_function

e3nn_o3 = pytest.importorskip("e3nn.o3")
import e3nn.nn as e3nn_nn  # noqa: E402

MULTIPLICITIES = (0, 1, 2, 3, 5)
SOME = (1, 2, 3, 5)  # e3nn's Gate fails on blocks of nothing
FEW = (1, 2)
IR_FILTERS = st.sampled_from([None, ["0e", "1o"], ["0e", "1e", "1o", "2e"]])
NORMALIZATIONS = st.sampled_from([None, "component", "norm", "none"])

SILU = torch.nn.functional.silu
OF_ODD = (torch.tanh, torch.sin, torch.cos)  # odd, odd and even: what functions of 0o must be
OF_EVEN = (*OF_ODD, torch.sigmoid, SILU)


class Case(NamedTuple):
    """build(o3, nn) makes the layer of one of the two packages; shapes(layer, rows): of its inputs."""

    build: Callable[[Any, Any], torch.nn.Module]
    shapes: Callable[[Any, int], list[tuple[int, ...]]]


def rows_of(*names: str) -> Callable[[Any, int], list[tuple[int, ...]]]:
    """Rows of the irreps that the layer has under these names."""
    return lambda layer, rows: [(rows, getattr(layer, name).dim) for name in names]


def irreps(min_terms: int = 0, max_terms: int = 3, l_max: int = 3, multiplicities: Any = MULTIPLICITIES):
    return random_irreps(min_terms, max_terms, l_max, multiplicities).map(str)


def flags() -> st.SearchStrategy[bool]:
    return st.booleans()


@st.composite
def tensor_products(draw: Any) -> Case:
    plan = draw(random_plans(l_max=3, max_paths=3, layouts=("mul_ir",), multiplicities=MULTIPLICITIES))
    scales = st.sampled_from([0.0, 0.3, 1.0, 2.0])
    instructions = [
        (path.i_in1, path.i_in2, path.i_out, path.mode, path.has_weight, draw(scales)) for path in plan.paths
    ]
    blocks = [str(block) for block in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    shared = draw(flags())
    options = {
        "irrep_normalization": draw(NORMALIZATIONS),
        "path_normalization": draw(st.sampled_from([None, "element", "path", "none"])),
        "in1_var": [draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in plan.irreps_in1],
        "shared_weights": shared,
    }

    def shapes(layer, rows):
        weights = [] if shared else [(rows, layer.weight_numel)]
        return [(rows, layer.irreps_in1.dim), (rows, layer.irreps_in2.dim), *weights]

    return Case(lambda o3, nn: o3.TensorProduct(*blocks, instructions, **options), shapes)


@st.composite
def fully_connected(draw: Any) -> Case:
    blocks = [draw(irreps(max_terms=2)) for _ in range(3)]
    options = {"irrep_normalization": draw(NORMALIZATIONS)}
    return Case(
        lambda o3, nn: o3.FullyConnectedTensorProduct(*blocks, **options), rows_of("irreps_in1", "irreps_in2")
    )


@st.composite
def full_products(draw: Any) -> Case:
    blocks, kept = [draw(irreps(max_terms=2)) for _ in range(2)], draw(IR_FILTERS)
    return Case(lambda o3, nn: o3.FullTensorProduct(*blocks, kept), rows_of("irreps_in1", "irreps_in2"))


@st.composite
def elementwise_products(draw: Any) -> Case:
    first, kept = draw(random_irreps(1, 3, 3, MULTIPLICITIES)), draw(IR_FILTERS)
    second = [(mul, draw(st.sampled_from(["0e", "1o", "2e", "1e"]))) for mul, _ in reversed(first)]
    return Case(
        lambda o3, nn: o3.ElementwiseTensorProduct(str(first), o3.Irreps(second), kept),
        rows_of("irreps_in1", "irreps_in2"),
    )


@st.composite
def tensor_squares(draw: Any) -> Case:
    block, options = draw(irreps(max_terms=2)), {"filter_ir_out": draw(IR_FILTERS)}
    if draw(flags()):
        options = {"irreps_out": draw(irreps())}
    return Case(lambda o3, nn: o3.TensorSquare(block, **options), rows_of("irreps_in"))


@st.composite
def linears(draw: Any) -> Case:
    first, second = (draw(random_irreps(1, 3, 2, MULTIPLICITIES)) for _ in range(2))
    second = [*second, *((draw(st.sampled_from(FEW)), ir) for _, ir in first if draw(flags()))]
    pairs = [(i, k) for i, (_, a) in enumerate(first) for k, (_, b) in enumerate(second) if a == b]
    axes = {"f_in": 2, "f_out": 3} if draw(flags()) else {}
    shared = draw(flags())
    options = {
        **axes,
        "shared_weights": shared,
        "instructions": [pair for pair in pairs if draw(flags())] if draw(flags()) else None,
        "path_normalization": draw(st.sampled_from(["element", "path"])),
    }
    # e3nn adds the bias of a block that nothing else leads to for one row alone, and takes none of rows.
    if shared and draw(flags()):
        used = pairs if options["instructions"] is None else options["instructions"]
        reached = {k for i, k in used if first[i].mul and second[k][0]}
        options["biases"] = [ir.is_scalar() and k in reached for k, (_, ir) in enumerate(second)]

    def shapes(layer, rows):
        sizes = tuple(axes.values())
        features = [(rows, *sizes[:1], layer.irreps_in.dim)]
        return features if shared else [*features, (rows, *sizes, layer.weight_numel)]

    return Case(lambda o3, nn: o3.Linear(str(first), o3.Irreps(str(o3.Irreps(second))), **options), shapes)


@st.composite
def norms(draw: Any) -> Case:
    block, squared = draw(irreps(l_max=5)), draw(flags())
    return Case(lambda o3, nn: o3.Norm(block, squared), rows_of("irreps_in"))


@st.composite
def harmonics(draw: Any) -> Case:
    degrees = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    options = draw(flags()), draw(st.sampled_from(["integral", "component", "norm"]))
    return Case(lambda o3, nn: o3.SphericalHarmonics(degrees, *options), rows_of("irreps_in"))


@st.composite
def reduced_products(draw: Any) -> Case:
    formula = draw(st.sampled_from(["i", "ij", "ij=ji", "ij=-ji", "ijk=jik=ikj", "ijk=jki"]))
    # a scalar and a vector: no symmetry leaves nothing of them, with which e3nn fails
    given = {"i": draw(st.sampled_from(["0e+1o", "0e+2x1o", "1o+1e+0e"]))}
    if formula == "ij":
        given["j"] = draw(irreps(1, 2, 2, FEW))
    return Case(
        lambda o3, nn: o3.ReducedTensorProducts(formula, **given),
        lambda layer, rows: [(rows, block.dim) for block in layer.irreps_in],
    )


@st.composite
def scalars(draw: Any) -> tuple[str, list[Any]]:
    """Scalars, and a function or None for each block."""
    blocks = draw(st.lists(st.tuples(st.sampled_from(SOME), st.sampled_from("eo")), max_size=3))
    acts = [draw(st.sampled_from((None, *(OF_EVEN if p == "e" else OF_ODD)))) for _, p in blocks]
    return "+".join(f"{mul}x0{p}" for mul, p in blocks), acts


@st.composite
def gates(draw: Any) -> Case:
    of_scalars, gated = draw(scalars()), draw(random_irreps(0, 2, 3, SOME))
    signs = [draw(st.sampled_from("eo")) for _ in gated]
    gate = "+".join(f"{mul}x0{p}" for (mul, _), p in zip(gated, signs, strict=True))
    acts = [draw(st.sampled_from(OF_EVEN if p == "e" else OF_ODD)) for p in signs]
    return Case(lambda o3, nn: nn.Gate(*of_scalars, gate, acts, str(gated)), rows_of("irreps_in"))


@st.composite
def activations(draw: Any) -> Case:
    block, acts = draw(scalars())
    higher = draw(irreps(1, 1, 2, FEW)) if block else "0e"
    whole = f"{block}+{higher}" if block else higher
    return Case(lambda o3, nn: nn.Activation(whole, [*acts, None]), rows_of("irreps_in"))


@st.composite
def norm_activations(draw: Any) -> Case:
    block, function = draw(irreps(1)), draw(st.sampled_from([SILU, torch.tanh, torch.sigmoid]))
    options = {"epsilon": draw(st.sampled_from([None, 1e-3])), "bias": draw(flags())}
    return Case(lambda o3, nn: nn.NormActivation(o3.Irreps(block), function, **options), rows_of("irreps_in"))


@st.composite
def batch_norms(draw: Any) -> Case:
    block, is_training = draw(irreps(1, multiplicities=FEW)), draw(flags())
    options = {
        "eps": draw(st.sampled_from([1e-5, 0.1])),
        "momentum": draw(st.sampled_from([0.1, 0.7])),
        "affine": draw(flags()),
        "reduce": draw(st.sampled_from(["mean", "max"])),
        "instance": draw(flags()),
        "include_bias": draw(flags()),
        "normalization": draw(st.sampled_from(["norm", "component"])),
    }
    return Case(
        lambda o3, nn: nn.BatchNorm(block, **options).train(is_training),
        lambda layer, rows: [(rows, 2, layer.irreps.dim)],
    )


@st.composite
def dropouts(draw: Any) -> Case:
    block, p, is_training = (
        draw(irreps(1, multiplicities=FEW)),
        draw(st.sampled_from([0.3, 0.8])),
        draw(flags()),
    )
    return Case(lambda o3, nn: nn.Dropout(block, p).train(is_training), rows_of("irreps"))


@st.composite
def extracts(draw: Any) -> Case:
    block = draw(random_irreps(1, 4, 3, FEW))
    taken = draw(st.lists(st.lists(st.integers(0, len(block) - 1), min_size=1), min_size=1, max_size=3))
    outputs = ["+".join(f"{block[i].mul}x{block[i].ir}" for i in one) for one in taken]
    return Case(
        lambda o3, nn: nn.Extract(str(block), outputs, [tuple(one) for one in taken]), _rows_in(block)
    )


@st.composite
def extracted_irreps(draw: Any) -> Case:
    block = draw(random_irreps(1, 4, 1, FEW))
    ir = str(draw(st.sampled_from(list(block))).ir)
    return Case(lambda o3, nn: nn.ExtractIr(str(block), ir), _rows_in(block))


def _rows_in(block: Any) -> Callable[[Any, int], list[tuple[int, ...]]]:
    return lambda layer, rows: [(rows, block.dim)]


@st.composite
def nets(draw: Any) -> Case:
    sizes = draw(st.lists(st.sampled_from([1, 2, 5]), min_size=2, max_size=4))
    options = {
        "act": draw(st.sampled_from([None, SILU, torch.tanh])),
        "variance_in": draw(st.sampled_from([1, 2.0])),
        "variance_out": draw(st.sampled_from([1, 0.5])),
        "out_act": draw(flags()),
    }
    return Case(lambda o3, nn: nn.FullyConnectedNet(sizes, **options), lambda layer, rows: [(rows, sizes[0])])


CASES = {
    "TensorProduct": tensor_products(),
    "FullyConnectedTensorProduct": fully_connected(),
    "FullTensorProduct": full_products(),
    "ElementwiseTensorProduct": elementwise_products(),
    "TensorSquare": tensor_squares(),
    "Linear": linears(),
    "Norm": norms(),
    "SphericalHarmonics": harmonics(),
    "ReducedTensorProducts": reduced_products(),
    "Gate": gates(),
    "Activation": activations(),
    "NormActivation": norm_activations(),
    "BatchNorm": batch_norms(),
    "Dropout": dropouts(),
    "Extract": extracts(),
    "ExtractIr": extracted_irreps(),
    "FullyConnectedNet": nets(),
}
# Which e3nn lacks.
OURS_ALONE = {"TensorProductConv", "SymmetricContraction"}


def test_every_layer_is_here():
    classes = {
        name
        for package in (o3, nn)
        for name in package.__all__
        if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), torch.nn.Module)
    }
    assert classes == CASES.keys() | OURS_ALONE


@pytest.mark.parametrize("name", CASES)
@given(data=st.data(), rows=st.integers(1, 3))
@settings(max_examples=8)
def test_layers(name, data, rows):
    torch.set_default_dtype(torch.float64)
    case = data.draw(CASES[name])
    ours, theirs = case.build(o3, nn), case.build(e3nn_o3, e3nn_nn)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    # No number near 0, where the derivatives of a norm lose digits.
    inputs = [x + 0.5 * x.sign() for x in map(torch.randn, case.shapes(ours, rows))]
    parameters = list(ours.parameters()), list(theirs.parameters())
    assert_same_function(_one_output(ours), _one_output(theirs), inputs, parameters, 1e-12)
    ours.load_state_dict(theirs.state_dict())
    for layer in (ours, theirs):
        _one_output(layer)(*inputs)
    kept = theirs.state_dict()
    for key, value in ours.state_dict().items():  # running means among them
        torch.testing.assert_close(value, kept[key], rtol=1e-12, atol=1e-12)


def _one_output(layer: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """The layer as a function with one result, and with the same random numbers at every call."""

    def call(*inputs):
        torch.manual_seed(1)
        out = layer(*inputs)
        return out if isinstance(out, torch.Tensor) else torch.cat(out, dim=-1)

    return call
