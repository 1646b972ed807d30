"""The operators of linear layers, and their derivatives, against the reference. The layer itself:
test_linear_layer.py."""

import concurrent.futures
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import emulation
import sizes
from clebsch import o3, ops
from clebsch.algebra.plan import LAYOUTS, ProductPlan
from clebsch.testing import random_linear_plans, relative_error
from linear_calls import LINEAR_RESULTS, LinearProblem, mixing_plan, with_elements
from product_calls import broadcast, instruction_sets, poisoned_memory, same_bits, views

# Around the 6 or 8 rows of a block of sums, the 48 of a tile or a piece, the 256 of a chunk of gradients.
ROWS = (0, 1, 5, 7, 48, 49, 300, 600)
layouts = pytest.mark.parametrize("layout", LAYOUTS)

SMALL = mixing_plan("2x0e+3x1o+2x1o", "3x0e+2x1o+1x0e")


# Against the reference


@settings(max_examples=100, derandomize=True)
@given(
    random_linear_plans(multiplicities=(0, 1, 5, 17, 65, 100)),
    st.sampled_from(ROWS),
    st.booleans(),
    st.integers(0, 2**20),
)
@example((ProductPlan("", "1x0e", "", ()), ()), 7, False, 0)
@example((ProductPlan("3x0e", "1x0e", "", ()), ()), 7, False, 0)
@example((ProductPlan("", "1x0e", "3x0e+2x1o", (), "ir_mul"), (0,)), 7, True, 0)
def test_random_plans(plan_and_biased, rows, bias_per_row, seed):
    plan, biased = plan_and_biased
    LinearProblem.random(plan, rows, biased, bias_per_row=bias_per_row, seed=seed).check_everywhere()


@settings(max_examples=60, derandomize=True)
@given(random_linear_plans(l_max=3), st.sampled_from((1, 7, 13, 60)), st.booleans(), st.integers(0, 2**20))
def test_random_plans_of_few_rows(plan_and_biased, rows, bias_per_row, seed):
    plan, biased = plan_and_biased
    LinearProblem.random(plan, rows, biased, bias_per_row=bias_per_row, seed=seed).check_everywhere()


# Every number of vectors in a panel, whole and not, and several panels, in all instruction sets.
WIDTHS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 96, 97, 113, 128, 129)


@layouts
@pytest.mark.parametrize("l", [0, 1, 2])
@pytest.mark.parametrize("mul", WIDTHS)
def test_widths(mul, l, layout):
    plan = mixing_plan(f"{mul}x{l}e", f"3x{l}e+{mul}x{l}e+1x{l}e", layout)
    LinearProblem.random(plan, 11, (1,) if l == 0 else (), seed=mul).check_everywhere()


# Degrees that turn with code of their own, those that do not, and one beyond the compiled table.
@layouts
@pytest.mark.parametrize("l", [3, 4, 5, 6, 7, 8, 12])
def test_degrees(l, layout):
    plan = mixing_plan(f"17x{l}e+5x{l}e", f"2x0e+19x{l}e+65x{l}e", layout)
    LinearProblem.random(plan, 9, (0,), seed=l).check_everywhere()


@layouts
def test_degree_beyond_a_tile(layout):
    """Gradients of weights take 256 rows times components at a time: fewer than two rows of degree 70."""
    LinearProblem.random(mixing_plan("3x70e", "2x70e", layout), 3).check_everywhere()


@layouts
@pytest.mark.parametrize("bias_per_row", [False, True])
def test_several_paths_into_a_block_and_blocks_without_paths(bias_per_row, layout):
    plan = mixing_plan("5x0e+7x1o+17x0e+3x2e+0x0e+9x1o", "4x3o+33x0e+0x0e+8x1o+6x0e+2x1e+5x0o", layout)
    assert [path.i_out for path in plan.paths].count(1) == 3
    problem = LinearProblem.random(plan, 49, (4, 6, 2, 1), bias_per_row=bias_per_row)
    problem.check_everywhere()
    with poisoned_memory():
        out, grad_x, _ = problem.results()
    slices = plan.irreps_out.slices()
    assert (out[:, slices[0]] == 0).all() and (out[:, slices[5]] == 0).all()
    assert (grad_x[:, plan.irreps_in1.slices()[3]] == 0).all()
    # a bias alone is copied: biases lie in the order of `biased`
    own = problem.bias[..., 6:11].expand(49, 5)
    assert torch.equal(out[:, slices[6]], own)


