"""explain: counts equal to those by hand, the kernel that runs, the reasons word for word."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import e3nn.nn
import e3nn.o3
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clebsch
from clebsch import backend, machine, nn, o3, slow_paths
from clebsch.algebra.plan import ProductPlan
from clebsch.models import Potential
from clebsch.testing import random_plans
from clebsch.work import Work, harmonics_work, linear_work, product_work
from layer_samples import NET_CHANGED, changed_nets, names, sample
from product_calls import dense_plan, elementwise_plan, mixed_plan, wide_plan

SILU = torch.nn.functional.silu

MACE_MEDIUM = (
    "128x0e+128x1o",
    "1x0e+1x1o+1x2e+1x3o",
    "128x0e+128x0e+128x1o+128x1o+128x1o+128x2e+128x2e+128x2e+128x3o+128x3o",
    [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", True),
        (0, 1, 2, "uvu", True),
        (1, 0, 3, "uvu", True),
        (1, 2, 4, "uvu", True),
        (0, 2, 5, "uvu", True),
        (1, 1, 6, "uvu", True),
        (1, 3, 7, "uvu", True),
        (0, 3, 8, "uvu", True),
        (1, 2, 9, "uvu", True),
    ],
)
# Of those paths, in order: non-zero coupling coefficients, and the pairs (m1, m3) that they connect.
TERMS = (1, 3, 3, 3, 11, 5, 11, 21, 7, 21)
CELLS = (1, 3, 3, 3, 9, 5, 11, 15, 7, 19)
WEIGHTED = 4 * 1 + 6 * 3  # weight times x: four paths from scalars, six from vectors


def mace(layer=o3.TensorProduct):
    return layer(*MACE_MEDIUM, shared_weights=False)


def only(module, **options):
    """The one entry of a layer that stands alone."""
    (entry,) = clebsch.explain(module, measure=False, **options)
    return entry


# What a row costs


def test_products_of_mace_medium():
    forward, backward = only(mace()).passes
    assert (forward.name, backward.name) == ("forward", "backward")
    assert forward.flops == 2 * (sum(TERMS) + 128 * (sum(CELLS) + WEIGHTED)) == 25260
    assert backward.flops == 2 * (2 * sum(TERMS) + 128 * (2 * sum(CELLS) + 3 * WEIGHTED)) == 56152
    x, y, out, weight = 512, 16, 5120, 1280
    assert forward.bytes == 4 * (x + y + out + weight) == 27712
    assert backward.bytes == 4 * (out + 2 * (x + y + weight)) == 34944
    assert forward.intensity == 25260 / 27712


def test_edges_of_mace_medium():
    forward, backward = only(mace(nn.TensorProductConv)).passes
    assert (forward.flops, backward.flops) == (25260, 56152)
    # an edge reads y, weights, one index, and 1/40 of what its receiver and sender are
    assert forward.bytes == round(4 * (16 + 1280) + 8 + 4 * (512 + 5120) / 40) == 5755
    assert backward.bytes == round(4 * 2 * (16 + 1280) + 8 + 4 * (2 * 512 + 5120) / 40) == 10990
    forward, _ = only(mace(nn.TensorProductConv), edges_per_node=1).passes
    assert forward.bytes == 4 * (16 + 1280) + 8 + 4 * (512 + 5120)


def test_flops_are_those_of_the_benchmarks():
    from benchmarks.problems import MODELS, model, multiply_adds

    for name in MODELS:
        plan = ProductPlan.from_instructions(*model(name).arguments)
        assert product_work(plan, 4, shared=False)[0].flops == 2 * multiply_adds(model(name))


def test_float64_moves_twice_the_bytes():
    for single, double in zip(only(mace()).passes, only(mace().double()).passes, strict=True):
        assert (double.flops, double.bytes) == (single.flops, 2 * single.bytes)
    assert only(mace(), dtype=torch.float64).dtype == "float64"


# Multiply-adds forward and backward by hand; (1, 1, 0) has three terms on three cells, (1, 1, 2) eleven on
# eleven, (1, 1, 1) six on six.
@pytest.mark.parametrize(
    "in1, in2, out, mode, forward, backward",
    [
        # y meets C for 3 copies, 6 pairs of 3 cells, then 6 * 5 weights for a scalar
        ("2x1o", "3x1o", "5x0e", "uvw", 9 + 18 + 30, 2 * 9 + 3 * 18 + 2 * 30),
        # x meets the weights first: 8 * 1 * 2 of 3 components, and 2 outputs of 11 cells
        ("8x1o", "1x1o", "2x2e", "uvw", 11 + 16 * 3 + 2 * 11, 2 * 11 + 3 * 88 + 2 * 16 * 5),
        ("2x1o", "3x1o", "2x0e", "uvu", 9 + 6 * (3 + 3), 2 * 9 + 6 * (2 * 3 + 3 * 3)),
        ("2x1o", "3x1o", "3x0e", "uvv", 9 + 6 * (3 + 3), 2 * 9 + 6 * (2 * 3 + 3 * 3)),
        ("2x1o", "3x1o", "6x2e", "uvuv", 33 + 6 * (11 + 3), 2 * 33 + 6 * (2 * 11 + 3 * 3)),
        ("4x1o", "4x1o", "4x2e", "uuu", 4 * (2 * 11 + 3), 4 * (4 * 11 + 3 * 3)),
        ("4x1o", "4x1o", "5x0e", "uuw", 12 + 12 + 20, 2 * 12 + 3 * 12 + 2 * 20),
        ("4x1o", "4x1o", "6x1e", "uvu<v", 24 + 6 * (6 + 3), 2 * 24 + 6 * (2 * 6 + 3 * 3)),
        ("4x1o", "4x1o", "2x1e", "u<vw", 24 + 36 + 6 * 2 * 3, 2 * 24 + 3 * 36 + 2 * 36),
        ("4x1o", "0e", "4x1o", "uvu", 3 + 4 * (3 + 3), 2 * 3 + 4 * (2 * 3 + 3 * 3)),
    ],
)
def test_modes_by_hand(in1, in2, out, mode, forward, backward):
    plan = ProductPlan.from_instructions(in1, in2, out, [(0, 0, 0, mode, True)])
    dims = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.irreps_out.dim
    assert product_work(plan, 8, shared=False) == (
        Work(2 * forward, 8 * (sum(dims) + plan.weight_numel)),
        Work(2 * backward, 8 * (dims[2] + 2 * (dims[0] + dims[1] + plan.weight_numel))),
    )
    assert product_work(plan, 8, shared=True)[0].bytes == 8 * sum(dims)


# The same in multiply-adds, with weights for all rows.
@pytest.mark.parametrize(
    "in1, in2, out, meet, forward, backward",
    [
        ("8x1o", "8x1o", "8x0e", "pairs", 24 + 512 + 64 * 3, 2 * 24 + 2 * 512 + 3 * 64 * 3),
        ("9x0e", "8x1o", "8x1o", "x", 24 + 576 + 64 * 3, 2 * 24 + 3 * 576 + 2 * 64 * 3),
        ("8x1o", "9x0e", "8x1o", "y", 24 + 576 + 64 * 3, 2 * 24 + 3 * 576 + 2 * 64 * 3),
    ],
)
def test_orders_of_shared_weights_by_hand(in1, in2, out, meet, forward, backward):
    plan = ProductPlan.from_instructions(in1, in2, out, [(0, 0, 0, "uvw", True)])
    assert backend.describe_plan(plan)["paths"][0]["shared_weights_meet"] == (meet, meet)
    flops = [one.flops for one in product_work(plan, 8, shared=True)]
    assert flops == [2 * forward, 2 * backward]
    layer = only(o3.FullyConnectedTensorProduct(in1, in2, out))
    assert [one.kernel for one in layer.passes] == ["uvw", "uvw"]
    assert [one.flops for one in layer.passes] == flops
    layer = only(o3.FullyConnectedTensorProduct(in1, in2, out, shared_weights=False))
    assert [one.kernel for one in layer.passes] == ["dense", "dense"]


def test_orders_beyond_what_is_unrolled():
    high = ProductPlan.from_instructions("9x5e", "9x0e", "9x5e", [(0, 0, 0, "uvw", True)])
    assert slow_paths.kernels(high, shared=True) == ("dense", "dense")
    narrow = ProductPlan.from_instructions("5x1o", "7x0e", "3x1o", [(0, 0, 0, "uvw", True)])
    assert backend.describe_plan(narrow)["paths"][0]["shared_weights_meet"] == ("y", None)
    assert slow_paths.kernels(narrow, shared=True) == ("uvw", "dense")


def test_paths_without_weights_and_blocks_without_paths():
    instructions = [(1, 1, 0, "uvu", False), (0, 0, 2, "uvu", True)]
    plan = ProductPlan.from_instructions("0x0e+4x1o+9x2e", "0e+1o", "4x0e+7x3o+0x0e", instructions)
    forward, backward = product_work(plan, 4, shared=True)
    assert (forward.flops, backward.flops) == (2 * (3 + 4 * 3), 2 * (2 * 3 + 4 * 2 * 3))
    # the output is written whole, zeros included; 9x2e of x is read by nobody
    assert forward.bytes == 4 * (12 + 1 + 3 + 53)
    assert backward.bytes == 4 * (4 + 2 * (12 + 1 + 3))


def test_a_square_reads_its_operand_once():
    plan = ProductPlan.from_instructions("4x1o", "4x1o", "4x0e", [(0, 0, 0, "uuu", False)])
    forward, backward = product_work(plan, 4, shared=True, is_square=True)
    assert (forward.bytes, backward.bytes) == (4 * (12 + 4), 4 * (2 * 12 + 4))


def test_linear_and_net():
    forward, backward = only(o3.Linear("8x0e+4x1o+3x0e", "5x0e+6x1o")).passes
    multiply_adds = 8 * 5 + 4 * 6 * 3 + 3 * 5
    assert (forward.flops, backward.flops) == (2 * multiply_adds, 4 * multiply_adds)
    assert (forward.bytes, backward.bytes) == (4 * (23 + 23), 4 * (2 * 23 + 23))
    forward, _ = only(o3.Linear("8x0e", "5x0e", f_in=2, f_out=3)).passes
    assert (forward.flops, forward.bytes) == (2 * 6 * 40, 4 * (16 + 15))
    forward, _ = only(o3.Linear("8x0e", "5x0e", shared_weights=False)).passes
    assert forward.bytes == 4 * (8 + 5 + 40)
    forward, _ = only(nn.FullyConnectedNet([8, 64, 3], SILU)).passes
    assert (forward.flops, forward.bytes) == (2 * (8 * 64 + 64 * 3), 4 * (8 + 3))
    assert linear_work([], (0, 0), 0, 4) == (Work(0, 0), Work(0, 0))
    assert Work(0, 0).intensity is None


def test_harmonics():
    # t 2; c and s of m = 2 4; recurrence 2 for l = 1 and 2 + 5 for l = 2; 2 + 4 products; 8 to normalise
    assert harmonics_work([0, 1, 2], 4, normalize=True) == (Work(2 * (2 + 4 + 9 + 6 + 8), 48), Work(None, 60))
    assert harmonics_work([0], 4, normalize=True) == (Work(0, 16), Work(None, 28))
    assert harmonics_work([], 4, normalize=True) == (Work(0, 12), Work(None, 24))
    forward, backward = only(o3.SphericalHarmonics([0, 1, 2], True)).passes
    assert (forward.flops, forward.bytes, backward.flops, backward.bytes) == (58, 48, None, 60)


def test_symmetric_contractions():
    """Their operations for a channel are those that the kernel's head counts."""
    entry = only(nn.SymmetricContraction("8x0e+8x1o+8x2e+8x3o", "8x0e+8x1o", 3, num_elements=2))
    assert (entry.backend, entry.instruction_set) == ("cpu", backend.instruction_set())
    assert [one.kernel for one in entry.passes] == ["lanes are channels"] * 2
    assert [one.flops for one in entry.passes] == [2 * 8 * 978, 2 * 8 * (978 + 1538 - 57)]
    assert [one.bytes for one in entry.passes] == [4 * 8 * (16 + 4), 4 * 8 * (32 + 4)]


