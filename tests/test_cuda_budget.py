"""What benchmarks/cuda reads from machine code, what its file holds, the table that is printed from both.

That the file is what the compiler makes of the sources is for `make check-cuda-budget`, which takes minutes.
"""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch

import emulation
from clebsch import Graph, ops

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed

from benchmarks.cuda import budget, roofline, sass  # noqa: E402
from benchmarks.cuda.devices import DEVICES  # noqa: E402
from benchmarks.cuda.second_cache import SecondCache  # noqa: E402

# A loop over .L_x_0 with one inside, over .L_x_1; what follows the jump at the end is padding.
CODE = """
\t.section\t.text._Z6kernelv,"ax",@progbits
.text._Z6kernelv:
_Z6kernelv:
        /*0000*/                   LDC.64 R2, c[0x0][0x210] ;
        /*0010*/               @P0 BRA `(.L_x_3) ;
.L_x_0:
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   DFMA R8, R8, R8, R8 ;
        /*0040*/                   FFMA R4, R4, R5, R6 ;
        /*0050*/                   FADD R4, R4, R5 ;
        /*0060*/                   STS.64 [R9], R4 ;
        /*0070*/              @!P1 BRA `(.L_x_2) ;
.L_x_1:
        /*0080*/                   LDG.E.U8 R4, desc[UR4][R2.64] ;
        /*0090*/                   FFMA2 R4, R4.F32x2.HI_LO, R6.F32x2.HI_LO, R8.F32x2.HI_LO ;
        /*00a0*/                   BRA.U UP0, `(.L_x_1) ;
.L_x_2:
        /*00b0*/                   FFMA R4, R4, R5, R6 ;
        /*00c0*/               @P2 BRA `(.L_x_0) ;
.L_x_3:
        /*00d0*/                   ST.E.64 desc[UR4][R2.64], R4 ;
        /*00e0*/                   STG.E desc[UR4][R2.64], R4 ;
        /*00f0*/                   EXIT ;
.L_x_4:
        /*0100*/                   BRA `(.L_x_4);
"""


def all_code(blocks):
    return [instruction for block in blocks for instruction in block.code]


def test_loops_are_told_apart():
    (blocks,) = sass.parse(CODE).values()
    assert sorted(len(body) for body in sass.loops(blocks)) == [1, 3]
    loop = sass.main_loop(blocks)
    assert [i.name for i in loop] == [
        *("LDG.E.128.CONSTANT", "DFMA", "FFMA", "FADD", "STS.64", "BRA"),
        *("FFMA", "BRA"),
    ]
    assert sass.fused(loop) == 3 and sass.fused_share(loop) == 0.75
    assert sass.bytes_per_fused(loop, sass.GLOBAL_LOADS) == round(16 / 3, 3)
    assert sass.bytes_per_fused(loop, sass.SHARED) == round(8 / 3, 3)


def test_accesses_are_counted_by_width():
    (blocks,) = sass.parse(CODE).values()
    code = all_code(blocks)
    assert sass.widths(code, sass.GLOBAL_LOADS) == {"1": 1, "16": 1}
    assert sass.widths(code, sass.GLOBAL_STORES) == {"4": 1, "8": 1}
    assert sass.fused(code) == 5