def test_a_path_given_twice_and_one_that_vanishes():
    paths = [(0, 0, 0, "uvw", True, 0.5), (0, 0, 0, "uvw", True, -1.5), (0, 0, 1, "uvw", True, 0.0)]
    plan = ProductPlan("17x1o", "1x0e", "9x1o+3x1o", tuple(paths))
    problem = LinearProblem.random(plan, 13)
    problem.check_everywhere()
    assert (problem.results()[0][:, 27:] == 0).all()


def test_a_scalar_that_is_odd():
    """y = 1 may be of either parity: 0o takes 1e to 1o."""
    plan = ProductPlan("17x1e+3x0o", "1x0o", "9x1o+5x0e", ((0, 0, 0, "uvw", True, 1.0),))
    LinearProblem.random(plan, 7, (1,)).check_everywhere()


# Rows of a chunk of gradients, of which there are 64 at most: then they are longer.
CHUNK = 64 if emulation.enabled() else 256


@layouts
def test_many_rows(layout):
    """One to the largest number of chunks of gradients, and longer chunks beyond."""
    plan = mixing_plan("3x0e+5x1o", "2x0e+4x1o", layout)
    for rows in (257, 64 * CHUNK, 64 * CHUNK + 1, 78 * CHUNK):
        LinearProblem.random(plan, rows, (0,), seed=rows).check_everywhere()


@pytest.mark.not_emulated("private sums of the CPU's threads")
def test_many_weights():
    """So many that few private sums exist at once: on a small machine they come in waves."""
    plan = mixing_plan("1024x0e", "1025x0e")
    assert plan.weight_numel > 2**20
    LinearProblem.random(plan, 1100, dtype=torch.float32).check_everywhere()


WIDE = sizes.copies(300_000)


@layouts
@pytest.mark.parametrize("irreps_in, irreps_out", [("1x0e", f"{WIDE}x0e"), (f"{WIDE}x1o", "1x1o")])
def test_very_wide_blocks(irreps_in, irreps_out, layout):
    """Panels times vectors exceed 32 bits; a tile of 256 rows would take a gigabyte."""
    LinearProblem.random(mixing_plan(irreps_in, irreps_out, layout), 3).check_everywhere()


def test_all_digits_of_float64():
    """Elsewhere operands hold numbers that float32 holds too."""
    plan = mixing_plan("33x0e+17x1o+5x5o", "17x0e+33x1o+9x5o")
    problem = LinearProblem.random(plan, 50, (0,))
    problem = problem.with_operands(*(torch.rand_like(operand) + 0.5 for operand in problem.operands))
    for _ in instruction_sets():
        problem.check()


@settings(max_examples=30, derandomize=True)
@given(random_linear_plans(), st.integers(0, 2**20))
def test_equals_the_product_with_one(plan_and_biased, seed):
    plan, _ = plan_and_biased
    problem = LinearProblem.random(plan, 5, seed=seed)
    x, weight, _, grad = problem.operands
    one = x.new_ones(5, 1)
    backward = torch.ops.clebsch.tensor_product_backward(grad, x, one, weight, str(plan), 5)
    product = (ops.tensor_product(x, one, weight, plan), backward[0], backward[2])
    for name, ours, theirs in zip(LINEAR_RESULTS, problem.results(), product, strict=True):
        assert ours.shape == theirs.shape and relative_error(ours, theirs) < 1e-13, name


# Rows that name an element of y

ELEMENTS = (1, 2, 5, 89)


@settings(max_examples=80, derandomize=True)
@given(
    random_linear_plans(multiplicities=(0, 1, 5, 17, 65), l_max=5),
    st.sampled_from(ELEMENTS),
    st.sampled_from((1, 3, 89)),
    st.sampled_from(ROWS),
    st.booleans(),
    st.integers(0, 2**20),
)
@example((ProductPlan("", "1x0e", "3x0e+2x1o", (), "ir_mul"), (0,)), 5, 1, 7, True, 0)
def test_random_plans_with_an_index(plan_and_biased, elements, present, rows, bias_per_row, seed):
    plan, biased = with_elements(plan_and_biased[0], elements), plan_and_biased[1]
    LinearProblem.random(
        plan, rows, biased, bias_per_row=bias_per_row, present=min(present, elements), seed=seed
    ).check_everywhere()


