"""Every operator on a GPU against the reference: operands anywhere in memory, streams, graphs, sizes."""

import pytest
import torch
from device import DEVICE, DRY, beside, captured, here, only_there, there
from operators import CALLS, NARROW, PROBLEMS, PRODUCTS, given_of, given_to, random_graph

import emulation
import test_one_hot
from clebsch import Graph, ops
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import poison, relative_error
from product_calls import (
    PROMISED,
    EdgeProblem,
    Problem,
    channelwise_plan,
    dense_plan,
    mixed_plan,
    plan_of_mode,
    same_bits,
    views,
    wide_plan,
)

dtypes = pytest.mark.parametrize("dtype", PROMISED)
every_operator = pytest.mark.parametrize("name", CALLS)


def arranged(name, dtype=torch.float32):
    """An operator with all its derivatives, and operands of it on the device."""
    call = CALLS[name](dtype)
    return call, [there(tensor) for tensor in call.given]


# Numbers


@dtypes
@every_operator
def test_equals_the_reference(name, dtype):
    call, given = arranged(name, dtype)
    results = here(call.run(*given))
    call.check(results)
    assert same_bits(results, here(call.run(*given))), "the same bits on every run"


PLANS = {
    **{f"{mode} {layout}": plan_of_mode(mode, layout) for mode in MODES for layout in LAYOUTS},
    **{f"wide {mul} {layout}": wide_plan(mul, layout) for mul in (1, 17, 128) for layout in LAYOUTS},
    "dense": dense_plan(7, 3, 17),
    "mixed": mixed_plan(17),
    "high": channelwise_plan("16x5e", "1x4e+1x5o", 5, unweighted=1),
}


@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("edges", [None, 0, 13 if DRY else 700])
@pytest.mark.parametrize("name", PLANS)
def test_products(name, edges, shared, dtype):
    kinds = [Problem] if edges is None else [Problem, EdgeProblem]
    for kind in kinds:
        rows = (5 if DRY else 40) if edges is None else random_graph(50, edges)
        problem = kind.random(PLANS[name], rows, shared=shared, dtype=dtype)
        problem.check(here(given_to(problem, [there(tensor) for tensor in problem.given]).results()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NARROW)
def test_numbers_of_16_bits(name, dtype):
    """What float32 gives for the same numbers, rounded once."""
    call, given = arranged(name)
    short = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in given]
    long = [tensor.float() if tensor.is_floating_point() else tensor for tensor in short]
    for rounded, exact in zip(here(call.run(*short)), here(call.run(*long)), strict=True):
        assert rounded.dtype == dtype
        assert ((rounded.float() - exact).abs() <= torch.finfo(dtype).eps * (exact.abs() + 1e-3)).all()


@dtypes
def test_one_hot_rows(dtype):
    find = torch.ops.clebsch.one_hot_index
    for elements in (1, 4, 89):
        y = test_one_hot.rows_of(elements, 200).to(dtype)
        assert torch.equal(find(there(y)).cpu(), y.argmax(1))
        y[130, 0] = 0.5
        assert find(there(y)).shape == (0,)


# How it is called


def misaligned(tensor):
    """A copy one number after where 16 bytes are aligned."""
    longer = tensor.new_zeros(tensor.numel() + 1)
    longer = poison(longer) if tensor.is_floating_point() else longer
    return longer[1:].view(tensor.shape).copy_(tensor)


@every_operator
def test_operands_anywhere_in_memory(name):
    call, given = arranged(name)
    expected = here(call.run(*given))
    for i, tensor in enumerate(call.given):
        kinds = [*views(tensor)] if tensor.is_floating_point() else []
        for kind, view in [*kinds, ("misaligned", misaligned(tensor))]:
            if view.is_neg():
                continue
            moved = [*given[:i], there(view), *given[i + 1 :]]
            assert same_bits(here(call.run(*moved)), expected), (i, kind)
    moved = [there(misaligned(tensor)) for tensor in call.given]
    assert same_bits(here(call.run(*moved)), expected)


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_subset_of_gradients(name):
    problem = PROBLEMS[name](torch.float32)
    problem = given_to(problem, [there(tensor) for tensor in given_of(problem)])
    for function in (problem.backward, problem.double_backward):
        everything = here(function())
        for needs in range(2 ** len(everything)):
            for i, (some, whole) in enumerate(zip(here(function(needs)), everything, strict=True)):
                if needs >> i & 1:
                    assert same_bits((some,), (whole,)), (needs, i)
                else:
                    assert some.shape == (0,) and some.dtype == whole.dtype


@dtypes
@pytest.mark.parametrize("count", [1, 3000, 20_000])
@pytest.mark.parametrize("name", PRODUCTS)
def test_windows(name, count, dtype):
    """Sums, and radial weights, in work space for some positions at a time."""
    call, given = arranged(name, dtype)
    with emulation.workspace(count):
        call.check(here(call.run(*given)))


# Streams, graphs, devices


@every_operator
def test_another_stream(name):
    call, given = arranged(name)
    expected = here(call.run(*given))
    with beside():
        found = call.run(*given)
    assert same_bits(here(found), expected)