# By hand, of a row; functions themselves count nothing.
@pytest.mark.parametrize(
    "layer, forward, backward",
    [
        # 8 + 5 constants of functions, 15 products; the derivative of both, and 3 for each product
        (lambda: nn.Gate("8x0e", [SILU], "5x0e", [torch.sigmoid], "5x1o"), 13 + 15, 2 * 13 + 3 * 15),
        (lambda: nn.Gate("8x0e", [None], "", [], ""), 0, 0),
        (lambda: nn.Activation("8x0e+2x1o", [SILU, None]), 8, 16),
        # rows of uuu: 2 t for each copy, with t = 1 and 3 terms; relu and root of five norms
        (lambda: o3.Norm("2x0e+3x1o"), 2 * (2 * 2 * 1 + 3 * 2 * 3) + 10, 2 * (2 * 4 + 3 * 4 * 3) + 15),
        (lambda: o3.Norm("2x0e+3x1o", squared=True), 44, 88),
        # the same, a product of scalars with irreps (t = 3), and least norm, root, quotient
        (
            lambda: nn.NormActivation("2x0e+3x1o", SILU, bias=True),
            44 + 2 * (2 * 2 + 3 * 2 * 3) + 4 * 5,
            88 + 2 * (2 * 4 + 3 * 4 * 3) + 7 * 5,
        ),
        # two means and their subtraction, 11 squares added, 11 scales, two shifts
        (lambda: nn.BatchNorm("2x0e+3x1o"), 4 + 22 + 11 + 2, 33 + 22 + 4),
        (lambda: nn.BatchNorm("2x0e+3x1o", affine=False).eval(), 2 + 11, 11),
        (lambda: nn.Dropout("2x0e+3x1o", 0.5), 11, 11),
        (lambda: nn.Dropout("2x0e+3x1o", 0.5).eval(), 0, 0),
        (lambda: nn.Extract("2x0e+3x1o", ["3x1o", "2x0e"], [(1,), (0,)]), 0, 0),
    ],
)
def test_what_is_between_products_is_counted(layer, forward, backward):
    assert [one.flops for one in only(layer()).passes] == [forward, backward]