@layouts
@pytest.mark.parametrize("mul", WIDTHS)
def test_widths_with_an_index(mul, layout):
    """Weights are packed along their rows, and for the gradient of x across them."""
    for l in (0, 1):
        plan = with_elements(mixing_plan(f"{mul}x{l}e", f"3x{l}e+{mul}x{l}e", layout), 3)
        LinearProblem.random(plan, 19, (1,) if l == 0 else (), present=2, seed=mul).check_everywhere()


@layouts
def test_many_rows_with_an_index(layout):
    """One to the largest number of chunks of gradients of an element, and of pieces."""
    plan = with_elements(mixing_plan("3x0e+5x1o", "2x0e+4x1o", layout), 3)
    for rows, present in ((600, 1), (600, 3), (64 * CHUNK + 1, 1), (78 * CHUNK, 2)):
        LinearProblem.random(plan, rows, (0,), present=present, seed=rows).check_everywhere()


@settings(max_examples=30, derandomize=True)
@given(random_linear_plans(), st.sampled_from(ELEMENTS), st.integers(0, 2**20))
def test_an_index_is_the_product_with_one_hot_rows(plan_and_biased, elements, seed):
    plan = with_elements(plan_and_biased[0], elements)
    problem = LinearProblem.random(plan, 7, present=min(3, elements), seed=seed)
    x, weight, _, grad = problem.operands
    y = torch.nn.functional.one_hot(problem.index, elements).double()
    backward = torch.ops.clebsch.tensor_product_backward(grad, x, y, weight, str(plan), 5)
    product = (ops.tensor_product(x, y, weight, plan), backward[0], backward[2])
    for name, ours, theirs in zip(LINEAR_RESULTS, problem.results(), product, strict=True):
        assert ours.shape == theirs.shape and relative_error(ours, theirs) < 1e-13, name


def test_weights_of_elements_that_no_row_names():
    """They are not read, and their gradient is zero."""
    plan = with_elements(mixing_plan("17x0e+5x1o", "9x0e+17x1o"), 4)
    problem = LinearProblem.random(plan, 30, dtype=torch.float32)
    index = torch.tensor([2, 1] * 15)
    problem = replace(problem, index=index)
    expected = problem.results()
    views = [
        torch.zeros_like(problem.weight)[start : start + u * v * w].view(u, v, w)
        for start, (u, v, w) in plan.weight_slices
    ]
    for view in views:
        view[:, [0, 3]] = float("nan")
    poisoned = problem.weight + torch.cat([view.flatten() for view in views])
    assert poisoned.isnan().any()
    with poisoned_memory():
        out, grad_x, grad_weight = replace(problem, weight=poisoned).results()
    assert same_bits((out, grad_x, grad_weight), expected)
    for start, (u, v, w) in plan.weight_slices:
        gradient = grad_weight[start : start + u * v * w].view(u, v, w)
        assert (gradient[:, [0, 3]] == 0).all() and (gradient[:, [1, 2]] != 0).all()


def test_no_rows_and_no_elements():
    plan = with_elements(mixing_plan("3x0e+2x1o", "4x0e+5x1o"), 3)
    with poisoned_memory():
        out, grad_x, grad_weight = LinearProblem.random(plan, 0, present=3).results()
        assert out.shape == (0, 19) and grad_x.shape == (0, 9)
        assert grad_weight.shape == (66,) and (grad_weight == 0).all()
        none = with_elements(plan, 0)
        out, grad_x, grad_weight = LinearProblem.random(none, 0, present=0).results()
        assert out.shape == (0, 19) and grad_x.shape == (0, 9) and grad_weight.shape == (0,)
        # of the last bias, all there is
        rows = LinearProblem.random(with_elements(ProductPlan("", "1x0e", "2x0e", ()), 3), 4, (0,), present=2)
        assert torch.equal(rows.results()[0], rows.bias.expand(4, 2))