@every_operator
def test_captured(name):
    """Forward, backward and double backward in a CUDA graph, replayed with other numbers."""
    call, given = arranged(name)
    found, replay = captured(lambda: call.run(*given))
    for tensor in given:
        if tensor.is_floating_point():
            tensor.mul_(1.25)
    replay()
    assert same_bits(here(found), here(call.run(*given)))


@only_there
@every_operator
def test_nothing_waits(name):
    call, given = arranged(name)
    call.run(*given)  # plans are copied at first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.run(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_operator
def test_a_device_that_is_not_the_current_one(name):
    call, given = arranged(name)
    assert torch.cuda.current_device() == 0
    found = call.run(*(tensor.to("cuda:1") for tensor in given))
    assert {result.device.index for result in found} == {1}
    assert same_bits(here(found), here(call.run(*given)))


# Sizes


@only_there
@pytest.mark.parametrize("rows", [9_001, 70_001])
def test_gradients_of_weights_that_many_rows_share(rows):
    """A block adds up several rows of them: as much as of parts of the rows, which are too few for that."""
    problem = Problem.random(dense_plan(7, 3, 17), rows, shared=True, dtype=torch.float64)
    x, y, weight = (there(tensor) for tensor in problem.operands)

    def gradient(first, last):
        shared = weight.detach().clone().requires_grad_()
        out = ops.tensor_product(x[first:last], y[first:last], shared, problem.plan)
        return torch.autograd.grad(out, shared, torch.ones_like(out))[0]

    parts = [gradient(first, min(first + 2_000, rows)) for first in range(0, rows, 2_000)]
    torch.testing.assert_close(gradient(0, rows), sum(parts), rtol=1e-11, atol=1e-9)


PLAN_OF_SCALARS = {mode: f"1x0e*1x0e->1x0e;mul_ir;0 0 0 {mode} w 1.0" for mode in ("uvu", "uvw")}


@pytest.mark.parametrize("mode", PLAN_OF_SCALARS)
@pytest.mark.parametrize("kind", ["rows", "rows, shared", "receivers", "edges"])
def test_more_tasks_than_blocks(kind, mode):
    """A grid has 2^20 blocks at most."""
    rows, plan = 2003 if DRY else 2**20 + 3, ProductPlan.parse(PLAN_OF_SCALARS[mode])
    ends = torch.randperm(rows).to(DEVICE)
    x, y, g = (torch.rand(rows, 1, dtype=torch.float64, device=DEVICE).requires_grad_() for _ in range(3))
    weight = torch.rand(rows, 1, dtype=torch.float64, device=DEVICE)
    weight = (weight[0] if kind == "rows, shared" else weight).requires_grad_()
    if kind.startswith("rows"):
        out, x_of_row = ops.tensor_product(x, y, weight, plan), x
    elif kind == "edges":
        out, x_of_row = ops.convolution(x, y, weight, Graph(ends, ends.flip(0), rows), plan), x[ends]
        out = out[ends.flip(0)]
    else:
        out, x_of_row = ops.edge_product(x, y, weight, Graph(ends, ends, rows), plan), x
    expected = x_of_row * (y[ends] if kind == "receivers" else y) * weight
    found = out, *torch.autograd.grad(out, (x, y, weight), g)
    for a, b in zip(found, (expected, *torch.autograd.grad(expected, (x, y, weight), g)), strict=True):
        assert relative_error(a.detach().cpu(), b.detach().cpu().numpy()) <= PROMISED[torch.float64]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", ["1024x0e*1x0e->1024x0e;mul_ir;0 0 0 uvu - 1.0", "1x0e*1024x0e->1024x0e;mul_ir;0 0 0 uvv - 1.0"]
)
def test_more_numbers_than_32_bits_count(plan):
    """More than 2^31 elements of an operand, of the output and of a gradient."""
    needed = 50 << 30
    if not DRY and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs a GPU with {needed >> 30} GiB free")
    rows, plan = 3 if DRY else 2**21 + 3, ProductPlan.parse(plan)
    x, y = (
        torch.randint(-4, 5, (rows, irreps.dim), dtype=torch.int8, device=DEVICE).half()
        for irreps in (plan.irreps_in1, plan.irreps_in2)
    )
    weight = x.new_empty(0)
    out = ops.tensor_product(x, y, weight, plan)
    assert torch.equal(out, x * y)
    fixed = str(plan), 0b11
    grads = torch.ops.clebsch.tensor_product_backward(out, x, y, weight, *fixed)
    del out
    for grad, other, of in ((grads[0], y, x), (grads[1], x, y)):
        for part in (slice(0, 100), slice(-100, None)):
            expected = (x[part] * y[part]).float() * other[part].float()
            expected = expected.sum(1, keepdim=True) if of.shape[1] == 1 else expected
            assert torch.equal(grad[part], expected.half())


@pytest.mark.slow
def test_more_numbers_than_32_bits_count_elementwise():
    needed = 20 << 30
    if not DRY and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs a GPU with {needed >> 30} GiB free")
    x = torch.randn(1000 if DRY else 2**31 + 1000, device=DEVICE)
    y = ops.silu(x)
    for part in (slice(0, 1000), slice(-1000, None)):
        torch.testing.assert_close(y[part], torch.nn.functional.silu(x[part]))
