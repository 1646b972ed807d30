"""Triton's kernels without a GPU: their source, what starts them, what they need of GPUs that are not here.

What they compute is tested in Triton's interpreter: ``pytest --interpreted`` (make test-interpreted).
"""

import ast
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import metadata
from random import Random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import clebsch
import triton_resources
from clebsch import Graph, backend, nn, o3, ops
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.triton import (
    autotune,
    launch,
    offline,
    spherical_harmonics,
    tensor_product,
    tensor_product_modes,
)
from clebsch.triton.schedule import Schedule, rule
from clebsch.triton.source import Source
from clebsch.triton.sums import sender_sums
from product_calls import plan_of_mode, wide_plan

pinned = re.search(r"TRITON := (\S+)", (triton_resources.FILE.parents[1] / "Makefile").read_text())[1]


def installed():
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


has_triton = pytest.mark.skipif(installed() is None, reason="no triton")
has_pinned = pytest.mark.skipif(installed() != pinned, reason=f"triton is not {pinned}")


# Source


def test_source_of_a_small_plan():
    plan = ProductPlan("3x0e", "1x1o", "3x1o", ((0, 0, 0, "uvu", True, 2.0),))
    (source,) = tensor_product.forward_sources(tensor_product.Call(str(plan), "float32", False, False))
    assert source.text == (
        """@triton.jit
def channels_forward_0(
    y,
    y_stride,
    x,
    x_stride,
    weight,
    weight_stride,
    out,
    out_stride,
    BLOCK: tl.constexpr,
):
    # forward of paths 0 of
    # (3x0e) * (1x1o) -> 3x1o
    # layout mul_ir, 1 paths, 3 weights
    owner = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = lane < 3
    out0_0 = tl.zeros((BLOCK,), tl.float32)
    out0_1 = tl.zeros((BLOCK,), tl.float32)
    out0_2 = tl.zeros((BLOCK,), tl.float32)
    y_0 = tl.load(y + owner * y_stride + 0)
    y_1 = tl.load(y + owner * y_stride + 1)
    y_2 = tl.load(y + owner * y_stride + 2)
    # path 0: 3x0e * 1x1o -> 3x1o, uvu
    x0_0 = tl.load(x + owner * x_stride + 0 + lane, mask=there, other=0.0)
    weight_u = tl.load(weight + owner * weight_stride + 0 + lane, mask=there, other=0.0)
    p_0 = weight_u * x0_0
    m_0_0 = 1.1547005383792515 * y_0
    m_0_1 = 1.1547005383792515 * y_1
    m_0_2 = 1.1547005383792515 * y_2
    out0_0 += m_0_0 * p_0
    out0_1 += m_0_1 * p_0
    out0_2 += m_0_2 * p_0
    tl.store(out + owner * out_stride + 0 + lane * 3, out0_0, mask=there)
    tl.store(out + owner * out_stride + 1 + lane * 3, out0_1, mask=there)
    tl.store(out + owner * out_stride + 2 + lane * 3, out0_2, mask=there)
"""
    )


def test_numbers_of_16_bits_are_computed_with_in_32():
    call = tensor_product.Call(str(wide_plan(3)), "bfloat16", True, False)
    for source in tensor_product.forward_sources(call):
        loads = [line for line in source.text.splitlines() if "tl.load(" in line]
        assert all(
            line.endswith(".to(tl.float32)") for line in loads if "order" not in line and "_list" not in line
        )


def test_coefficients_are_those_of_the_table():
    plan = wide_plan(3)
    call = tensor_product.Call(str(plan), "float64", False, False)
    text = "".join(source.text for source in tensor_product.forward_sources(call))
    printed = {abs(float(number)) for number in re.findall(r"\d\.\d+(?:e-\d+)?", text)}
    expected = {abs(path.coefficient * e.value) for path in plan.paths for e in plan.entries(path)}
    assert expected - {1.0} <= printed