@layouts
def test_operands_and_an_index_that_are_not_contiguous(layout):
    plan = with_elements(mixing_plan("17x0e+5x1o+3x5o", "9x0e+4x0e+6x1o+2x5o", layout), 3)
    problem = LinearProblem.random(plan, 13, (0, 1), present=2, bias_per_row=True, dtype=torch.float32)
    for _ in instruction_sets():
        expected = problem.results()
        for i, operand in enumerate(problem.operands):
            for name, view in views(operand):
                moved = [*problem.operands[:i], view, *problem.operands[i + 1 :]]
                assert same_bits(problem.with_operands(*moved).results(), expected), (i, name)
        index = problem.index.repeat_interleave(2)[::2]
        assert not index.is_contiguous()
        assert same_bits(replace(problem, index=index).results(), expected)


def test_same_bits_for_any_number_of_threads_with_an_index():
    plan = with_elements(mixing_plan("32x0e+17x1o+4x5o", "17x0e+32x1o+3x5o"), 5)
    problems = [
        LinearProblem.random(plan, sizes.rows(1500), (0,), present=n, dtype=torch.float32) for n in (1, 2, 5)
    ]
    for _ in instruction_sets():
        for problem in problems:
            torch.set_num_threads(1)
            expected = problem.results()
            for threads in (2, 4):
                torch.set_num_threads(threads)
                assert same_bits(problem.results(), expected), threads


def test_a_row_does_not_depend_on_the_others():
    """The bits of a row are those of the layer of its element, whichever rows are beside it."""
    plan = with_elements(mixing_plan("33x0e+17x1o", "17x0e+33x1o"), 4)
    problem = LinearProblem.random(plan, 101, present=4, dtype=torch.float32)
    one = mixing_plan("33x0e+17x1o", "17x0e+33x1o")
    out, grad_x, _ = problem.results()
    for element in range(4):
        rows = problem.index == element
        weight = torch.cat(
            [
                problem.weight[start : start + u * v * w].view(u, v, w)[:, element].flatten()
                for start, (u, v, w) in plan.weight_slices
            ]
        )
        alone = LinearProblem(one, (), problem.x[rows], weight, problem.bias, problem.grad[rows])
        assert same_bits(alone.results()[:2], (out[rows], grad_x[rows]))


@pytest.mark.parametrize("wrong", [-1, 3, 2**62, -(2**63)])
def test_an_index_out_of_range(wrong):
    plan = with_elements(SMALL, 3)
    problem = LinearProblem.random(plan, 5, present=3)
    problem.index[3] = wrong
    call = torch.ops.clebsch
    for function, arguments in (
        (call.linear, (problem.x, problem.weight, problem.bias, str(plan), ())),
        (call.linear_grad_x, (problem.grad, problem.weight, str(plan))),
        (call.linear_grad_weight, (problem.x, problem.grad, str(plan))),
    ):
        with pytest.raises(ValueError) as caught:
            function(*arguments, problem.index)
        assert str(caught.value) == f"linear: index must lie in [0, 3), got {wrong} in row 3"


def test_an_index_that_is_refused():
    plan = with_elements(SMALL, 3)
    problem = LinearProblem.random(plan, 5, present=3)
    good = problem.index
    for index, kind, message in (
        ([0] * 5, TypeError, "index must be a tensor, got list"),
        (good.int(), TypeError, "index must be int64, got int32"),
        (good[:4], ValueError, "index must have shape (rows,) = (5,), got (4,)"),
        (good[:, None], ValueError, "index must have shape (rows,) = (5,), got (5, 1)"),
        (good.to("meta"), ValueError, "index must be on the device of x, cpu, got meta"),
    ):
        with pytest.raises(kind) as caught:
            ops.linear(problem.x, problem.weight, problem.bias, plan, index=index)
        assert str(caught.value) == f"linear: {message}"
        if not isinstance(index, torch.Tensor) or index.device.type == "meta":
            continue
        with pytest.raises(ValueError) as caught:
            torch.ops.clebsch.linear_grad_x(problem.grad, problem.weight, str(plan), index)
        assert str(caught.value) == "linear: index must be a vector of 5 int64, one for each row"