def test_what_ptxas_says_is_read():
    log = """ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
    keys = ("registers", "stack", "spill_stores", "spill_loads", "shared")
    assert dict(budget._needs(log)) == {
        "_Z1av": dict(zip(keys, (40, 8, 4, 12, 512))),
        "_Z1bv": dict(zip(keys, (32, 0, 0, 0, 0))),
    }


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [
        (32, 0, 128, (16, 16, 16)),  # warps
        (128, 0, 128, (4, 4, 4)),  # registers
        (129, 0, 128, (3, 3, 3)),  # in steps of 8 a thread
        (32, 96 << 10, 128, (1, 2, 2)),  # shared memory, and one KiB of the system's
        (16, 0, 32, (32, 32, 32)),  # blocks
    ],
)
def test_blocks_that_there_is_room_for(registers, shared, threads, blocks):
    assert tuple(device.resident_blocks(registers, shared, threads) for device in DEVICES) == blocks


def test_every_kernel_has_a_budget_without_spills():
    kernels = budget.read()["kernels"]
    sources = "".join(file.read_text() for file in budget.SOURCES.glob("*.cu"))
    names = re.findall(r"__global__ void(?: __launch_bounds__\(.*\))?\s+(\w+)\(", sources)
    assert len(names) >= 9 and len(names) == sources.count("__global__")
    assert {name.split("<")[0] for name in kernels} == set(names)
    assert budget.spills(kernels) == []
    architectures = {str(device.architecture) for device in DEVICES}
    assert all(set(of_architecture) == architectures for of_architecture in kernels.values())


def wide_accesses():
    """Kernels, bytes of an access, and how many loads and stores of just so many bytes there must be."""
    pairs = 26  # of degrees that products know, 25, and code for all others: each loads w and stores gw
    of_products = {"float, 4": 16, "float, 2": 8, "double, 2": 16, "Half, 4": 8, "BFloat16, 4": 8}
    for type_, width in of_products.items():
        for copies, tangent in enumerate(("false", "true"), 1):
            # Sums, of out and gx, are stored by code for either layout.
            yield f"channels_forward<{type_}, {tangent}>", width, copies * pairs, 2
            yield f"channels_backward<{type_}, {tangent}>", width, copies * pairs, pairs + 2
    degrees = 5  # of outputs that pairs fan out to
    for type_ in ("float", "double"):
        for tangent in ("false", "true"):
            yield f"rows_forward<{type_}, {tangent}>", 16, degrees, 0
            yield f"rows_backward<{type_}, {tangent}>", 16, degrees, degrees
        yield f"add_to_nodes<{type_}>", 16, 5, 1  # the sum, and the parts of four edges
    for type_ in ("Half", "BFloat16"):
        for tangent in ("false", "true"):
            yield f"rows_backward<{type_}, {tangent}>", 8, degrees, degrees
    for type_ in ("float", "double", "Half", "BFloat16"):
        for l_max in range(5):
            for derivative in (0, 2):
                yield f"unrolled_harmonics<{type_}, {l_max}, {derivative}>", 16, 0, 1
    for type_ in ("float", "double"):
        yield f"gate_forward<{type_}>", 16, 2, 2
        yield f"gate_backward<{type_}>", 16, 2, 1
        for derivative, (loads, stores) in enumerate([(1, 1), (2, 1), (3, 2)]):
            yield f"silu_numbers<{type_}, {derivative}>", 16, loads, stores


@pytest.mark.parametrize("architecture", [str(device.architecture) for device in DEVICES])
def test_packs_are_loaded_and_stored_whole(architecture):
    """The compiler may take a pack apart, and did so with all stores of gw, the largest stream that the
    backward of a product writes: four instructions for one, each with a quarter of the bytes. The budget only
    compares with an earlier compilation, where that may have been so already."""
    kernels = budget.read()["kernels"]
    for name, width, loads, stores in wide_accesses():
        numbers = kernels[name][architecture]
        assert numbers["loads"].get(str(width), 0) >= loads, name
        assert numbers["stores"].get(str(width), 0) >= stores, name


def test_what_became_worse_is_said():
    old = budget.read()["kernels"]
    assert budget.differences(old, old) == []
    name = "channels_forward<float, 4, false>"
    new = copy.deepcopy(old)
    new[name]["90"]["registers"] += 8
    new[name]["90"]["occupancy_by_registers"] -= 0.0625
    new[name]["80"]["loop_shared_bytes_per_fma"] /= 2
    new[name]["100"]["spill_stores"] = 4
    assert budget.spills(new) == [f"{name}, sm_100: spill_stores 4, must be 0"]
    del new["order_by_sender"]["80"]
    new["another"] = {"80": {}}
    told = [re.sub(r"[\d.]+ -> [\d.]+", "x -> y", line) for line in budget.differences(old, new)]
    assert told == [
        "another, sm_80: not in the file",
        f"{name}, sm_100: spill_stores x -> y, WORSE",
        f"{name}, sm_80: loop_shared_bytes_per_fma x -> y, better: the file is old",
        f"{name}, sm_90: occupancy_by_registers x -> y, WORSE",
        f"{name}, sm_90: registers x -> y, WORSE",
        "order_by_sender, sm_80: in the file only",
    ]


def test_a_compiler_may_choose_otherwise_now_and_then():
    """Once a compilation in CI had 804 bytes of shared memory for 800 in a loop of 540 multiply-adds. Ratios
    may differ by so much, no other number may."""
    old = budget.read()["kernels"]
    name = "channels_forward<float, 4, true>"
    kernel, key = f"{name}, sm_90: ", "loop_shared_bytes_per_fma"
    new = copy.deepcopy(old)
    before, numbers = old[name]["90"], new[name]["90"]
    for more, told in ((4, []), (-4, []), (16, ["WORSE"]), (-16, ["better: the file is old"])):
        numbers[key] = round(before[key] + more / 540, 3)
        assert numbers[key] != before[key]
        said = budget.differences(old, new)
        assert said == [f"{kernel}{key} {before[key]} -> {numbers[key]}, {verdict}" for verdict in told]
        numbers[key] = before[key]
    for key, value in before.items():
        if isinstance(value, dict):
            changed = {**value, "4": value["4"] + 1}
        else:
            changed = None if key in budget.RATIOS else value + 1
        numbers[key] = changed
        (said,) = budget.differences(old, new)
        assert said.startswith(f"{kernel}{key} {value} -> {changed}, ")
        numbers[key] = value


def test_the_table_is_up_to_date():
    assert roofline.DOCUMENT.read_text() == roofline.text(), "make cuda-budget"


@pytest.mark.skipif(not emulation.enabled(), reason="pytest --emulated")
@pytest.mark.parametrize("size", roofline.TYPES)
@pytest.mark.parametrize("name", [*roofline.MODELS, "DiffDock-L=2"])
def test_blocks_ask_for_the_shared_memory_of_the_table(name, size):
    """What bounds occupancy beside registers, for the plans of models: no budget has it."""
    dtype = {4: torch.float32, 8: torch.float64}[size]
    problem = roofline.Convolution(name, size) if name in roofline.MODELS else roofline.Dense(name, size)
    plan, graph = problem.plan, Graph(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    nodes, rest = (2, (graph, plan)) if name in roofline.MODELS else (3, (plan,))
    operator = ops.convolution if name in roofline.MODELS else ops.tensor_product
    shapes = ((nodes, plan.irreps_in1.dim), (3, plan.irreps_in2.dim), (3, plan.weight_numel))
    given = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    most = {step: max(shared for _, shared in problem.kernels(step)) for step in roofline.STEPS}
    emulation.shared_bytes_since()
    out = operator(*given, *rest)
    assert emulation.shared_bytes_since() == most["forward"]
    g = torch.ones_like(out).requires_grad_()
    grads = torch.autograd.grad(out, given, g, create_graph=True)
    assert emulation.shared_bytes_since() == most["backward"]
    torch.autograd.grad(grads, [*given, g], [torch.ones_like(grad) for grad in grads])
    assert emulation.shared_bytes_since() == most["double backward"]


@pytest.mark.skipif(not emulation.enabled(), reason="pytest --emulated")
@pytest.mark.parametrize("size", roofline.TYPES)
def test_harmonics_ask_for_the_shared_memory_of_the_table(size):
    ((_, shared),) = roofline.Harmonics(size).kernels("forward")
    emulation.shared_bytes_since()
    points = torch.randn(3, 3, dtype={4: torch.float32, 8: torch.float64}[size])
    ops.spherical_harmonics(points, [0, 1, 2, 3], True, "component")
    assert emulation.shared_bytes_since() == shared


def test_bounds_of_one_convolution():
    """MACE-medium, forward: 1,280 weights, 16 components of y, 512 of x, 5,120 of 40 edges' out; 88 cells."""
    work = roofline.Convolution("mace-medium", 4).work("forward")
    assert work.flops == 128 * (2 * 88 + 4 * 1 + 6 * 3)
    assert work.least == pytest.approx(4 * (1280 + 16 + 40 * 128 / 40 + 512 / 40) + 24)
    assert work.moved == pytest.approx(work.least + 4 * (512 - 512 / 40))
    balance = 19.5e12 / 2039e9  # of an A100
    share = roofline.attainable(work.least, work.flops, DEVICES[0], 4)
    assert share == pytest.approx(work.flops / work.least / balance)