def test_bytes_of_layers_that_move():
    gate = only(nn.Gate("8x0e", [SILU], "5x0e", [torch.sigmoid], "5x1o"))
    assert [one.bytes for one in gate.passes] == [4 * (28 + 23), 4 * (28 + 23 + 28)]
    several = only(nn.Extract("2x0e+3x1o", ["3x1o", "2x0e"], [(1,), (0,)]))
    assert [one.bytes for one in several.passes] == [4 * (11 + 11), 4 * (11 + 11 + 11)]


# Which kernel


@pytest.mark.parametrize(
    "plan, kernels",
    [
        (wide_plan(128), ("channelwise", "channelwise")),
        (elementwise_plan(64), ("elementwise", "elementwise")),
        (mixed_plan(64), ("channelwise + elementwise", "channelwise + elementwise")),
        (dense_plan(17, 5, 31), ("dense", "dense")),
        (ProductPlan.from_instructions("3x1o", "5x1o", "15x2e", [(0, 0, 0, "uvuv", True)]), ("rows", "rows")),
        (
            ProductPlan.from_instructions(
                "3x1o", "5x1o", "15x2e+4x0e", [(0, 0, 0, "uvuv", True), (0, 0, 1, "uvw", True)]
            ),
            ("rows + dense", "rows + dense"),
        ),
        (ProductPlan("3x1o", "1o", "3x0e", ()), ("none", "none")),
    ],
)
def test_kernels(plan, kernels):
    assert slow_paths.kernels(plan) == kernels
    found = backend.describe_plan(plan)
    if plan.paths:
        lanes = ["channels" if "wise" in kernel else "rows" for kernel in kernels]
        assert [found["forward"], found["derivatives"]] == lanes


def test_what_runs_where():
    entry = only(mace())
    assert (entry.backend, entry.instruction_set) == ("cpu", backend.instruction_set())
    assert (entry.package, entry.layer, entry.name, entry.advice) == ("clebsch", "TensorProduct", "", None)
    assert entry.plan == str(mace().plan)
    assert [one.kernel for one in entry.passes] == ["channelwise", "channelwise"]
    assert only(nn.FullyConnectedNet([2, 3])).backend == "torch"
    assert only(nn.FullyConnectedNet([2, 3])).instruction_set is None


@pytest.mark.parametrize(
    "options, change, runs",
    [
        ({}, lambda layer: layer, "cpu"),
        ({"shared_weights": False}, lambda layer: layer.double(), "cpu"),
        ({}, lambda layer: layer.bfloat16(), "torch"),
        ({}, lambda layer: layer.to("meta"), "torch"),
        ({"f_in": 2, "f_out": 3}, lambda layer: layer, "torch"),
    ],
)
def test_linear_layers_that_torch_runs(options, change, runs):
    entry = only(change(o3.Linear("2x0e", "2x0e", **options)))
    assert (entry.backend, entry.instruction_set is None) == (runs, runs == "torch")
    said = (
        "operations of torch, a matrix product for each block of the output: kernels, where the device "
        "has any, take float32 and float64, without f_in, to degree 100 and 1048576 copies"
    )
    assert (said in entry.reasons) == (runs == "torch")
    assert not any("refused" in reason for reason in entry.reasons)