@pytest.mark.parametrize(
    "plan",
    [
        "4x0e*3x0e->4x0e;mul_ir;0 0 0 uvu w 1.0",
        "4x0e*1x0e+2x0e->4x0e;mul_ir;0 0 0 uvw w 1.0,0 1 0 uvw w 1.0",
        "4x1o*1x1o->1x0e;mul_ir;0 0 0 uvw w 1.0",
    ],
)
def test_plans_that_an_index_does_not_suit(plan):
    parsed = ProductPlan.parse(plan)
    x, weight = torch.ones(2, parsed.irreps_in1.dim), torch.ones(parsed.weight_numel)
    with pytest.raises(ValueError) as caught:
        ops.linear(x, weight, weight[:0], plan, index=torch.zeros(2, dtype=torch.int64))
    wanted = "linear: plan must have paths uvw with weights and one block of scalars as y"
    assert str(caught.value) == wanted


def test_elements_without_an_index_are_refused():
    problem = LinearProblem.random(with_elements(SMALL, 3), 5)
    with pytest.raises(
        ValueError, match=r"^linear: plan must have paths uvw with weights and one scalar as y$"
    ):
        problem.results()


# How operands lie in memory

MIXED = "17x0e+5x1o+3x5o", "9x0e+4x0e+6x1o+2x5o"


@layouts
@pytest.mark.parametrize("bias_per_row", [False, True])
def test_operands_that_are_not_contiguous(bias_per_row, layout):
    plan = mixing_plan(*MIXED, layout)
    problem = LinearProblem.random(plan, 13, (0, 1), bias_per_row=bias_per_row, dtype=torch.float32)
    for _ in instruction_sets():
        expected = problem.results()
        for i, operand in enumerate(problem.operands):
            for name, view in views(operand):
                assert torch.equal(view, operand)
                moved = [*problem.operands[:i], view, *problem.operands[i + 1 :]]
                assert same_bits(problem.with_operands(*moved).results(), expected), (i, name)


@layouts
def test_rows_that_repeat(layout):
    problem = LinearProblem.random(mixing_plan(*MIXED, layout), 13, (0,), bias_per_row=True)
    for i in range(4):
        given_operands = list(problem.operands)
        given_operands[i] = broadcast(given_operands[i])
        repeated = problem.with_operands(*given_operands).results()
        given_operands[i] = given_operands[i].contiguous()
        assert same_bits(repeated, problem.with_operands(*given_operands).results())
    problem.with_operands(*map(broadcast, problem.operands)).check_everywhere()
    weight = problem.weight[:1].expand(problem.weight.shape)
    problem.with_operands(problem.x, weight, problem.bias, problem.grad).check_everywhere()


def test_operands_are_left_alone():
    problem = LinearProblem.random(mixing_plan(*MIXED), 60, (0,))
    before = tuple(operand.clone() for operand in problem.operands)
    results = problem.results()
    assert same_bits(problem.operands, before)
    assert len({t.data_ptr() for t in (*problem.operands, *results)}) == 4 + len(LINEAR_RESULTS)


# Laws


@settings(max_examples=30, derandomize=True)
@given(random_linear_plans(), st.sampled_from((1, 7, 60)), st.integers(0, 2**20))
@example((mixing_plan("128x0e+128x1o", "128x0e+128x1o"), ()), 300, 0)
def test_one_form_of_three_operands(plan_and_biased, rows, seed):
    """<grad, out> = <x, grad_x> = <weight, grad_weight>."""
    problem = LinearProblem.random(plan_and_biased[0], rows, seed=seed)
    for _ in instruction_sets():
        pairs = list(zip((problem.grad, problem.x, problem.weight), problem.results(), strict=True))
        products = [float((a * b).sum()) for a, b in pairs]
        size = max(float((a * b).abs().sum()) for a, b in pairs)
        assert max(products) - min(products) <= 1e-13 * size


@settings(max_examples=20, derandomize=True)
@given(random_linear_plans(l_max=6), st.integers(0, 2**20))
def test_equivariance(plan_and_biased, seed):
    plan = plan_and_biased[0]
    if plan.layout != "mul_ir":
        return
    torch.manual_seed(seed)
    problem = LinearProblem.random(plan, 5, seed=seed)
    rotation = (-1) ** seed * o3.rand_matrix(dtype=torch.float64)
    in1, out = (o3.Irreps(irreps).D_from_matrix(rotation) for irreps in (plan.irreps_in1, plan.irreps_out))
    turned = problem.with_operands(problem.x @ in1.T, problem.weight, problem.bias, problem.grad @ out.T)
    for name, before, after, matrix in zip(
        LINEAR_RESULTS, problem.results(), turned.results(), (out, in1, None), strict=True
    ):
        expected = before if matrix is None else before @ matrix.T
        assert relative_error(after, expected) < 1e-12, name