def test_choices_have_all_digits():
    """Triton 3.7 rounds literals between which tl.where chooses to float32, whatever the other one is."""
    made = []
    for plan in map(plan_of_mode, MODES):
        made += tensor_product.sources(plan, "float64", graph=True, shared=True)
    for step in ("forward", "backward", "double_backward"):
        made += spherical_harmonics.sources("float64", (0, 1, 2, 3), True, "norm", step)
    literals = set()
    for source in made:
        for node in ast.walk(ast.parse(source.text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.where":
                literals |= {choice.value for choice in node.args[1:] if isinstance(choice, ast.Constant)}
    assert {0.0, 1.0, 2.0**-520} <= literals
    assert all(
        literal == 0 or math.frexp(literal)[0] == 0.5 for literal in literals if isinstance(literal, float)
    )


def test_explain_prints_the_source():
    layers = torch.nn.Sequential(
        o3.SphericalHarmonics("1x0e+1x1o", True),
        nn.TensorProductConv("4x0e+4x1o", "1x0e+1x1o", "4x0e+4x1o", [(0, 1, 1, "uvu", True)]),
        o3.FullyConnectedTensorProduct("2x0e", "2x1o", "2x1o"),
        o3.Linear("4x0e", "4x0e"),
    )
    explained = clebsch.explain(layers, measure=False, source=True)
    names = [list(entry.source or {}) for entry in explained]
    assert names == [
        [f"spherical_harmonics_{step}" for step in ("forward", "backward", "double_backward")],
        [
            *(f"channels_{step}_0" for step in ("forward", "backward", "tangent", "double_backward")),
            "sender_sums",
        ],
        [f"modes_{target}_{along}0" for along in ("", "tangent_") for target in ("out", "gx", "gy", "gw")],
        [],
    ]
    assert "def channels_backward_0(" in str(explained)
    assert all(entry.source is None for entry in clebsch.explain(layers, measure=False))


def test_rows_that_are_too_long():
    plan = ProductPlan("4096x0e", "512x0e", "1024x0e", ((0, 0, 0, "uvw", True, 1.0),))
    with pytest.raises(NotImplementedError) as error:
        tensor_product.sources(plan, graph=False, shared=True)
    assert str(error.value) == (
        "tensor_product: rows of 2147483648 numbers, and a Triton kernel takes at most 1073741824: the plan "
        "is too large for it. Split its blocks into plans of their own, or use tensors on the CPU"
    )


def test_paths_of_high_degrees_read_a_table():
    plan = ProductPlan("2x40e", "1x40e", "2x40e", ((0, 0, 0, "uvu", True, 2.0),))
    (source,) = tensor_product.forward_sources(tensor_product.Call(str(plan), "float64", False, False))
    entries = plan.entries(plan.paths[0])
    assert [len(met) for met in source.table] == [sum(e.m3 == m for e in entries) for m in range(81)]
    assert source.table[5] == tuple((e.m1, e.m2, 5, 2.0 * e.value) for e in entries if e.m3 == 5)
    assert source.lanes == 2 * 81 and source.text.count("\n") < 50
    for target in tensor_product_modes.TARGETS:
        call = tensor_product.Call(str(plan), "float32", True, False)
        assert all(one.table for one in tensor_product.target_sources(call, target))


def test_tables_are_kept(monkeypatch):
    table = (((0, 1, 0, 0.1),), (), ((1, 0, 2, 2.0), (2, 2, 2, 3.0)))
    found = launch._table(table, torch.device("cpu"), torch.float64)
    assert {name: part.tolist() for name, part in found.items()} == {
        "begins": [0, 1, 1, 3],
        "components": [[0, 1, 0], [1, 0, 2], [2, 2, 2]],
        "coefficients": [0.1, 2.0, 3.0],
    }
    assert launch._table(table, torch.device("cpu"), torch.float64) is found


@pytest.mark.parametrize("step", ["forward", "backward", "double_backward"])
@pytest.mark.parametrize("ls", [(0, 1, 2, 3), tuple(range(12)), (40,)], ids=len)
def test_harmonics_of_any_degree_in_short_kernels(ls, step):
    made = spherical_harmonics.sources("float32", ls, True, "component", step)
    assert [one.adds for one in made] == [i > 0 for i in range(len(made))]
    assert (len(made) == 1) == (len(ls) == 4 or (ls[-1] == 11 and step == "forward"))
    assert all(one.text.count("\n") < 900 for one in made)


@pytest.mark.parametrize("mode", ["uvw", "u<vw", "uvu"])
def test_every_mode_has_source(mode):
    made = tensor_product.sources(plan_of_mode(mode), graph=True, shared=True)
    targets = tuple(tensor_product_modes.TARGETS)
    assert [source.name for source in made] == [
        f"modes_{target}_{along}0" for along in ("", "tangent_") for target in targets
    ]


def is_long(node, long):
    """Whether an expression has 64 bits, where those of these names have."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
        return re.match(r"(order|\w+_list)\b", ast.unparse(node.args[0])) is not None
    if ast.unparse(node).endswith(".to(tl.int64)") or (isinstance(node, ast.Name) and node.id in long):
        return True
    return any(is_long(child, long) for child in ast.iter_child_nodes(node))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("plan", [wide_plan(3), *map(plan_of_mode, MODES)], ids=str)
def test_offsets_of_rows_have_64_bits(plan, graph):
    """In each product of a row and a distance one factor has; what runs so: test_triton_interpreted.py."""
    made = [sender_sums(plan, "float32")]
    for shared in (False, True):
        made += tensor_product.sources(plan, graph=graph, shared=shared)
    for step in ("forward", "backward", "double_backward"):
        made += spherical_harmonics.sources("float32", (0, 2), True, "component", step)
    for source in made:
        long, products = set(), 0
        for node in ast.walk(ast.parse(source.text)):
            if isinstance(node, ast.Assign) and is_long(node.value, long):
                long.add(node.targets[0].id)
            elif isinstance(node, ast.For) and is_long(node.iter, long):
                long.add(node.target.id)
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                for factor, distance in ((node.left, node.right), (node.right, node.left)):
                    if re.fullmatch(r"\w+_stride|nodes|edges|count|gy_piece", ast.unparse(distance)):
                        products += 1
                        assert is_long(factor, long), f"{ast.unparse(node)} in {source.text}"
        assert products > 0


def test_numbers_that_change_are_not_compiled_in():
    """Triton makes another kernel for a number that is 1 or a multiple of 16, in the middle of a run."""
    for source in tensor_product.sources(wide_plan(3), graph=True, shared=True):
        head = re.match(r"@triton\.jit\(do_not_specialize=(\[.*\])\)\n", source.text)[1]
        names = source.arguments
        rows = {name for name in names if name.endswith("_stride") or f"{name}_stride" in names}
        assert ast.literal_eval(head) == [name for name in names if name not in rows | {"order"}]


# The rule


@pytest.mark.parametrize(
    "lanes, values, common, wide, reduces, warp, expected",
    [
        (128, 17, 0, True, False, 32, Schedule(128, 1)),  # 4 lanes a thread
        (512, 17, 0, True, False, 32, Schedule(512, 4)),
        (128, 17, 156, True, False, 32, Schedule(128, 1)),
        (128, 17, 157, True, False, 32, Schedule(128, 2)),  # 2: 4 would be 225 numbers
        (128, 35, 100, True, False, 32, Schedule(128, 2)),
        (128, 36, 100, True, False, 32, Schedule(128, 2, True)),  # many
        (128, 113, 0, True, False, 32, Schedule(128, 4, True)),
        (128, 17, 300, True, False, 32, Schedule(128, 4)),
        (128, 17, 0, False, False, 32, Schedule(128, 4)),  # what lies in the lanes is apart in memory
        (126, 17, 0, True, False, 32, Schedule(128, 2)),  # not a multiple of 4
        (64, 17, 0, True, False, 32, Schedule(64, 1)),  # 2: with 4, half of the warp would have none
        (32, 17, 0, True, False, 32, Schedule(32, 1)),
        (64, 17, 0, True, False, 64, Schedule(64, 1)),
        (128, 17, 0, True, True, 32, Schedule(128, 1)),  # sums stay in a warp
        (128, 17, 0, False, True, 32, Schedule(32, 1)),
        (128, 17, 0, False, True, 64, Schedule(64, 1)),
        (5, 17, 0, False, False, 32, Schedule(32, 1)),
        (5, 17, 0, False, False, 64, Schedule(64, 1)),
        (0, 0, 0, False, False, 32, Schedule(128, 4)),  # rows in the lanes
        (0, 71, 0, False, False, 32, Schedule(128, 4, True)),
    ],
)
def test_rule(lanes, values, common, wide, reduces, warp, expected):
    source = Source("name", "", (), lanes, values, wide, reduces, common=common)
    assert rule(source, warp) == expected


def test_threads_that_keep_much_may_take_all_registers():
    """Of NVIDIA's: the compilers of others know no such limit."""
    few, all_registers = (Schedule(128, 4, asked).options for asked in (False, True))
    plain = {"num_warps": 4, "enable_fp_fusion": True}
    assert few(is_nvidia=True) == few(is_nvidia=False) == all_registers(is_nvidia=False) == plain
    assert all_registers(is_nvidia=True) == {**plain, "maxnreg": 255}


def test_forward_over_rows_takes_one_lane_where_it_stores_vectors():
    for layout, graph, wide in itertools.product(LAYOUTS, (False, True), (False, True)):
        out = "4x1o" if wide else "4x0e"
        plan = ProductPlan("4x0e", "1x1o" if wide else "1x0e", out, ((0, 0, 0, "uvu", True, 1.0),), layout)
        call = tensor_product.Call(str(plan), "float32", graph, False)
        assert [one.wide for one in tensor_product.forward_sources(call)] == [
            graph or layout == "ir_mul" or out == "4x0e"
        ]
        assert all(one.wide for one in tensor_product.together_sources(call, (True, True, True)))


# Schedules by trial


def test_trials_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "_known", {})
    source = Source("name", "text", (), 128, 40, True)
    tried = []

    def seconds(schedule):
        tried.append(schedule)
        return abs(schedule.num_warps - 4) + schedule.block / 1e4

    best = autotune.tuned(source, "device", 32, seconds)
    assert (
        tried == autotune.candidates(source, 32)
        and tried[0] == rule(source)
        and len(set(tried)) == len(tried)
    )
    assert best == min(tuple(tried), key=seconds) != rule(source)
    tried.clear()
    assert autotune.tuned(source, "device", 32, seconds) == best and not tried
    monkeypatch.setattr(autotune, "_known", {})  # another process
    assert autotune.tuned(source, "device", 32, seconds) == best and not tried
    autotune.tuned(source, "another device", 32, seconds)
    assert tried
    for text in ("", "[]", '{"x": {"block": 1}}'):  # a file that is none
        autotune.file().write_text(text)
        monkeypatch.setattr(autotune, "_known", {})
        assert autotune.tuned(source, "device", 32, seconds) == best


def test_what_is_not_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path))
    adds = Source("name", "text", (), 128, 40, True, adds=True)
    assert autotune.tuned(adds, "device", 32, lambda _: pytest.fail("run twice")) == rule(adds)
    reduces = Source("name", "text", (), 128, 40, True, reduces=True)
    assert {one.block for one in autotune.candidates(reduces, 32)} == {rule(reduces).block}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A file of schedules: puts an entry into it, which a process reads that knows nothing."""
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path))

    def keep(source, entry, **more):
        digest = hashlib.sha256(source.text.encode()).hexdigest()[:16]
        monkeypatch.setattr(autotune, "_known", {})
        autotune.file().write_text(json.dumps({f"device; {source.name}; {digest}": entry} | more))

    return keep


@pytest.mark.parametrize(
    "entry",
    [
        {"block": 16, "num_warps": 1, "all_registers": False},
        {"block": 64, "num_warps": 1, "all_registers": False},  # twice what the rule says: half the pieces
        {"block": "a", "num_warps": 1, "all_registers": False},
        {"block": 32, "num_warps": 1, "all_registers": False, "stages": 2},
        {"num_warps": 1},
        [],
        None,
    ],
    ids=str,
)
def test_what_is_kept_is_not_trusted(kept, entry):
    """Pieces of sums are counted by the rule: another block would write them out of bounds."""
    source = Source("name", "text", (), 128, 20, False, reduces=True)
    kept(source, entry, another={"stages": 2}, yet_another=5)
    found = autotune.tuned(source, "device", 32, lambda schedule: -schedule.num_warps)
    assert found == Schedule(32, 2) and found.block == rule(source).block
    after = json.loads(autotune.file().read_text())
    assert (after.pop("another"), after.pop("yet_another")) == ({"stages": 2}, 5)  # of somebody else
    assert list(after.values()) == [{"block": 32, "num_warps": 2, "all_registers": False}]
    kept(source, after.popitem()[1], another={"stages": 2})
    assert autotune.tuned(source, "device", 32, lambda _: pytest.fail("tried again")) == found


def test_trials_that_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "_known", {})
    source = Source("name", "text", (), 128, 20, False)

    def seconds(schedule):
        if schedule.num_warps > most:
            raise RuntimeError("out of resources")
        return -schedule.num_warps

    most = 0
    assert autotune.tuned(source, "device", 32, seconds) == rule(source)
    assert not autotune.file().exists()  # they may run another time
    most = 2
    assert autotune.tuned(source, "device", 32, seconds).num_warps == 2 < rule(source).num_warps


def test_threads_that_keep_trials_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path))
    texts = [{str(i): None for i in range(size)} for size in (1, 3000)]
    autotune._write(texts[0])
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(autotune._write, texts[i % 2]) for i in range(60)]
        while not all(write.done() for write in writes):
            assert json.loads(autotune.file().read_text()) in texts
    assert [write.result() for write in writes] == [None] * 60
    assert list(tmp_path.iterdir()) == [autotune.file()]


def test_trials_are_asked_for(monkeypatch):
    for value, expected in ((None, False), ("", False), ("0", False), ("1", True)):
        monkeypatch.delenv("CLEBSCH_TRITON_AUTOTUNE", raising=False)
        if value is not None:
            monkeypatch.setenv("CLEBSCH_TRITON_AUTOTUNE", value)
        assert autotune.enabled() is expected


# The choice of a backend


@pytest.fixture
def chosen_again():
    yield
    backend.select("auto")


def has_kernel(key):
    return torch._C._dispatch_has_kernel_for_dispatch_key("clebsch::convolution", key)


@has_triton
def test_triton_by_name(chosen_again):
    clebsch.backend("triton")
    assert backend.runs_triton()
    assert has_kernel("CUDA") and has_kernel("XPU")
    with FakeTensorMode():
        x, y = torch.empty(5, 12, device="cuda"), torch.empty(5, 9, device="cuda")
        out = ops.tensor_product(x, y, torch.empty(5, 15, device="cuda"), wide_plan(3))
        assert out.shape == (5, 27) and out.device.type == "cuda"
        half = [t.to(torch.bfloat16) for t in (x, y, torch.empty(5, 15, device="cuda"))]
        assert ops.tensor_product(*half, wide_plan(3)).dtype == torch.bfloat16


@has_triton
def test_operators_on_a_gpu_are_traced(chosen_again):
    """All of them, as compilers see them; torch's engine would need a GPU to differentiate."""
    clebsch.backend("triton")
    plan, call = wide_plan(3), torch.ops.clebsch

    def step(x, vectors, weight, senders, receivers, grad):
        fixed = [0, 1, 2], True, "component"
        y = call.spherical_harmonics(vectors, *fixed)
        order = call.graph_order(senders, receivers, x.shape[0])
        out = call.convolution(x, y, weight, order, str(plan))
        given = grad, x, y, weight, order, str(plan), -1
        gx, gy, gw = call.convolution_backward(*given)
        gg, *second = call.convolution_double_backward(gx, gy, None, *given)
        along = call.spherical_harmonics_backward(gy, vectors, *fixed)
        bent = call.spherical_harmonics_double_backward(along, gy, vectors, *fixed)
        return out, gx, gy, gw, gg, *second, along, *bent

    nodes, edges = 5, 7
    sizes = (nodes, plan.irreps_in1.dim), (edges, 3), (edges, plan.weight_numel), (nodes, plan.irreps_out.dim)
    with FakeTensorMode():
        x, vectors, weight, grad = (torch.empty(size, device="cuda:1") for size in sizes)
        ends = [torch.empty(edges, dtype=torch.int64, device="cuda:1") for _ in range(2)]
        traced = make_fx(step)(x, vectors, weight, *ends, grad)
        y = (edges, plan.irreps_in2.dim)
        out, *results = [node.meta["val"] for node in traced.graph.output_node().args[0]]
    shapes = [x.shape, y, weight.shape, grad.shape, x.shape, y, weight.shape, (edges, 3), y, (edges, 3)]
    assert out.shape == grad.shape and [tuple(result.shape) for result in results] == [
        tuple(s) for s in shapes
    ]
    assert {result.device for result in results} == {torch.device("cuda:1")}
    called = [node.target for node in traced.graph.nodes if str(node.target).startswith("clebsch.")]
    assert len(called) == len(set(called)) == 7