def test_linear_layers_of_e3nn_that_torch_runs():
    layers = [e3nn.o3.Linear("2x0e", "2x0e"), e3nn.o3.Linear("2x0e", "2x0e", f_in=2, f_out=3)]
    with clebsch.e3nn.enable():
        for layer, features in zip(layers, (torch.ones(1, 2), torch.ones(1, 2, 2)), strict=True):
            layer(features)
        assert [only(layer).backend for layer in layers] == ["cpu", "torch"]


def test_gates():
    arguments = "8x0e", [SILU], "5x0e", [torch.sigmoid], "5x1o"
    entry = only(nn.Gate(*arguments))
    assert (entry.backend, entry.instruction_set) == ("cpu", backend.instruction_set())
    assert [one.kernel for one in entry.passes] == ["gate + torch"] * 2
    assert entry.reasons == ("between its product and operations of torch, numbers go through memory",)
    for torchs, why in (
        (
            nn.Gate(*arguments).bfloat16(),
            "operations of torch, a product for each block: the kernel, if any, takes float32 and float64",
        ),
        (nn.Gate("8x0e", [SILU], "", [], ""), FUNCTIONS),
    ):
        entry = only(torchs)
        assert (entry.backend, entry.instruction_set, entry.reasons) == ("torch", None, (why,))
        assert [one.kernel for one in entry.passes] == ["torch"] * 2
    entry = only(nn.Gate(*arguments), dtype=torch.bfloat16)
    assert entry.backend == "torch"
    assert only(e3nn.nn.Gate(*arguments)).backend == "e3nn"


FUNCTIONS = "operations of torch: its functions are the caller's, and each is a pass through memory"
BATCH = "operations of torch: statistics of the whole batch come first, then a second pass scales it"


@pytest.mark.parametrize(
    "layer, reason",
    [
        (lambda: nn.Activation("2x0e", [SILU]), FUNCTIONS),
        (lambda: nn.BatchNorm("2x0e"), BATCH),
        (lambda: nn.BatchNorm("2x0e", reduce="max").eval(), BATCH),
        (
            lambda: nn.Dropout("2x0e", 0.5),
            "operations of torch: the random numbers are torch's, as e3nn draws them, and go through memory",
        ),
        (
            lambda: nn.Extract("2x0e", ["2x0e"], [(0,)]),
            "operations of torch: it copies blocks and computes nothing",
        ),
    ],
)
def test_layers_that_torch_runs_say_why(layer, reason):
    entry = only(layer())
    assert (entry.backend, entry.reasons) == ("torch", (reason,))
    assert [one.kernel for one in entry.passes] == ["torch"] * 2


def test_largest_squares_are_a_product():
    for layer in (
        nn.BatchNorm("4x1o", reduce="max"),
        nn.BatchNorm("4x1o", reduce="max", instance=True).eval(),
    ):
        entry = only(layer)
        assert (entry.backend, entry.reasons[0]) == ("cpu", BATCH)
        assert [one.kernel for one in entry.passes] == ["rows + torch"] * 2
    assert only(e3nn.nn.BatchNorm("4x1o", reduce="max")).backend == "e3nn"


def test_products_made_for_right_say_that_it_has_no_kernel():
    arguments = "2x1o", "1x1o", "2x0e"
    said = "right has no kernel: operations of torch, an einsum for each path and copies to join"
    assert said in only(o3.FullyConnectedTensorProduct(*arguments, compile_right=True)).reasons
    assert said not in only(o3.FullyConnectedTensorProduct(*arguments)).reasons


@pytest.mark.parametrize(
    "layer",
    [
        lambda: o3.FullyConnectedTensorProduct("2x1o", "2x1o", "2x0e"),
        lambda: nn.SymmetricContraction("4x0e+4x1o", "4x0e", 2, num_elements=2),
    ],
)
def test_a_device_without_kernels_runs_none(layer):
    entry = only(layer().to("meta"))
    assert (entry.backend, entry.instruction_set) == ("none", None)
    assert [one.kernel for one in entry.passes] == ["none"] * 2
    assert entry.reasons == ("it is on meta: kernels run on the CPU and on GPUs",)


@given(plan=random_plans(l_max=5), shared=st.booleans(), dtype=st.sampled_from(slow_paths.DTYPES))
@settings(max_examples=60)
def test_any_plan_can_be_explained(plan, shared, dtype):
    found = backend.describe_plan(plan)
    paths = slow_paths._paths(plan)
    assert len(paths) == len(found["paths"])
    if "channels" in (found["forward"], found["derivatives"]):
        assert all(slow_paths._suits_channels(plan, path) for path in paths)
    assert all(slow_paths.of_plan(plan, dtype, shared=shared))
    for work in product_work(plan, dtype.itemsize, shared=shared):
        assert (work.flops > 0) == (len(paths) > 0)
        assert work.bytes >= 0


def test_constants_are_those_of_the_kernels():
    csrc = Path(__file__).parents[1] / "csrc"
    text = (csrc / "plan.cpp").read_text() + (csrc / "program.h").read_text()
    for name, value in (
        ("kPadding", slow_paths.LINE),
        ("kWholeWeights", slow_paths.WHOLE_WEIGHTS),
        ("kChannelwiseMaxDegree", slow_paths.CHANNELWISE_MAX_DEGREE),
    ):
        assert re.search(rf"constexpr int {name} = (\d+);", text).group(1) == str(value)
    assert "p.out.mul >= kPadding / 2" in text and slow_paths.WIDE_OUTPUTS == slow_paths.LINE // 2


# Why it is slow, word for word


def reasons(plan, dtype=torch.float32, shared=False):
    return list(slow_paths.of_plan(plan, dtype, shared=shared))


def plan_of(in1, in2, out, *paths, layout="mul_ir"):
    return ProductPlan.from_instructions(in1, in2, out, paths, layout=layout)


MUL_IR = (
    "mul_ir: channels of degrees above 0 are transposed in registers, in and out, a few percent of the time; "
    "layout='ir_mul' needs none where multiplicities are multiples of 16"
)


