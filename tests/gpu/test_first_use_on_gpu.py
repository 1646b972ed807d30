"""Tables are copied to a GPU at first use: into memory of no pool, and not while a graph is captured."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from device import only_there

from clebsch import ops

pytestmark = only_there


def call(number, points):
    """Of degrees that nothing else here has, if `number` is one that no other test takes."""
    return ops.spherical_harmonics(points, [1] * number, True, "norm")


def expected(number, points):
    return call(number, points.cpu())


def test_a_pool_of_the_program():
    points = torch.randn(5, 3, device="cuda")
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        out = call(41, points).cpu()
    torch.testing.assert_close(out, expected(41, points))
    blocks = [block for segment in pool.snapshot() for block in segment["blocks"]]
    assert blocks, "the result was there"
    assert not [block for block in blocks if block["state"] == "active_allocated"]


def test_graphs_of_the_compiler():
    """It warms up in a pool of its own, and refuses to go on where something stays in there."""
    pytest.importorskip("triton")
    points = torch.randn(5, 3, device="cuda", requires_grad=True)

    @torch.compile(mode="reduce-overhead")
    def compiled(points):
        return call(43, points).sin()

    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        out = compiled(points)
        (grad,) = torch.autograd.grad(out.sum(), points)
        host = points.detach().cpu().requires_grad_()
        torch.testing.assert_close(out.detach().cpu(), expected(43, host).sin().detach())
        torch.testing.assert_close(grad.cpu(), torch.autograd.grad(expected(43, host).sin().sum(), host)[0])
        del out, grad


def test_a_first_use_that_is_captured():
    points = torch.randn(5, 3, device="cuda")
    with pytest.raises(RuntimeError, match=r"^spherical_harmonics: the first use on a device copies tables"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            points + 1  # torch warns of graphs of nothing
            call(47, points)
    torch.testing.assert_close(call(47, points).cpu(), expected(47, points))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(47, points)
    points.mul_(-1)
    graph.replay()
    torch.testing.assert_close(out.cpu(), expected(47, points))