@has_triton
def test_layers_on_a_gpu_are_exported(chosen_again):
    clebsch.backend("triton")

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.harmonics = o3.SphericalHarmonics([0, 1, 2], True)
            self.convolution = nn.TensorProductConv(
                "4x0e+4x1o", "1x0e+1x1o+1x2e", "4x0e+4x1o", [(0, 1, 1, "uvu", True), (1, 1, 0, "uvu", True)]
            )

        def forward(self, x, vectors, weight, senders, receivers):
            y = self.harmonics(vectors)
            return self.convolution(x, y, weight, Graph(senders, receivers, x.shape[0]))

    edges, nodes = torch.export.Dim("edges"), torch.export.Dim("nodes")
    with FakeTensorMode():
        layer = Layer()
        sizes = (5, 16), (7, 3), (7, 8)
        given = [torch.empty(size, device="cuda") for size in sizes]
        given += [torch.empty(7, dtype=torch.int64, device="cuda") for _ in range(2)]
        shapes = ({0: nodes}, *[{0: edges}] * 4)
        exported = torch.export.export(layer, tuple(given), dynamic_shapes=shapes)
    called = [str(node.target) for node in exported.graph.nodes if str(node.target).startswith("clebsch.")]
    assert called == [
        f"clebsch.{noun}.default" for noun in ("spherical_harmonics", "graph_order", "convolution")
    ]