def low(mul, layout="mul_ir"):
    """Scalars and vectors alone, which are unrolled everywhere."""
    paths = (0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 1, "uvu", True)
    irreps = f"{mul}x0e+{mul}x1o"
    return plan_of(irreps, "0e+1o", irreps, *paths, layout=layout)


def test_layout():
    assert reasons(low(128)) == [MUL_IR]
    assert reasons(low(128, "ir_mul")) == []
    assert reasons(low(120, "ir_mul")) == [
        "blocks of multiplicity 120 are padded to multiples of 16: the rest of the lanes computes nothing",
        "ir_mul: rows are copied to padded panels: not all multiplicities are multiples of 16",
    ]
    assert reasons(plan_of("128x0e", "0e", "128x0e", (0, 0, 0, "uvu", True))) == []


def test_degrees_that_are_not_unrolled():
    isa = backend.instruction_set()
    plan = plan_of(
        "128x0e+128x4e", "1x0e+1x4e", "128x0e+128x4e", (0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)
    )
    limit = slow_paths.unrolled_degrees("tensor_product", torch.float32)["channels"]
    assert limit < 4
    assert reasons(plan)[1:] == [
        f"1 of 2 paths is not unrolled: degrees (4, 4, 4) are above {limit}, the limit in float32 for {isa}"
    ]
    limit = slow_paths.unrolled_degrees("tensor_product", torch.float64)["channels"]
    assert limit < 3
    plan = ProductPlan.from_instructions(*MACE_MEDIUM)
    triples = [triple for triple in ((0, 3, 3), (1, 2, 3), (1, 3, 2)) if max(triple) > limit]
    if limit == 2:
        assert reasons(plan, torch.float64)[1:] == [
            f"3 of 10 paths are not unrolled: degrees {', '.join(map(str, triples))} are above 2, the limit "
            f"in float64 for {isa}"
        ]


def test_lanes_are_rows():
    narrow = plan_of("1x1o", "1o", "1x0e", (0, 0, 0, "uvu", True))
    found = backend.describe_plan(narrow)
    assert (found["forward"], found["derivatives"]) == ("rows", "rows")
    assert reasons(narrow) == [
        "lanes are rows: for blocks of multiplicity 1 that is less work than vectors of channels, padded; "
        "all operands are transposed"
    ]
    assert reasons(plan_of("3x1o", "5x1o", "15x2e", (0, 0, 0, "uvuv", True))) == [
        "lanes are rows: 1 of 1 path is uvuv, and the channelwise kernel takes uvu with one copy of y to "
        "degree 12 and uuu; all operands are transposed, and loops are general"
    ]
    several = plan_of(
        "32x1o+32x7o", "5x1o+1x7o", "32x2e+32x14e", (0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)
    )
    said = reasons(several)
    assert said[0] == (
        "lanes are rows: 2 of 2 paths are uvu to degree 14, uvu with 5 copies of y, and the channelwise "
        "kernel takes uvu with one copy of y to degree 12 and uuu; all operands are transposed, and loops "
        "are general"
    )
    limit = slow_paths.unrolled_degrees("tensor_product", torch.float32)["rows"]
    assert said[1:] == [
        f"forward, 1 of 2 paths runs general loops: with rows in the lanes degrees are constants to {limit}, "
        "and where weights are shared or at most 1024 a row"
    ]


def test_weights_of_rows_that_are_transposed():
    narrow = plan_of("64x0e", "8x0e", "4x0e+32x0e", (0, 0, 0, "uvw", True), (0, 0, 1, "uvw", True))
    assert reasons(narrow) == [
        "1 of 2 paths has 4 output channels, fewer than 8: the weights of each row are transposed before "
        "they are used"
    ]
    assert reasons(narrow, shared=True) == []
    one = plan_of("8x0e", "8x0e", "4x0e+8x0e", (0, 0, 0, "uvw", True), (0, 0, 1, "uvw", True))
    assert [reason.split(":")[0] for reason in reasons(one)] == [
        "1 of 2 paths has 4 output channels, fewer than 8",
        "a row has no more than 1024 weights, and not all paths are uvw, uuw or u<vw with 8 output channels",
    ]
    mixed = plan_of("8x0e", "2x0e", "8x0e+16x0e", (0, 0, 0, "uvw", True), (0, 0, 1, "uvuv", True))
    assert reasons(mixed)[-1] == (
        "a row has no more than 1024 weights, and not all paths are uvw, uuw or u<vw with 8 output channels: "
        "its weights are transposed for all paths"
    )


def test_nothing_to_do():
    assert reasons(plan_of("0x0e", "0e", "0x0e", (0, 0, 0, "uvu", True))) == [
        "no path has anything to do: the output is zero"
    ]


@pytest.fixture
def widest():
    """The widest instruction set is in use, whatever CLEBSCH_ISA says."""
    used = backend.instruction_set()
    backend.select_instruction_set(backend.usable_instruction_sets()[-1])
    yield backend.instruction_set()
    backend.select_instruction_set(used)


def test_machine_and_types(widest):
    cpu = torch.device("cpu")
    assert list(slow_paths.of_machine("tensor_product", torch.float32, torch.device("meta"))) == [
        "it is on meta: kernels run on the CPU and on GPUs"
    ]
    assert list(slow_paths.of_machine("tensor_product", torch.bfloat16, cpu)) == [
        "bfloat16 is refused by the kernels, which compute in float32 or float64"
    ]
    assert list(slow_paths.of_machine("tensor_product", torch.float64, cpu)) == [
        "float64: half as many numbers in a vector as float32, twice the bytes"
    ]
    backend.select_instruction_set("baseline")
    assert list(slow_paths.of_machine("tensor_product", torch.float32, cpu)) == [
        f"baseline is in use by CLEBSCH_ISA or select_instruction_set; this processor has {widest}"
    ] * (widest != "baseline")
    assert reasons(wide_plan(128), torch.bfloat16) == [MUL_IR]


