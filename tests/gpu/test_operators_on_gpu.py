"""Every operator on a GPU against the CPU's, which the reference has judged; streams, graphs, determinism."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from clebsch import Graph, ops
from clebsch.algebra.plan import LAYOUTS, MODES
from clebsch.testing import RandomGraph
from product_calls import (
    PROMISED,
    EdgeProblem,
    Problem,
    channelwise_plan,
    dense_plan,
    mixed_plan,
    plan_of_mode,
    same_bits,
    wide_plan,
)

dtypes = pytest.mark.parametrize("dtype", PROMISED)
PLANS = {
    **{f"{mode} {layout}": plan_of_mode(mode, layout) for mode in MODES for layout in LAYOUTS},
    **{f"wide {mul} {layout}": wide_plan(mul, layout) for mul in (1, 17, 128) for layout in LAYOUTS},
    "dense": dense_plan(7, 3, 17),
    "mixed": mixed_plan(17),
    "high": channelwise_plan("16x5e", "1x4e+1x5o", 5, unweighted=1),
}


def graph(edges):
    generator = torch.Generator().manual_seed(edges)
    ends = torch.randint(50, (2, edges), generator=generator).numpy()
    return RandomGraph(ends[0], ends[1], 50)


def on_gpu(problem):
    """All results, on the CPU again."""
    cuda = [tuple(None if t is None else t.cuda() for t in ts) for ts in (problem.operands, problem.tangents)]
    moved = type(problem)(problem.plan, cuda[0], problem.grad.cuda(), cuda[1], problem.graph)
    if problem.graph is not None:
        ends = (torch.from_numpy(end).cuda() for end in (problem.graph.senders, problem.graph.receivers))
        moved.__dict__["order"] = torch.ops.clebsch.graph_order(*ends, problem.graph.num_nodes)
    return tuple(result.cpu() for result in moved.results())


@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("edges", [None, 0, 700])
@pytest.mark.parametrize("name", PLANS)
def test_products(name, edges, shared, dtype):
    rows = 40 if edges is None else graph(edges)
    problem = Problem.random(PLANS[name], rows, shared=shared, dtype=dtype)
    results = on_gpu(problem)
    problem.check(results)
    assert same_bits(results, on_gpu(problem)), "the same bits on every run"


@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("edges", [0, 700])
@pytest.mark.parametrize("name", PLANS)
def test_edge_products(name, edges, shared, dtype):
    problem = EdgeProblem.random(PLANS[name], graph(edges), shared=shared, dtype=dtype)
    results = on_gpu(problem)
    problem.check(results)
    assert same_bits(results, on_gpu(problem)), "the same bits on every run"


@dtypes
@pytest.mark.parametrize("ls", [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4], list(range(9)), [3, 1, 3]], ids=str)
def test_harmonics(ls, dtype):
    points = torch.randn(1001, 3, dtype=dtype)
    for normalize in (True, False):
        values = []
        for device in ("cpu", "cuda"):
            x = points.to(device).requires_grad_()
            y = ops.spherical_harmonics(x, ls, normalize, "component")
            (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), x)
            values.append([t.detach().cpu() for t in (y, first, second)])
        for a, b in zip(*values, strict=True):
            assert (a - b).norm() <= 100 * PROMISED[dtype] * a.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("edges", [None, 700])
@pytest.mark.parametrize("name", ["wide 17 ir_mul", "wide 128 mul_ir", "uvw mul_ir"])
def test_products_of_16_bits(name, edges, dtype):
    """What float32 gives for the same numbers, rounded once."""
    rows = 40 if edges is None else graph(edges)
    problems = [Problem.random(PLANS[name], rows, dtype=torch.float32).to(dtype)]
    if edges is not None:
        problems.append(EdgeProblem.random(PLANS[name], rows, dtype=torch.float32).to(dtype))
    for problem in problems:
        for short, long in zip(on_gpu(problem), on_gpu(problem.to(torch.float32)), strict=True):
            assert short.dtype == dtype
            assert ((short.float() - long).abs() <= torch.finfo(dtype).eps * (long.abs() + 1e-3)).all()


def test_current_stream_and_capture():
    """A captured step replays with new numbers; it ran on the stream that torch had chosen."""
    plan = wide_plan(32)
    ends = torch.randint(20, (2, 300), device="cuda")
    edges = Graph(ends[0], ends[1], 20)
    problem = Problem.random(plan, RandomGraph(ends[0].cpu().numpy(), ends[1].cpu().numpy(), 20))
    x, y, weight = (t.cuda() for t in problem.operands)
    expected = ops.convolution(x, y, weight, edges, plan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(ops.convolution(x, y, weight, edges, plan), expected)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = ops.convolution(x, y, weight, edges, plan)
    weight.mul_(2)
    captured.replay()
    torch.testing.assert_close(out, ops.convolution(x, y, weight, edges, plan))


def test_nothing_waits():
    plan = wide_plan(32)
    x, y, weight = (t.cuda() for t in Problem.random(plan, 100).operands)
    ops.tensor_product(x, y, weight, plan)  # the plan is copied at first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.tensor_product(x, y, weight, plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_operands_on_another_device():
    plan = wide_plan(32)
    x, y, weight = (t.to("cuda:1") for t in Problem.random(plan, 10).operands)
    out = ops.tensor_product(x, y, weight, plan)
    assert out.device == x.device
    torch.testing.assert_close(out.cpu(), ops.tensor_product(x.cpu(), y.cpu(), weight.cpu(), plan))