# Derivatives

biases = pytest.mark.parametrize(
    "biased, bias_per_row", [((), False), ((2, 0), False), ((2, 0), True)], ids=["none", "shared", "per row"]
)


def as_function(biased, bias_per_row, plan=SMALL, rows=3):
    """The operator as a function of its operands, and the operands; the bias only if there is one."""
    problem = LinearProblem.random(plan, rows, biased, bias_per_row=bias_per_row)
    operands = [problem.x, problem.weight, *([problem.bias] if biased else [])]

    def function(x, weight, bias=problem.bias):
        return ops.linear(x, weight, bias, plan, biased)

    return function, [operand.requires_grad_() for operand in operands]


@biases
def test_first_and_second_derivatives(biased, bias_per_row):
    function, operands = as_function(biased, bias_per_row)
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@biases
def test_third_and_fourth_derivatives(biased, bias_per_row):
    function, operands = as_function(biased, bias_per_row)

    def twice(*operands):
        first = torch.autograd.grad(function(*operands).pow(3).sum(), operands, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), operands, create_graph=True)

    assert torch.autograd.gradcheck(twice, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(twice, operands, fast_mode=True, atol=1e-3, rtol=1e-4)


@biases
def test_derivatives_of_each_operand_alone(biased, bias_per_row):
    function, operands = as_function(biased, bias_per_row)
    for i in range(len(operands)):
        alone = [operand.detach().requires_grad_(j == i) for j, operand in enumerate(operands)]
        assert torch.autograd.gradcheck(function, alone)
        out = function(*alone)
        cotangent = torch.randn_like(out).requires_grad_()
        (first,) = torch.autograd.grad(out, alone[i], cotangent, create_graph=True)
        # linear in each operand: of second derivatives there is that by the cotangent
        (by_cotangent,) = torch.autograd.grad(first.sin().sum(), cotangent)
        assert by_cotangent.shape == out.shape


@biases
def test_derivatives_with_an_index(biased, bias_per_row):
    problem = LinearProblem.random(with_elements(SMALL, 4), 5, biased, bias_per_row=bias_per_row, present=3)
    operands = [problem.x, problem.weight, *([problem.bias] if biased else [])]
    operands = [operand.requires_grad_() for operand in operands]

    def function(x, weight, bias=problem.bias):
        return ops.linear(x, weight, bias, problem.plan, biased, problem.index)

    def twice(*operands):
        first = torch.autograd.grad(function(*operands).pow(3).sum(), operands, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), operands, create_graph=True)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)
    assert torch.autograd.gradcheck(twice, operands, fast_mode=True)


@pytest.mark.parametrize("name", ["linear_grad_x", "linear_grad_weight"])
def test_derivatives_of_the_derivatives(name):
    problem = LinearProblem.random(SMALL, 3)
    operands = (problem.grad, problem.weight) if name == "linear_grad_x" else (problem.x, problem.grad)
    operands = [operand.requires_grad_() for operand in operands]

    def function(*operands):
        return getattr(torch.ops.clebsch, name)(*operands, str(SMALL))

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("name", ["linear_grad_x", "linear_grad_weight"])
def test_derivatives_of_the_derivatives_with_an_index(name):
    problem = LinearProblem.random(with_elements(SMALL, 3), 4, present=2)
    operands = (problem.grad, problem.weight) if name == "linear_grad_x" else (problem.x, problem.grad)
    operands = [operand.requires_grad_() for operand in operands]

    def function(*operands):
        return getattr(torch.ops.clebsch, name)(*operands, str(problem.plan), problem.index)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@biases
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_autograd_gives_what_the_reference_gives(rows, biased, bias_per_row):
    from clebsch import reference
    from clebsch.testing import assert_close_to_reference

    plan = mixing_plan("17x0e+5x1o", "9x0e+4x1o+3x0e")
    problem = LinearProblem.random(plan, rows, biased, bias_per_row=bias_per_row)
    leaves = [operand.requires_grad_() for operand in (problem.x, problem.weight, problem.bias)]
    out = ops.linear(*leaves, plan, biased)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(out, leaves, problem.grad)
    assert_close_to_reference(out, reference.linear, plan, *leaves, biased)
    assert_close_to_reference(grad_x, reference.linear_grad_x, plan, problem.grad, problem.weight)
    assert_close_to_reference(grad_weight, reference.linear_grad_weight, plan, problem.x, problem.grad)
    assert_close_to_reference(grad_bias, reference.linear_grad_bias, plan, problem.grad, biased, bias_per_row)
    assert grad_bias.shape == problem.bias.shape