def test_harmonics_and_linear():
    limit = slow_paths.unrolled_degrees("spherical_harmonics", torch.float32)["points"]
    assert list(slow_paths.of_harmonics(range(limit + 1), torch.float32)) == []
    assert list(slow_paths.of_harmonics(range(limit + 2), torch.float32)) == [
        f"not unrolled: degree {limit + 1} is above {limit}"
    ]
    assert list(slow_paths.of_harmonics([2, 1], torch.float32)) == [
        "degrees are not 0, 1, ..., l in order: general loops, and degrees between are computed too"
    ]
    irreps = o3.Irreps("2x0e+3x1o")
    assert list(slow_paths.of_linear(irreps, shared=True, is_compiled=True)) == []
    assert list(slow_paths.of_linear(irreps, shared=False, is_compiled=False)) == [
        "operations of torch, a matrix product for each block of the output: kernels, where the device "
        "has any, take float32 and float64, without f_in, to degree 100 and 1048576 copies",
        "mul_ir: blocks of degrees above 0 are copied, components out of the way, and copied back",
        "weights of each row: two operations for each number read at degree 0",
    ]


# The tree of modules


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = o3.Linear("4x0e", "4x0e")
        self.again = self.first
        self.other = torch.nn.Linear(2, 2)
        self.parts = torch.nn.ModuleList([nn.Gate("4x0e", [SILU], "", [], ""), torch.nn.ReLU()])


def test_qualified_names_each_object_once():
    found = clebsch.explain(torch.nn.Sequential(Block(), o3.SphericalHarmonics(2, True)), measure=False)
    assert [(entry.name, entry.layer) for entry in found] == [
        ("0.first", "Linear"),
        ("0.parts.0", "Gate"),
        ("1", "SphericalHarmonics"),
    ]
    assert len(found) == 3 and found[0].layer == "Linear" and len(found[:2]) == 2


@pytest.mark.parametrize("name", sorted(names()))
def test_every_layer_is_explained(name):
    found = clebsch.explain(sample(name), measure=False)
    assert len(found) >= 1
    assert all(entry.package == "clebsch" and entry.advice is None for entry in found)
    assert name in str(found) or len(found[0].name) > 0
    json.dumps(found.as_json())