@pytest.fixture
def started(monkeypatch):
    """The grids of kernels, which do not run."""
    grids = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda **given: grids.append(grid)

    monkeypatch.setattr(launch, "_warp_of", lambda _: 32)
    monkeypatch.setattr(launch, "_on", lambda _: nullcontext())
    monkeypatch.setattr(launch, "compiled", lambda source: Kernel())
    return grids


def test_more_tiles_than_pieces_are_found_by(started):
    """gx and gw take another axis of the grid; gy would be wrong."""
    plan = ProductPlan("2097121x0e", "1x0e", "2097121x0e", ((0, 0, 0, "uvu", True, 1.0),))
    with FakeTensorMode():
        grad, x, weight = (torch.empty(2, 2097121, device="cuda") for _ in range(3))
        given = grad, x, torch.empty(2, 1, device="cuda"), weight, str(plan)
        tensor_product.tensor_product_backward(*given, 0b101)
        with pytest.raises(NotImplementedError) as error:
            tensor_product.tensor_product_backward(*given, 0b111)
    assert str(error.value) == (
        "tensor_product: the gradient of y takes 65536 tiles of channels, and a Triton kernel makes it of at "
        "most 65535: split the blocks of x into plans of their own, or use tensors on the CPU"
    )
    assert len(started) == 1