def test_a_cotangent_that_is_expanded():
    function, operands = as_function((0,), False)
    one_by_one = torch.autograd.grad(function(*operands), operands, torch.ones(3, SMALL.irreps_out.dim))
    of_sum = torch.autograd.grad(function(*operands).sum(), operands)
    assert same_bits(of_sum, one_by_one)


def test_only_what_is_wanted_is_computed(monkeypatch):
    called = []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    function, operands = as_function((0,), False)
    for i, name in enumerate(("linear_grad_x", "linear_grad_weight", None)):
        alone = [operand.detach().requires_grad_(j == i) for j, operand in enumerate(operands)]
        out = function(*alone)
        called.clear()
        with Recorded():
            torch.autograd.grad(out.sum(), alone[i])
        kernels = [entry for entry in called if "clebsch" in entry]
        assert kernels == ([f"clebsch.{name}.default"] if name else [])


def test_forward_mode_is_refused_and_not_silently_zero():
    function, operands = as_function((), False)
    given_operands = tuple(operand.detach() for operand in operands)
    with pytest.raises(NotImplementedError, match=r"^linear: forward-mode derivatives"):
        torch.func.jvp(function, given_operands, given_operands)


def test_torch_func_is_refused_and_not_silently_zero():
    function, operands = as_function((), False)
    given_operands = tuple(operand.detach() for operand in operands)
    for recording in (torch.no_grad, torch.enable_grad):
        with recording(), pytest.raises(NotImplementedError, match=r"^linear: .* under torch\.func"):
            torch.func.grad(lambda *at: function(*at).square().sum(), argnums=(0, 1))(*given_operands)


# The same bits, always


@pytest.fixture(params=LAYOUTS)
def large(request):
    """Problems of several pieces and chunks; the last takes waves of private sums on a small machine."""
    plan = mixing_plan("32x0e+17x1o+4x5o", "17x0e+32x1o+3x5o", request.param)
    wide = mixing_plan(f"{sizes.copies(1024)}x0e", f"{sizes.copies(1025)}x0e", request.param)
    return [
        LinearProblem.random(plan, sizes.rows(700), (0,), dtype=torch.float32),
        LinearProblem.random(plan, sizes.rows(700), (0,), bias_per_row=True),
        LinearProblem.random(wide, sizes.rows(1100), dtype=torch.float32),
    ]


def test_same_bits_on_every_run_and_for_any_number_of_threads(large):
    for _ in instruction_sets():
        for problem in large:
            torch.set_num_threads(1)
            expected = problem.results()
            for threads in (1, 2, 4, 1):
                torch.set_num_threads(threads)
                assert same_bits(problem.results(), expected), threads


def test_same_bits_in_concurrent_threads(large):
    torch.set_num_threads(2)
    problems = [*large[:2], *(LinearProblem.random(mixing_plan(*MIXED), rows) for rows in (7, 130))]
    expected = [problem.results() for problem in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for results, first in zip(pool.map(LinearProblem.results, problems * 2), expected * 2):
                assert same_bits(results, first)


# Values that are not finite


@layouts
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_values_stay_in_their_row(bad, layout):
    problem = LinearProblem.random(mixing_plan(*MIXED, layout), 21, (0,), bias_per_row=True)
    good = torch.arange(21) != 5
    for _ in instruction_sets():
        for i in (0, 2, 3):
            given_operands = list(problem.operands)
            given_operands[i] = given_operands[i].clone()
            given_operands[i][5] = bad
            out, grad_x, grad_weight = problem.with_operands(*given_operands).results()
            assert out[good].isfinite().all() and grad_x[good].isfinite().all()
            assert out[5, :9].isfinite().all() == (i == 3)
            assert grad_x[5].isfinite().all() == (i != 3)
            assert grad_weight.isfinite().all() == (i == 2)