def test_unknown_layers_of_ours_are_looked_into():
    class Unknown(torch.nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

    Unknown.__module__ = "clebsch.nn.unknown"
    assert [e.name for e in clebsch.explain(Unknown(o3.Linear("0e", "0e")), measure=False)] == ["parts.0"]
    entry = only(Unknown())
    assert (entry.layer, entry.backend, entry.passes) == ("Unknown", "torch", ())


def test_a_model():
    model = Potential.__new__(Potential)
    torch.nn.Module.__init__(model)
    model.net = nn.FullyConnectedNet([2, 3])
    assert [entry.name for entry in clebsch.explain(model, measure=False)] == ["net"]


def test_subclasses_are_known_and_what_they_override_is_said():
    class Mine(o3.Linear):
        pass

    class Other(o3.Linear):
        def forward(self, x):
            return x

    assert only(Mine("2x0e", "2x0e")).layer == "Mine"
    assert only(Mine("2x0e", "2x0e")).passes[0].flops == 8
    said = "its class overrides the forward of Linear: what that does is not seen here"
    assert said not in only(Mine("2x0e", "2x0e")).reasons
    assert said in only(Other("2x0e", "2x0e")).reasons


# e3nn's modules


def test_layers_of_e3nn():
    model = torch.nn.ModuleDict(
        {
            "product": e3nn.o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e"),
            "linear": e3nn.o3.Linear("8x0e", "5x0e"),
            "gate": e3nn.nn.Gate("8x0e", [SILU], "5x0e", [torch.sigmoid], "5x1o"),
            "identity": e3nn.nn.Identity("2x0e", "2x0e"),
        }
    )
    found = {entry.name: entry for entry in clebsch.explain(model, measure=False)}
    assert list(found) == ["product", "linear", "gate", "identity"]
    assert {entry.package for entry in found.values()} == {"e3nn"} == {e.backend for e in found.values()}
    assert found["product"].advice == "clebsch.o3.FullyConnectedTensorProduct takes its place"
    assert found["linear"].advice == "clebsch.o3.Linear takes its place"
    assert found["gate"].advice == "clebsch.nn.Gate takes its place"
    assert found["identity"].advice == "left to e3nn: not hot, clebsch has no such layer"
    forward, _ = found["product"].passes
    ours, _ = only(o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e")).passes
    assert (forward.flops, forward.bytes, forward.kernel) == (ours.flops, ours.bytes, "e3nn's code")
    assert found["linear"].passes[0].flops == 2 * 40
    assert found["product"].instruction_set is None
    assert found["product"].reasons == ()


@pytest.mark.parametrize("enabled", [False, True])
def test_a_layer_that_has_the_name_of_a_product(enabled):
    arguments = "2x0e+3x1o", "1x0e+2x1o"
    layer, ours = e3nn.o3.FullTensorProductv2(*arguments), o3.FullTensorProduct(*arguments)
    x, y = torch.randn(3, 11), torch.randn(3, 7)
    with clebsch.e3nn.enable() if enabled else contextlib.nullcontext():
        torch.testing.assert_close(ours(x, y), layer(x, y))  # so the advice is right
        entry = only(layer)
    assert (entry.layer, entry.backend, entry.reasons) == ("FullTensorProduct", "e3nn", ())
    assert entry.advice == "clebsch.o3.FullTensorProduct takes its place"
    assert clebsch.check(layer).layers[0].not_checked == (
        "e3nn's FullTensorProduct has no definition here to compare with"
    )


def test_what_torchscript_recorded():
    said = ("TorchScript runs what it recorded of this layer: its calls are not seen here",)
    recorded = torch.jit.script(torch.nn.Sequential(e3nn.o3.Linear("2x0e", "2x0e"), torch.nn.ReLU()))
    entry = only(recorded)
    assert (entry.name, entry.layer, entry.package, entry.backend) == ("0", "Linear", "e3nn", "e3nn")
    assert entry.reasons == said
    entry = only(torch.jit.trace(o3.Linear("2x0e", "2x0e"), (torch.ones(1, 2),)))
    assert (entry.layer, entry.package, entry.backend, entry.reasons) == ("Linear", "clebsch", "torch", said)


def test_linear_layers_of_e3nn_whose_axes_do_not_show():
    entry = only(e3nn.o3.Linear("2x0e", "2x0e", f_in=2, f_out=2, internal_weights=False))
    assert (entry.backend, entry.passes) == ("e3nn", ())
    assert entry.reasons == (
        "its operations and bytes are not counted: whether it has f_in and f_out does not show",
    )


class Seam:
    """In the place of `clebsch.e3nn`."""

    on = True

    def is_enabled(self, module=None):
        return self.on


@pytest.fixture
def seam(monkeypatch):
    monkeypatch.setitem(sys.modules, "clebsch.e3nn", Seam())
    return sys.modules["clebsch.e3nn"]


def test_what_the_seam_says(seam):
    product = e3nn.o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e")
    product._clebsch_reason = "float16 is not supported"
    entry = only(product)
    assert entry.reasons == ("left to e3nn: float16 is not supported",)
    assert entry.advice == "clebsch.o3.FullyConnectedTensorProduct takes its place"
    product._clebsch_reason = None
    product._clebsch_plan = str(o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e").plan)
    entry = only(product)
    assert (entry.backend, entry.package, entry.advice) == ("cpu", "e3nn", None)
    assert entry.instruction_set == backend.instruction_set()
    assert [one.kernel for one in entry.passes] == ["uvw", "uvw"]
    assert entry.plan == product._clebsch_plan
    linear = e3nn.o3.Linear("8x0e", "5x0e")
    linear._clebsch_plan = linear._clebsch_reason = None
    assert only(linear).advice is None and only(linear).passes[0].kernel == "matrix products"


def test_the_seam_is_asked_whether_it_is_on(seam, monkeypatch):
    product = e3nn.o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e")
    assert only(product).reasons == ("clebsch.e3nn is enabled: what runs this layer shows when it has run",)
    assert only(e3nn.nn.BatchNorm("2x0e")).reasons == ()
    product._clebsch_plan = str(o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e").plan)
    product._clebsch_reason = None
    assert only(product).backend == "cpu"
    seam.on = False
    assert only(product).backend == "e3nn"
    product._clebsch_reason = "autocast is on"
    assert only(product).reasons == ()
    seam.on, product._clebsch_reason = True, None
    monkeypatch.delitem(sys.modules, "clebsch.e3nn")  # marks from a pickle, and nobody has imported it
    assert only(product).backend == "e3nn"


def test_layers_of_e3nn_that_are_not_as_expected():
    product = e3nn.o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e")
    product.instructions = [(0, 0)]
    entry = only(product)
    assert entry.passes == () and entry.backend == "e3nn"
    assert entry.reasons[0].startswith("cannot be described: ")


def test_parts_of_e3nns_layers_that_run_here_are_shown(seam):
    gate = e3nn.nn.Gate("8x0e", [SILU], "5x0e", [torch.sigmoid], "5x1o")
    plan = ProductPlan.from_instructions("5x1o", "5x0e", "5x1o", [(0, 0, 0, "uuu", False)])
    gate.mul._clebsch_plan = str(plan)
    found = clebsch.explain(gate, measure=False)
    assert [(entry.name, entry.backend) for entry in found] == [("", "e3nn"), ("mul", "cpu")]


# Limits of the machine


@pytest.fixture
def known_machine(monkeypatch):
    """One that reads 10 GB/s and multiplies matrices at 100 Gflop/s."""
    limits = machine.Limits(1e10, 1e11, "float32")
    monkeypatch.setattr(machine, "measure", lambda dtype: limits)
    return limits


def test_the_limit_that_binds(known_machine):
    (entry,) = clebsch.explain(mace())
    forward = entry.passes[0]
    assert forward.limit == "memory"
    assert forward.least_seconds == 27712 / 1e10
    assert forward.share_of_arithmetic == pytest.approx((25260 / 1e11) / (27712 / 1e10))
    (entry,) = clebsch.explain(o3.Linear("128x0e", "128x0e"))
    forward = entry.passes[0]
    assert (forward.limit, forward.least_seconds) == ("arithmetic", 2 * 128**2 / 1e11)
    assert forward.share_of_arithmetic == 1
    assert (forward.seconds, forward.reached) == (None, None)
    (entry,) = clebsch.explain(o3.SphericalHarmonics([1], True))
    assert entry.passes[1].limit == "memory" and entry.passes[1].share_of_arithmetic is None


def test_measured_once(monkeypatch):
    machine._read_rate.cache_clear()
    machine._product_rate.cache_clear()
    calls = []
    monkeypatch.setattr(machine, "_quickest", lambda call: calls.append(call()) or 0.25)
    monkeypatch.setattr(machine, "BUFFER", 1 << 10)
    monkeypatch.setattr(machine, "SIDE", 8)
    try:
        limits = machine.measure()
        assert limits == machine.Limits(4 * (1 << 10) / 0.25, 2 * 8**3 / 0.25, "float32")
        assert machine.measure() == limits and len(calls) == 4
        assert machine.measure(torch.float64).dtype == "float64" and len(calls) == 5
    finally:
        machine._read_rate.cache_clear()
        machine._product_rate.cache_clear()


def test_a_real_measurement():
    found = clebsch.explain(mace())
    (limits,) = found.limits
    assert limits.bytes_per_second > 1e8 and limits.flops_per_second > 1e8
    assert found[0].passes[0].limit in ("memory", "arithmetic")


def test_nothing_is_measured_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda dtype: pytest.fail("measured"))
    assert only(mace()).passes[0].limit is None
    assert clebsch.explain(torch.nn.Linear(1, 1)).limits == ()
    assert clebsch.explain(mace(), dtype=torch.bfloat16).limits == ()


def test_timing(known_machine):
    for layer in (mace(nn.TensorProductConv), o3.Linear("4x0e", "4x0e"), nn.FullyConnectedNet([2, 2])):
        (entry,) = clebsch.explain(layer, rows=7)
        forward, backward = entry.passes
        assert forward.seconds > 0 and backward.seconds is None
        assert forward.reached == forward.least_seconds / forward.seconds
    (entry,) = clebsch.explain(o3.Linear("4x0e", "4x0e"), rows=7, measure=False)
    assert entry.passes[0].seconds > 0 and entry.passes[0].reached is None
    (entry,) = clebsch.explain(e3nn.nn.Identity("3x0e", "3x0e"), rows=7)
    assert entry.reasons == ("not timed: e3nn's Identity has no definition here to compare with",)
    for net in changed_nets():
        (entry,) = clebsch.explain(net, rows=7)
        assert entry.reasons[-1] == f"not timed: {NET_CHANGED}"
    (entry,) = clebsch.explain(mace(), rows=7, dtype=torch.bfloat16)
    assert entry.reasons[-1] == (
        "not timed: TypeError: tensor_product: x must be float32 or float64, got bfloat16"
    )


# The table


def test_the_text(known_machine, widest):
    model = torch.nn.ModuleDict(
        {
            "conv": nn.TensorProductConv(*MACE_MEDIUM, layout="ir_mul"),
            "norm": e3nn.nn.Identity("3x0e", "3x0e"),
            "net": nn.Activation("", []),
        }
    )
    lines = str(clebsch.explain(model)).splitlines()
    facts = machine.describe()
    assert lines[:7] == [
        f"clebsch {clebsch.__version__}, torch {torch.__version__}, {facts['processor']}, {widest}, "
        f"threads: {torch.get_num_threads()}",
        "measured limits: reads 10 GB/s, multiplies matrices in float32 at 100 Gflop/s",
        "            kernel        flops   bytes  flops/byte  limit    at best  share",
        "-" * len("            kernel        flops   bytes  flops/byte  limit    at best  share"),
        f"conv: TensorProductConv (float32, cpu {widest})",
        "  forward   channelwise  25.3 k  5.75 k        4.39  memory    576 ns   44 %",
        "  backward  channelwise  56.2 k    11 k        5.11  memory  1,099 ns   51 %",
    ]
    assert "norm: e3nn Identity (float32, e3nn)" in lines
    assert "  + left to e3nn: not hot, clebsch has no such layer" in lines
    assert repr(clebsch.explain(model)) == "\n".join(lines)


def test_long_reasons_are_wrapped():
    lines = str(clebsch.explain(mace(), measure=False)).splitlines()
    assert all(len(line) <= 110 for line in lines)
    first = next(i for i, line in enumerate(lines) if line.startswith("  - mul_ir: "))
    assert lines[first + 1].startswith("    ") and (lines[first] + lines[first + 1][3:])[4:] == MUL_IR


def test_no_layers():
    text = str(clebsch.explain(torch.nn.Sequential(torch.nn.ReLU()), measure=False))
    assert text.splitlines()[1:] == ["no layer of clebsch or e3nn in Sequential"]


def test_as_json():
    content = json.loads(json.dumps(clebsch.explain(mace(), measure=False).as_json()))
    assert content["subject"] == "TensorProduct"
    assert content["entries"][0]["passes"][0]["flops"] == 25260
    assert only(mace()).as_json()["layer"] == "TensorProduct"


# Calling it


@pytest.mark.parametrize(
    "statements",
    [
        "import clebsch; explain, check = clebsch.explain, clebsch.check",
        "import clebsch.explain, clebsch.check; explain, check = clebsch.explain, clebsch.check",
        "from clebsch import explain, check; import clebsch.explain, clebsch.check",
        "from clebsch.explain import explain; from clebsch.check import check",
    ],
)
def test_the_functions_are_called_like_their_modules(statements):
    program = (
        f"{statements}\nimport inspect\nfrom clebsch import o3\nlayer = o3.Linear('0e', '0e')\n"
        "explain(layer, measure=False); assert check(layer).passed\n"
        "print(*(list(inspect.signature(f).parameters)[0] for f in (explain, check)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("module module\n", "")


def test_nothing_changes():
    layer = mace()
    layer.double()
    before, state = {k: v.clone() for k, v in layer.state_dict().items()}, torch.get_rng_state()
    layer.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    clebsch.explain(layer, rows=3, measure=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ((42,), TypeError, "explain: module must be a torch.nn.Module, got int"),
        ((o3.Linear,), TypeError, "explain: module must be a torch.nn.Module, got type"),
    ],
)
def test_bad_modules(arguments, kind, message):
    with pytest.raises(kind) as error:
        clebsch.explain(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"rows": 0}, ValueError, "explain: rows must be an integer >= 1, got 0"),
        ({"rows": True}, ValueError, "explain: rows must be an integer >= 1, got True"),
        ({"rows": 2.0}, ValueError, "explain: rows must be an integer >= 1, got 2.0"),
        ({"dtype": "f4"}, TypeError, "explain: dtype must be a floating point torch.dtype, got 'f4'"),
        (
            {"dtype": torch.int64},
            TypeError,
            "explain: dtype must be a floating point torch.dtype, got torch.int64",
        ),
        ({"edges_per_node": 0}, ValueError, "explain: edges_per_node must be > 0, got 0"),
    ],
)
def test_bad_arguments(options, kind, message):
    with pytest.raises(kind) as error:
        clebsch.explain(o3.Linear("0e", "0e"), **options)
    assert str(error.value) == message