@pytest.mark.parametrize("device", ["cuda:1", "xpu:2"])
def test_kernels_start_on_the_device_of_their_operands(monkeypatch, device):
    """Triton would start them on the current one."""
    current, started = [], []

    @contextmanager
    def entered(which):
        current.append(which)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda **given: started.append((grid, tuple(current)))

    monkeypatch.setattr(getattr(torch, device[:-2]), "device", entered)
    monkeypatch.setattr(launch, "_warp_of", lambda _: 32)
    monkeypatch.setattr(launch, "compiled", lambda source: Kernel())
    plan = wide_plan(3)
    with FakeTensorMode():
        x, y, weight, grad = (
            torch.empty(5, columns, device=device)
            for columns in (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim)
        )
        tensor_product.tensor_product_backward(grad, x, y, weight, str(plan), -1)
        spherical_harmonics.spherical_harmonics(torch.empty(300, 3, device=device), [1], True, "norm")
    assert [grid for grid, _ in started] == [(5, 1, 1), (3, 1, 1)]
    assert {where for _, where in started} == {(torch.device(device),)} and not current


@has_triton
@pytest.mark.parametrize("device", ["cuda:1", "xpu:2"])
def test_trials_on_every_kind_of_gpu(monkeypatch, started, device):
    monkeypatch.setenv("CLEBSCH_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(getattr(torch, device[:-2]), "get_device_name", lambda which: f"name of {which}")
    asked = []

    def tuned(source, name, warp, seconds):
        asked.append((source.name, name))
        return rule(source, warp)

    monkeypatch.setattr(autotune, "tuned", tuned)
    with FakeTensorMode():
        spherical_harmonics.spherical_harmonics(torch.empty(300, 3, device=device), [1], True, "norm")
    assert asked == [("spherical_harmonics_forward", f"name of {device}")] and len(started) == 1


def test_errors_of_the_choice(chosen_again):
    with pytest.raises(ValueError) as error:
        clebsch.backend("cuda12")
    assert str(error.value) == "clebsch.backend: name must be 'auto', 'cuda' or 'triton', got 'cuda12'"
    missing = backend.backends()["cuda"]
    if missing.startswith("not built"):
        with pytest.raises(ImportError) as error:
            clebsch.backend("cuda")
        assert str(error.value) == f"clebsch.backend: the compiled kernels for GPUs are {missing}"


def python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
import clebsch
from clebsch import ops
ops.spherical_harmonics(torch.ones(2, 3), [0, 1], True, "component")
clebsch.explain(clebsch.o3.SphericalHarmonics("1x1o", True), measure=False, source=True)
try:
    clebsch.backend("triton")
except ImportError as error:
    print(error)
"""
    said = python(code)
    assert said.startswith("clebsch: no kernels for tensors on a GPU (")
    assert said.endswith(
        "Install 'clebsch[triton]' or, for NVIDIA's, build the compiled ones with CLEBSCH_CUDA=ON and nvcc; "
        "'clebsch info' says what there is"
    )


@has_triton
def test_triton_is_imported_when_used():
    code = "import sys, clebsch.ops, clebsch.triton.operators; print('triton' in sys.modules)"
    assert python(code) == "False"


# What kernels need of GPUs that are not here

TABLES = triton_resources.read()
NVIDIA = [target for target in offline.TARGETS if target.startswith("cuda")]
VERSIONS = {pinned: list(offline.TARGETS), "3.7.1": NVIDIA}
"""The second is what torch 2.13 brings for NVIDIA's."""
SHARED = {"cuda:80": 163 << 10, "cuda:90": 227 << 10, "cuda:100": 227 << 10}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_is_that_of_the_sources(version):
    """Without compiling: its hashes are those of the kernels that are made now, all of them."""
    expected = {}
    for model, _, source in triton_resources.kernels():
        for target in VERSIONS[version]:
            row = triton_resources.digest(source, target)
            expected[triton_resources.key(model, source, target)] = row
    assert {name: row["source"] for name, row in TABLES[version].items()} == expected, (
        f"compile again with Triton {version}: PYTHONPATH=python:tests python tests/triton_resources.py "
        + " ".join(VERSIONS[version])
    )


@pytest.mark.parametrize(
    "target, version", [(target, version) for version, targets in VERSIONS.items() for target in targets]
)
def test_spills_and_memory(target, version):
    rows = {name: row for name, row in TABLES[version].items() if name.endswith(f"; {target}")}
    assert len(rows) == len(list(triton_resources.kernels()))
    for name, row in rows.items():
        assert row["seconds"] < 10, name
        assert row["shared"] <= SHARED.get(target, 64 << 10), name
        assert row["spills"] == 0, name
        if target.startswith("cuda"):
            assert row["registers"] <= 255, name


@pytest.mark.parametrize("target", offline.TARGETS)
def test_wide_loads(target):
    """Where a thread has several lanes, what lies in the lanes one after another is loaded and stored as wide
    as they are, up to 16 bytes: weights, scalars and work space in either layout, all of ir_mul."""
    found = set()
    for model, dtype, source in triton_resources.kernels():
        schedule, bits = rule(source, offline.TARGETS[target][2]), torch.finfo(getattr(torch, dtype)).bits
        lanes = schedule.block // (schedule.num_warps * offline.TARGETS[target][2])
        if lanes == 1 or source.is_of_rows or not source.wide:
            continue
        name = triton_resources.key(model, source, target)
        row, least = TABLES[pinned][name], {"load": Counter(), "store": Counter()}
        for way, operand in re.findall(r"tl\.(load|store)\((\w+) \+ .* \+ lane, ", source.text):
            whole = lanes * (32 if offline.is_work_space(source, operand) and bits < 64 else bits)
            least[way][min(whole, 128)] += -(-whole // 128)
        for way, counts in least.items():
            for width, count in counts.items():
                assert row[f"{way}s"].get(str(width), 0) >= count, (name, way, width)
        found |= {(model, source.name, way, width) for way in least for width in least[way]}
    several = 128 if offline.TARGETS[target][2] == 32 else 64
    assert found >= {
        ("MACE-small", "channels_forward_0", "load", several),
        ("MACE-small", "channels_backward_0", "load", several),
        ("MACE-small", "channels_backward_0", "store", several),
        ("MACE-medium", "channels_forward_0", "load", 64),
        ("MACE-medium", "channels_backward_0", "store", 64),
        ("MACE-medium ir_mul", "channels_forward_0", "store", 64),
        ("MACE-medium ir_mul", "channels_double_backward_0", "load", 64),
        ("MACE-medium float16", "channels_forward_0", "load", 32),
        ("MACE-medium float64", "channels_backward_0", "load", 128),
        ("MACE-medium", "sender_sums", "load", 128),
    }


@pytest.mark.parametrize(
    "word, bits",
    [
        ("LDG.E", 32),
        ("LDG.E.CONSTANT", 32),
        ("LDG.E.U16.CONSTANT", 16),
        ("STG.E.U16", 16),
        ("LDG.E.S8", 8),
        ("LDG.E.64", 64),
        ("STG.E.128", 128),
        ("LDG.E.ENL2.256", 256),
        ("global_load_dword", 32),
        ("global_load_dwordx4", 128),
        ("global_load_ushort", 16),
        ("global_load_short_d16_hi", 16),
        ("global_store_short", 16),
        ("buffer_load_ubyte", 8),
        ("global_load_b32", 32),
        ("global_load_b128", 128),
        ("global_load_u16", 16),
        ("global_load_d16_b16", 16),
        ("global_load_d16_hi_b16", 16),
        ("global_store_b16", 16),
        ("global_store_d16_hi_b16", 16),
    ],
)
def test_widths_of_accesses(word, bits):
    assert (offline.nvidia_width if word.isupper() or "G." in word else offline.amd_width)(word) == bits


# What the page says

PAGE = (triton_resources.FILE.parents[1] / "docs/triton.md").read_text()


def rows_of(head):
    """The rows of the table with this head, as lists of cells."""
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_registers_on_the_page():
    steps = ("forward", "backward", "tangent", "double_backward")
    printed = rows_of("| sm_90 |")
    assert [model for model, *_ in printed] == [
        name for name in triton_resources.PLANS if "float16" not in name
    ]
    for model, *cells in printed:
        for step, cell in zip(steps, cells, strict=True):
            rows = {name: row for name, row in TABLES[pinned].items() if name.endswith("; cuda:90")}
            found = [
                rows[name]["registers"] for name in rows if name.startswith(f"{model}; channels_{step}_")
            ]
            assert cell == ", ".join(map(str, found)), (model, step)


def test_traffic_on_the_page():
    """Accesses and sectors of an edge by lanes of a thread; instructions where the rule has so many."""
    made = {(model, source.name): source for model, _, source in triton_resources.kernels()}
    printed = rows_of("| of an edge, sm_90 |")
    for title, *cells in printed:
        model, step = title.split(", ")
        source = made[model, f"channels_{step}_0"]
        chosen = rule(source).block // (32 * rule(source).num_warps)
        for lanes, cell in zip((1, 2, 4), cells, strict=True):
            if cell == "spills":
                assert lanes != chosen
                continue
            instructions, accesses, sectors = map(int, cell.split(" / "))
            assert (accesses, sectors) == triton_resources.traffic(source, lanes), (title, lanes)
            if lanes == chosen:
                loop = TABLES[pinned][triton_resources.key(model, source, "cuda:90")]["loop"]
                assert instructions == loop * source.lanes // (32 * lanes), title
    assert len(printed) == 4


compiles = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter does not compile")


@has_pinned
@compiles
@pytest.mark.parametrize(
    "model, name, target",
    [
        ("MACE-small", "channels_forward_0", "cuda:90"),
        ("MACE-small", "channels_backward_0", "cuda:80"),
        ("harmonics to l = 3", "spherical_harmonics_forward", "cuda:100"),
        ("MACE-medium", "sender_sums", "hip:gfx942"),
        ("MACE-medium bfloat16", "sender_sums", "hip:gfx1100"),
        ("DiffDock", "modes_gw_0", "cuda:90"),
    ],
)
def test_compiled_again(model, name, target):
    jobs = [kernel for kernel in triton_resources.kernels() if (kernel[0], kernel[2].name) == (model, name)]
    key, row = triton_resources.compile_kernel((*jobs[0], target))
    assert triton_resources.same(row) == triton_resources.same(TABLES[pinned][key])


def assert_compile(plan, targets=tuple(tensor_product_modes.TARGETS)):
    """Whatever a plan runs, the front end of the compiler takes: the interpreter takes more."""
    ways = itertools.product((False, True), ((None, True), ((True, True, True), False)))
    for graph, (tangents, shared) in ways:
        call = tensor_product.Call(str(plan), "float32", graph, shared, tangents)
        made = [source for target in targets for source in tensor_product.target_sources(call, target)]
        made += tensor_product.forward_sources(call)
        made += tensor_product.together_sources(call, (True, True, not shared))
        for source in dict.fromkeys(made):
            assert f"@{source.name}(" in offline.lower(source, "cuda:90"), source.text


@has_pinned
@compiles
@pytest.mark.parametrize("mode", MODES)
def test_modes_after_others_compile(mode):
    """Paths of two modes in one kernel, in both orders."""
    for other in MODES[MODES.index(mode) + 1 :]:
        paths = [(0, 0, int(each == "uvuv"), each, True, 1.0) for each in (mode, other, mode)]
        assert_compile(ProductPlan("3x0e", "3x0e", "3x0e+9x0e", tuple(paths)), ("out", "gx", "gy"))


@has_pinned
@compiles
@pytest.mark.parametrize("mode", MODES)
def test_paths_that_read_a_table_compile(monkeypatch, mode):
    monkeypatch.setattr(tensor_product_modes, "MOST_COEFFICIENTS", 0)
    plan = plan_of_mode(mode)
    for target, graph in itertools.product(tensor_product_modes.TARGETS, (False, True)):
        for tangents in (None, (True, True, True)):
            given = {"graph": graph, "shared": not graph, "tangents": tangents}
            for source in tensor_product_modes.contraction(plan, "bfloat16", target, **given):
                assert source.table and f"@{source.name}(" in offline.lower(source, "cuda:90", "bfloat16")


@has_pinned
@compiles
@pytest.mark.parametrize("out", [None, "4x0e+3x1e"])
def test_squares_compile(out):
    assert_compile(o3.TensorSquare("3x0e+2x1o", irreps_out=out).plan)


@has_pinned
@compiles
@pytest.mark.parametrize("seed", range(5))
def test_random_plans_compile(seed):
    """Several modes on the blocks of two degrees, in any order."""
    draw = Random(seed)
    paths = []
    for _ in range(6):
        mode, ls = draw.choice(MODES), draw.choices((0, 1), k=2)
        weighted = mode in ("uvw", "uuw", "u<vw") or draw.random() < 0.7
        paths.append((*ls, 2 * (sum(ls) % 2) + int(mode == "uvuv"), mode, weighted, draw.random()))
    out = "3x0e+9x0e+3x1o+9x1o"
    assert_compile(ProductPlan("3x0e+3x1o", "3x0e+3x1o", out, tuple(paths), draw.choice(LAYOUTS)))