def test_bounds_of_one_derivative():
    """The same, backward: w and gw, y and gy, x and gx. Rows of gx of all edges, 1.6 GB, come in two windows:
    a third of w is 1.4 GB."""
    work = roofline.Convolution("mace-medium", 4).work("backward")
    assert work.least == pytest.approx(4 * (2 * 1280 + 2 * 16 + 40 * 128 / 40 + 2 * 512 / 40) + 24)
    more = 512 - 512 / 40 + 2 * 512 + 2 * 512 / 40  # gathered, rows of gx, sums of the second window
    assert work.moved == pytest.approx(work.least + 4 * more)


def test_bytes_of_a_dense_product():
    """DiffDock's, forward: 48 scalars and 10 vectors of both parities by harmonics to degree 2, each once."""
    work = roofline.Dense("DiffDock-L=2", 4).work("forward")
    mul = {0: 48, 1: 10}
    # Of each parity of x; the output's follows.
    paths = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, 2, 1)]
    weights = 2 * sum(mul[l1] * mul[l3] for l1, _, l3 in paths)
    assert work.least == work.moved == 4 * (2 * 2 * (48 + 3 * 10) + 9 + weights)
    assert work.flops == 2 * 2 * sum(mul[l1] * mul[l3] * (2 * l3 + 1) for l1, _, l3 in paths)


def test_a_second_cache_drops_what_was_used_least_recently():
    """Beside a list of all that was touched, newest first; receivers are at work in threes."""
    senders = torch.randint(30, (17, 8), generator=torch.Generator().manual_seed(0))
    row, passing, capacity = 5, 2, 100
    newest: list[tuple[object, int]] = []
    found = 0
    for group in senders.split(3):
        for rank in group.T.tolist():
            for sender in rank:
                found += (sender, row) in newest
                newest = [(sender, row), *(entry for entry in newest if entry != (sender, row))]
            newest.insert(0, (object(), passing * len(rank)))
            while sum(size for _, size in newest) > capacity:
                newest.pop()
    assert 0 < found < senders.numel()
    assert SecondCache(capacity, 3).hits(senders, row, passing) == found / senders.numel()


def test_a_second_cache_that_is_large_gathers_each_row_once():
    senders = torch.arange(24).remainder(6).view(4, 6)
    assert SecondCache(10**6, 2).hits(senders, 8, 3) == 1 - 6 / 24
    assert SecondCache(8, 1).hits(senders, 8, 3) == 0
