"""The compiled libraries seen from Python: couplings, instruction sets, and operators given nonsense."""

import math
import os
import subprocess
import sys

import pytest
import torch

from clebsch import backend, ops, reference  # noqa: F401  ops loads the operators
from clebsch.algebra import codegen, so3
from clebsch.algebra.plan import ProductPlan
from clebsch.testing import RandomGraph, random_operands, relative_error
from linear_calls import LinearProblem, mixing_plan
from product_calls import Problem, instruction_sets, same_bits, wide_plan

native = backend.native()
# torch >= 2.11 takes memory that is not its own for a tensor.
RESULTS_ARE_POOLED = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)


# Couplings


def test_the_compiled_table_is_the_exact_one():
    """Read back bit for bit: all triples to degree 8, in order, and nothing else."""
    for triple in codegen.triples(8):
        exact = [(e.m1, e.m2, e.m3, e.value) for e in so3.coupling(*triple)]
        compiled = native.coupling(*triple)
        assert compiled == exact
        assert [math.copysign(1, entry[3]) for entry in compiled] == [e.sign for e in so3.coupling(*triple)]
        assert native.has_coupling(*triple)
    for triple in ((0, 0, 1), (1, 1, 3), (3, 1, 1), (8, 8, 17), (-1, 0, 0), (2**31 - 1, 0, 0)):
        assert not native.has_coupling(*triple)
        assert native.coupling(*triple) == []


def test_degrees_beyond_the_table():
    """Unknown until registered; then products of that degree are right, and the table is as it was."""
    plan = ProductPlan("2x10e", "1x1e", "2x11e", ((0, 0, 0, "uvu", True, 1.0),))
    x, y, weight = (torch.from_numpy(a) for a in random_operands(plan, 3))
    sentence = (
        "plan: no coupling for degrees (10, 1, 11); those above 8 are made known by "
        "clebsch.backend.register_couplings(plan) in '0 0 0 uvu w 1.0'"
    )
    # in this process another test may have registered them
    result = python(
        "import torch; from clebsch import backend, ops\n"
        f"plan = {str(plan)!r}\n"
        "print(backend.native().has_coupling(10, 1, 11))\n"
        "for function in (\n"
        "    backend.native().describe_plan,\n"
        "    lambda p: torch.ops.clebsch.tensor_product(*map(torch.zeros, ((3, 42), (3, 3), (3, 2))), p),\n"
        "):\n"
        "    try: function(plan)\n"
        "    except Exception as error: print(error)\n"
    )
    known, *sentences = result.stdout.splitlines()
    assert known == "False" and len(sentences) == 2, result.stderr
    assert sentences == [sentence] * 2
    backend.register_couplings(plan)
    assert native.has_coupling(10, 1, 11)
    out = torch.ops.clebsch.tensor_product(x, y, weight, str(plan))
    assert relative_error(out, reference.tensor_product(plan, x, y, weight)) < 1e-13
    assert native.coupling(10, 1, 11) == []  # not a part of what was compiled


@pytest.mark.parametrize(
    "degrees, components, values, message",
    [
        ((1, 1, 3), [], [], "register_coupling: degrees violate the triangle rule"),
        ((-1, 1, 1), [], [], "register_coupling: degrees violate the triangle rule"),
        ((101, 1, 101), [], [], "register_coupling: degrees above 100 are not supported"),
        ((9, 1, 9), [(0, 0, 0)], [], "register_coupling: as many values as components"),
        ((9, 1, 9), [(19, 0, 0)], [1.0], "register_coupling: component index out of range"),
        ((9, 1, 9), [(0, -1, 0)], [1.0], "register_coupling: component index out of range"),
        ((9, 1, 9), [(0, 0, 256)], [1.0], "register_coupling: component index out of range"),
    ],
)
def test_couplings_that_are_refused(degrees, components, values, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        native.register_coupling(*degrees, components, values)


# Instruction sets


def test_every_usable_set_runs_and_is_put_back():
    before = backend.instruction_set()
    problem = Problem.random(wide_plan(17), 9)
    seen = []
    for name in instruction_sets():
        seen.append(name)
        problem.check()
    assert seen == backend.usable_instruction_sets() and "baseline" in seen
    assert set(seen) <= set(backend.compiled_instruction_sets())
    assert backend.instruction_set() == before


def test_unknown_set_is_refused_and_nothing_changes():
    before = backend.instruction_set()
    usable = ", ".join(backend.usable_instruction_sets())
    with pytest.raises(ValueError) as caught:
        backend.select_instruction_set("mmx")
    assert str(caught.value) == (
        f"CLEBSCH_ISA must be one of the instruction sets usable here ({usable}), got 'mmx'"
    )
    assert backend.instruction_set() == before


def test_descriptions():
    plan = wide_plan(16)
    found = backend.describe_plan(plan)
    assert found["forward"] == found["derivatives"] == "channels"
    assert (found["dim1"], found["dim2"], found["dim_out"]) == (64, 9, 144)
    assert found["weight_numel"] == plan.weight_numel
    assert [path["degrees"] for path in found["paths"]] == [
        (0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 2),
    ]  # fmt: skip
    assert [path["terms"] for path in found["paths"]] == [1, 3, 3, 3, 11, 11]
    assert all(path["unrolled"] for path in found["paths"] if max(path["degrees"]) <= 1)
    with pytest.raises(ValueError, match=r"^plan: expected"):
        backend.describe_plan("nonsense")


def test_the_catalogue_of_kernels():
    entries = backend.kernels()
    assert all(
        entry.keys() == {"noun", "dtype", "instruction_set", "lanes", "unrolled_degree"} for entry in entries
    )
    by_kernel = {tuple(entry.values())[:4]: entry["unrolled_degree"] for entry in entries}
    assert len(by_kernel) == len(entries)
    lanes = {("spherical_harmonics", "points"), ("tensor_product", "channels"), ("tensor_product", "rows")}
    lanes |= {("linear", "channels"), ("gate", "elements"), ("silu", "elements")}
    lanes.add(("symmetric_contraction", "channels"))
    assert lanes == {(noun, lanes) for noun, _, _, lanes in by_kernel}
    for isa in backend.compiled_instruction_sets():
        for noun, what in lanes:
            for dtype in ("float32", "float64"):
                assert by_kernel[noun, dtype, isa, what] >= (noun not in ("silu", "symmetric_contraction"))
                if noun in ("linear", "gate"):
                    assert by_kernel[noun, dtype, isa, what] == 6
    path = ProductPlan("16x1o", "1x1o", "16x2e", ((0, 0, 0, "uvu", True, 1.0),))
    degree = by_kernel["tensor_product", "float32", backend.instruction_set(), "channels"]
    assert backend.describe_plan(path)["paths"][0]["unrolled"] == (degree >= 2)


def test_limits_of_plans():
    degree, mul = backend.MAX_DEGREE, backend.MAX_MULTIPLICITY
    backend.describe_plan(f"{mul}x{degree}e*1x0e->{mul}x{degree}e;mul_ir;")
    for plan in (f"{mul + 1}x0e*1x0e->1x0e;mul_ir;", f"1x{degree + 1}e*1x0e->1x0e;mul_ir;"):
        with pytest.raises(ValueError, match="outside"):
            backend.describe_plan(plan)


def test_bound_functions_say_what_they_do():
    # pybind11 writes the signature; one line of it is no description
    for name, function in vars(native).items():
        if callable(function):
            assert len(function.__doc__.strip().splitlines()) > 1, name


# Operators given nonsense: one sentence, and nothing is read or written that is not theirs


PLAN = ProductPlan.from_instructions(
    "4x0e+4x1o", "1x0e+1x1o", "4x0e", [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True)]
)
EDGES = RandomGraph(*(torch.tensor(i).numpy() for i in ([0, 1, 2, 2, 0], [1, 1, 1, 0, 0])), 3)
REFUSED = (ValueError, IndexError, RuntimeError)

WRONG = {
    "x, too few columns": (0, lambda t: t[:, :-1], "x must have 16 columns, got 15"),
    "x, too many columns": (0, lambda t: torch.cat((t, t), 1), "x must have 16 columns, got 32"),
    "x, vector": (0, lambda t: t[0], "x must have 2 dimensions, got 1"),
    "x, 3 dimensions": (0, lambda t: t[None], "x must have 2 dimensions, got 3"),
    "x, scalar": (0, lambda t: t[0, 0], "x must have 2 dimensions, got 0"),
    "x, integers": (0, lambda t: t.long(), "x must be float32 or float64"),
    "x, half": (0, lambda t: t.half(), "x must be float32 or float64"),
    "x, complex": (0, lambda t: t.to(torch.complex64), "x must be float32 or float64"),
    "x, booleans": (0, lambda t: t > 0, "x must be float32 or float64"),
    "y, columns": (1, lambda t: t[:, :-1], "y must have 4 columns, got 3"),
    "y, vector": (1, lambda t: t[0], "y must have 2 dimensions, got 1"),
    "y, dtype": (1, lambda t: t.float(), "y must have the dtype of x"),
    "y, integers": (1, lambda t: t.long(), "y must have the dtype of x"),
    "weight, columns": (2, lambda t: t[:, :-1], "weight must have 8 columns, got 7"),
    "weight, too long": (2, lambda t: t.flatten(), "weight must have 8 columns, got 40"),
    "weight, one number": (2, lambda t: t[0, :1], "weight must have 8 columns, got 1"),
    "weight, rows": (2, lambda t: t[:-1], "weight must have 5 rows, got 4"),
    "weight, one row": (2, lambda t: t[:1], "weight must have 5 rows, got 1"),
    "weight, scalar": (2, lambda t: t[0, 0], "weight must have 1 or 2 dimensions, got 0"),
    "weight, 3 dimensions": (2, lambda t: t[None], "weight must have 1 or 2 dimensions, got 3"),
    "weight, dtype": (2, lambda t: t.float(), "weight must have the dtype of x"),
    "grad, columns": (3, lambda t: t[:, :-1], "grad must have 4 columns, got 3"),
    "grad, rows": (3, lambda t: t[:-1], "grad must have"),
    "grad, vector": (3, lambda t: t[0], "grad must have 2 dimensions, got 1"),
    "grad, dtype": (3, lambda t: t.float(), "grad must have the dtype of x"),
    "ax, columns": (4, lambda t: t[:, :-1], "ax must have 16 columns, got 15"),
    "ax, rows": (4, lambda t: t[:-1], "ax must have the shape of its operand"),
    "ax, vector": (4, lambda t: t[0], "ax must have the shape of its operand"),
    "ax, dtype": (4, lambda t: t.float(), "ax must have the dtype of x"),
    "ay, rows": (5, lambda t: t[:-1], "ay must have the shape of its operand"),
    "ay, 3 dimensions": (5, lambda t: t[None], "ay must have 1 or 2 dimensions, got 3"),
    "aw, shared": (6, lambda t: t[0], "aw must have the shape of its operand"),
    "aw, columns": (6, lambda t: t[:, :-1], "aw must have 8 columns, got 7"),
}


@pytest.mark.parametrize("rows", [5, EDGES], ids=["tensor_product", "convolution"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(name, rows):
    i, change, message = WRONG[name]
    problem = Problem.random(PLAN, rows)
    noun = "tensor_product" if problem.graph is None else "convolution"
    given = [*problem.operands, problem.grad, *problem.tangents]
    before = [t.clone() for t in given]
    given[i] = change(given[i])
    operands, grad, tangents = given[:3], given[3], given[4:]
    calls = [lambda: problem.operator("_double_backward")(*tangents, grad, *operands, *problem.fixed, 15)]
    if i < 4:
        calls.append(lambda: problem.operator("_backward")(grad, *operands, *problem.fixed, 7))
    if i < 3:
        calls.append(lambda: problem.operator("")(*operands, *problem.fixed))
    for call in calls:
        with pytest.raises(REFUSED) as caught:
            call()
        assert f"{noun}: {message}" in str(caught.value)
        assert str(caught.value).startswith(f"{noun}: ")
    assert same_bits(tuple(before), (*problem.operands, problem.grad, *problem.tangents))


LINEAR = mixing_plan("4x0e+3x1o", "2x0e+3x1o+5x0e")
WRONG_LINEAR = {
    "x, columns": (0, lambda t: t[:, :-1], "x must have 13 columns, got 12"),
    "x, vector": (0, lambda t: t[0], "x must have 2 dimensions, got 1"),
    "x, 3 dimensions": (0, lambda t: t[None], "x must have 2 dimensions, got 3"),
    "x, integers": (0, lambda t: t.long(), "x must be float32 or float64"),
    "x, complex": (0, lambda t: t.to(torch.complex64), "x must be float32 or float64"),
    "weight, short": (1, lambda t: t[1:], "weight must be a vector of 37 of the dtype of"),
    "weight, matrix": (1, lambda t: t[None], "weight must be a vector of 37 of the dtype of"),
    "weight, scalar": (1, lambda t: t[0], "weight must be a vector of 37 of the dtype of"),
    "weight, dtype": (1, lambda t: t.float(), "weight must be a vector of 37 of the dtype of"),
    "weight, meta": (1, lambda t: t.to("meta"), "weight must be on the device of"),
    "bias, columns": (2, lambda t: t[1:], "bias must have 7 columns, got 6"),
    "bias, rows": (2, lambda t: t.expand(4, 7), "bias must have 5 rows, got 4"),
    "bias, one row": (2, lambda t: t.expand(1, 7), "bias must have 5 rows, got 1"),
    "bias, scalar": (2, lambda t: t[0], "bias must have 1 or 2 dimensions, got 0"),
    "bias, 3 dimensions": (2, lambda t: t.expand(1, 5, 7), "bias must have 1 or 2 dimensions, got 3"),
    "bias, dtype": (2, lambda t: t.float(), "bias must have the dtype of x"),
    "bias, meta": (2, lambda t: t.to("meta"), "bias must be on the device of x, cpu, got meta"),
    "grad, columns": (3, lambda t: t[:, :-1], "grad must have 16 columns, got 15"),
    "grad, vector": (3, lambda t: t[0], "grad must have 2 dimensions, got 1"),
}


@pytest.mark.parametrize("name", WRONG_LINEAR)
def test_wrong_tensors_of_a_linear_layer(name):
    i, change, message = WRONG_LINEAR[name]
    problem = LinearProblem.random(LINEAR, 5, (0, 2))
    before = tuple(operand.clone() for operand in problem.operands)
    changed = list(problem.operands)
    changed[i] = change(changed[i])
    x, weight, bias, grad = changed
    call, plan = torch.ops.clebsch, str(LINEAR)
    calls = {
        "linear": (lambda: call.linear(x, weight, bias, plan, [0, 2]), (0, 1, 2)),
        "linear_grad_x": (lambda: call.linear_grad_x(grad, weight, plan), (1, 3)),
        "linear_grad_weight": (lambda: call.linear_grad_weight(x, grad, plan), (0, 3)),
    }
    for function, operands in calls.values():
        if i in operands:
            with pytest.raises(ValueError) as caught:
                function()
            assert str(caught.value).startswith(f"linear: {message}")
    assert same_bits(before, problem.operands)


def test_rows_and_dtypes_of_cotangents_of_a_linear_layer():
    problem = LinearProblem.random(LINEAR, 5, (0, 2))
    for grad, message in (
        (problem.grad[:4], "grad must have 5 rows, got 4"),
        (problem.grad.float(), "grad must have the dtype of x"),
        (problem.grad.to("meta"), "grad must be on the device of x, cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=f"^linear: {message}$"):
            torch.ops.clebsch.linear_grad_weight(problem.x, grad, str(LINEAR))
    with pytest.raises(ValueError, match=r"^linear: grad must be float32 or float64$"):
        torch.ops.clebsch.linear_grad_x(problem.grad.long(), problem.weight, str(LINEAR))


@pytest.mark.parametrize(
    "biased, message",
    [
        ([1], "biased must name blocks of the output that hold scalars, got 1"),
        ([3], "biased must name blocks of the output that hold scalars, got 3"),
        ([-1], "biased must name blocks of the output that hold scalars, got -1"),
        ([2**63 - 1], f"biased must name blocks of the output that hold scalars, got {2**63 - 1}"),
        ([-(2**63)], f"biased must name blocks of the output that hold scalars, got {-(2**63)}"),
        ([2, 0, 2], "biased must name a block once, got 2 twice"),
        ([0], "bias must have 2 columns, got 7"),
    ],
)
def test_biased_blocks_that_are_refused(biased, message):
    problem = LinearProblem.random(LINEAR, 5, (0, 2))
    with pytest.raises(ValueError, match=f"^linear: {message}$"):
        torch.ops.clebsch.linear(problem.x, problem.weight, problem.bias, str(LINEAR), biased)


def test_plans_that_are_no_linear_layer():
    problem = Problem.random(PLAN, 5)
    weight, call = problem.operands[2][0], torch.ops.clebsch
    for function, arguments in (
        (call.linear, (problem.operands[0], weight, weight[:0], str(PLAN), [])),
        (call.linear_grad_x, (problem.grad, weight, str(PLAN))),
        (call.linear_grad_weight, (problem.operands[0], problem.grad, str(PLAN))),
    ):
        with pytest.raises(
            ValueError, match=r"^linear: plan must have paths uvw with weights and one scalar as y$"
        ):
            function(*arguments)


def test_rows_that_do_not_match():
    problem = Problem.random(PLAN, 5)
    x, y, weight = problem.operands
    for given in ((x[:4], y, weight), (x, y[:4], weight[:4]), (x[:0], y, weight[0])):
        with pytest.raises(
            ValueError, match=r"^tensor_product: x and y must have the same number of rows, got \d and \d$"
        ):
            torch.ops.clebsch.tensor_product(*given, str(PLAN))


class TestOrder:
    """`order` is opaque but a tensor: whatever it holds, kernels stay inside their operands."""

    problem = Problem.random(PLAN, EDGES)
    size = 6 * 5 + 3 * 3 + 5

    def refused(self, order, message):
        x, y, weight = self.problem.operands
        for call in (
            lambda: torch.ops.clebsch.convolution(x, y, weight, order, str(PLAN)),
            lambda: torch.ops.clebsch.convolution_backward(
                self.problem.grad, x, y, weight, order, str(PLAN), 7
            ),
        ):
            with pytest.raises(REFUSED) as caught:
                call()
            assert str(caught.value) == f"convolution: {message}"

    @pytest.mark.parametrize(
        "order",
        [
            torch.zeros(size - 1, dtype=torch.int64),
            torch.zeros(size + 1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros((size, 1), dtype=torch.int64),
            torch.zeros((), dtype=torch.int64),
            torch.zeros(size, dtype=torch.int32),
            torch.zeros(size, dtype=torch.float64),
        ],
        ids=lambda order: f"{order.dtype} {tuple(order.shape)}",
    )
    def test_another_kind_of_tensor(self, order):
        self.refused(order, "order must come from graph_order with 5 edges and 3 nodes")

    def test_numbers_that_are_no_order(self):
        message = "order must come from graph_order of the same graph"
        for fill in (0, 1, -1, 4, 2**62, -(2**63)):
            self.refused(torch.full((self.size,), fill), message)
        generator = torch.Generator().manual_seed(0)
        for bound in (2, 6, 29, 2**40):
            for _ in range(50):
                self.refused(torch.randint(-bound, bound, (self.size,), generator=generator), message)

    def test_order_of_another_graph(self):
        # of the same length, but 6 edges and 1 node, or 4 and 5
        for edges, nodes in ((6, 1), (4, 5)):
            index = torch.zeros(edges, dtype=torch.int64)
            order = torch.ops.clebsch.graph_order(index, index, nodes)
            assert len(order) == self.size
            self.refused(order, "order must come from graph_order of the same graph")

    def test_every_number_spoilt(self):
        """Refused, or harmless: a number is an index that is in range, or not an index at all."""
        x, y, weight = self.problem.operands
        survived = 0
        for at in range(self.size):
            for value in (-(2**63), -7, -1, 0, 1, 2, 3, 5, 6, 2**31, 2**63 - 1):
                order = self.problem.order.clone()
                order[at] = value
                try:
                    torch.ops.clebsch.convolution(x, y, weight, order, str(PLAN))
                    torch.ops.clebsch.convolution_double_backward(
                        *self.problem.tangents, self.problem.grad, x, y, weight, order, str(PLAN), 15
                    )
                    survived += 1
                except ValueError as error:
                    assert str(error) == "convolution: order must come from graph_order of the same graph"
        assert survived < self.size * 11 / 2


@pytest.mark.parametrize(
    "senders, receivers, num_nodes, message",
    [
        ([0, 3], [0, 1], 3, "senders must lie in [0, num_nodes) = [0, 3), got 3 at edge 1"),
        ([0, 1], [-1, 1], 3, "receivers must lie in [0, num_nodes) = [0, 3), got -1 at edge 0"),
        (
            [0, 1],
            [1, 2**62],
            3,
            "receivers must lie in [0, num_nodes) = [0, 3), got 4611686018427387904 at edge 1",
        ),
        ([0], [0], 0, "senders must lie in [0, num_nodes) = [0, 0), got 0 at edge 0"),
        ([0], [0], -1, "num_nodes must lie in [0, 2^48), got -1"),
        ([0], [0], 2**62, "num_nodes must lie in [0, 2^48), got 4611686018427387904"),
        ([0, 1], [0], 3, "senders and receivers must be vectors of the same length"),
        ([[0, 1]], [[0, 1]], 3, "senders and receivers must be vectors of the same length"),
        (0, 0, 3, "senders and receivers must be vectors of the same length"),
        ([0.0], [0], 3, "senders and receivers must be int64"),
        ([0], [True], 3, "senders and receivers must be int64"),
    ],
)
def test_graphs_that_are_refused(senders, receivers, num_nodes, message):
    with pytest.raises(REFUSED) as caught:
        torch.ops.clebsch.graph_order(torch.tensor(senders), torch.tensor(receivers), num_nodes)
    assert str(caught.value) == f"graph_order: {message}"


@pytest.mark.parametrize("num_edges, num_nodes", [(0, 0), (0, 5), (1, 1), (7, 3), (40, 12), (3000, 200)])
def test_the_order_of_a_graph(num_edges, num_nodes):
    """What graph.h promises: sorted by receiver, stable; slots belong to one chunk and sender each."""
    generator = torch.Generator().manual_seed(num_edges)
    senders, receivers = (
        torch.randint(max(num_nodes, 1), (num_edges,), generator=generator) for _ in range(2)
    )
    order = torch.ops.clebsch.graph_order(senders, receivers, num_nodes)
    parts = order.split([1, 1, *[num_nodes + 1] * 3, *[num_edges] * 6])
    chunks, slots, receiver_begin, chunk_begin, chunk_slot, edge, sender, slot, *by_slot = parts
    owners, previous, following = by_slot
    assert torch.equal(edge, torch.argsort(receivers, stable=True))
    assert torch.equal(sender, senders[edge])
    counts = torch.bincount(receivers, minlength=num_nodes)
    assert receiver_begin[0] == 0 and torch.equal(receiver_begin.diff(), counts[:num_nodes])
    # a slot is met for the first time once, and holds one sender
    first = slot < 0
    number = torch.where(first, -1 - slot, slot)
    assert torch.equal(number[first], torch.arange(int(slots)))
    owner = sender[first]
    assert torch.equal(owner[number], sender)
    assert torch.equal(owners[: int(slots)], owner)
    # those of a sender are a chain
    for node in range(num_nodes):
        mine = torch.nonzero(owner == node).flatten().tolist()
        assert previous[mine].tolist() == [-1, *mine[:-1]][: len(mine)]
        assert following[mine].tolist() == [*mine[1:], -1][: len(mine)]
    # chunks cover nodes and slots
    for begin, total in ((chunk_begin, num_nodes), (chunk_slot, int(slots))):
        bounds = begin[: int(chunks) + 1]
        assert bounds[0] == 0 and bounds[-1] == total and (bounds.diff() >= 0).all()


# The nastiest in a process of its own


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


NASTY = """
import torch
from clebsch import backend, ops
call = torch.ops.clebsch
plan = "4x0e+4x1o*1x0e+1x1o->4x0e;mul_ir;0 0 0 uvu w 1.0,1 1 0 uvu w 1.0"
x, y, w, g = torch.ones(3, 16), torch.ones(5, 4), torch.ones(5, 8), torch.ones(3, 4)
index = torch.tensor([0, 1, 2, 2, 0])
order = call.graph_order(index, index, 3)
refused = 0

def refuse(function, *arguments):
    global refused
    try:
        function(*arguments)
    except (ValueError, IndexError, RuntimeError, NotImplementedError, TypeError) as error:
        assert str(error)
        refused += 1

# rows whose length would not fit any memory, and no rows at all
wide = torch.empty(0, 2**40)
refuse(call.tensor_product, wide, wide, wide, plan)
refuse(call.tensor_product, x[:0], y[:0], wide, plan)
# results that would not fit
one_x, one_y = torch.ones(1, 16), torch.ones(1, 4)
refuse(call.tensor_product, one_x.expand(2**50, 16), one_y.expand(2**50, 4), w[0], plan)
refuse(call.graph_order, index, index, 2**47)
refuse(call.graph_order, torch.zeros(1, dtype=torch.int64).expand(2**50), index, 3)
# other kinds of tensors
refuse(call.tensor_product, x.to_sparse(), y[:3], w[:3], plan)
refuse(call.tensor_product, x.to_mkldnn(), y[:3], w[:3], plan)
refuse(call.tensor_product, torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), y[:3], w[:3], plan)
refuse(call.convolution, x, y, w, order.to_sparse(), plan)
# radial weights likewise
hidden, one_row = torch.ones(5, 7), torch.ones(1, 8)
no_edges = call.graph_order(index[:0], index[:0], 3)
for size in (2**31, 2**45, 2**57):
    matrix = one_row.expand(size, 8)
    refuse(call.radial_convolution, x, y[:0], torch.empty(0, size), matrix, no_edges, plan)
    refuse(call.radial_convolution, x, y, hidden[:, :1].expand(5, size), matrix, order, plan)
matrix = one_row.expand(7, 8)
refuse(call.radial_convolution, x, y, hidden.to_sparse(), matrix, order, plan)
refuse(call.radial_convolution, x, y, hidden, None, order, plan)
refuse(call.radial_convolution, x, y, hidden[0], matrix, order, plan)
refuse(call.radial_convolution_backward, g, x, y, hidden, matrix, order, plan, "all")
# a linear layer likewise
mix, mw, nb = "4x0e+4x1o*1x0e->2x0e;mul_ir;0 0 0 uvw w 1.0", torch.ones(8), torch.ones(0)
refuse(call.linear, wide, mw, nb, mix, [])
refuse(call.linear, one_x.expand(2**50, 16), mw, nb, mix, [])
refuse(call.linear_grad_x, torch.ones(1, 2).expand(2**50, 2), mw, mix)
refuse(call.linear, x.to_sparse(), mw, nb, mix, [])
refuse(call.linear, x.to_mkldnn(), mw, nb, mix, [])
refuse(call.linear, x, mw, wide, mix, [0])
refuse(call.linear, x, mw, nb, mix, [0] * 100_000)
refuse(call.linear, x, mw, nb, mix, None)
refuse(call.linear, x, mw, None, mix, [])
refuse(call.linear_grad_weight, x, None, mix)
refuse(call.linear_grad_weight, wide, wide, mix)
# rows of many elements, of none, or whose numbers are something else
species, sw = mix.replace("*1x0e", "*3x0e"), torch.ones(24)
refuse(call.linear, x, sw, nb, species, [], None)
refuse(call.linear, x, sw, nb, species, [], index)
refuse(call.linear, x, sw, nb, species, [], index[:3] + 2**62)
refuse(call.linear, x, sw, nb, species, [], torch.zeros(3))
refuse(call.linear, x, sw, nb, species, [], index[:3].to_sparse())
refuse(call.linear, one_x.expand(2**50, 16), sw, nb, species, [], index[:1].expand(2**50))
refuse(call.linear_grad_x, g, sw[:0], mix.replace("*1x0e", "*0x0e"), index[:3])
refuse(call.linear_grad_weight, x, g, "4x0e+4x1o*->4x0e;mul_ir;", index[:3])
refuse(call.one_hot_index, None)
refuse(call.one_hot_index, index)
refuse(call.one_hot_index, x.to_sparse())
# not tensors, not strings
refuse(call.convolution, x, y, w, None, plan)
refuse(call.convolution, x, y, w, order, None)
refuse(call.convolution, x, y, w, order, b"plan")
refuse(call.convolution_backward, g, x, y, w, order, plan, "all")
refuse(call.convolution_backward, None, x, y, w, order, plan, 7)
print(refused)

# bits of `needs` that mean nothing are ignored
assert [t.numel() for t in call.convolution_backward(g, x, y, w, order, plan, -8)] == [0, 0, 0]
assert [t.numel() for t in call.convolution_backward(g, x, y, w, order, plan, -1)] == [48, 20, 40]
# alive and well
assert call.convolution(x, y, w, order, plan).isfinite().all()
assert call.radial_convolution(x, y, hidden, matrix, order, plan).isfinite().all()
assert call.linear(x, mw, nb, mix, []).tolist() == [[4.0, 4.0]] * 3
"""


def test_nothing_crashes():
    result = python(NASTY)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) == 46


CONCURRENT = """
import threading
import torch
from clebsch import Graph, backend, nn

THREADS = 4
generator = torch.Generator().manual_seed(0)
senders, receivers = torch.randint(40, (2, 300), generator=generator)

def derivatives(layer, graph):
    shapes = ((40, layer.irreps_in1.dim), (300, layer.irreps_in2.dim), (300, layer.weight_numel))
    operands = [
        torch.linspace(-1, 1, rows * width).reshape(rows, width).requires_grad_() for rows, width in shapes
    ]
    out = layer(*operands, graph)
    first = torch.autograd.grad(out.square().sum(), operands, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), operands)
    return [t.detach().numpy().tobytes() for t in (out, *first, *second)]

for l in range(9, 15):
    assert not backend.native().has_coupling(l, 1, l + 1)
    arguments = (f"16x{l}e", "1x1e", f"16x{l}e+16x{l + 1}e", [(0, 0, k, "uvu", True) for k in (0, 1)])
    graph = Graph(senders, receivers, 40)
    barrier = threading.Barrier(THREADS)
    found = [None] * THREADS

    def work(i):
        barrier.wait()
        # two threads of each layout
        found[i] = derivatives(nn.TensorProductConv(*arguments, layout=("mul_ir", "ir_mul")[i % 2]), graph)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for i, layout in enumerate(("mul_ir", "ir_mul", "mul_ir", "ir_mul")):
        alone = derivatives(nn.TensorProductConv(*arguments, layout=layout), Graph(senders, receivers, 40))
        assert found[i] == alone, (l, i)
print("same")
"""


def test_threads_that_start_together():
    """On plans and couplings that nobody has met, and on one graph whose order is still to be made."""
    result = python(CONCURRENT)
    assert result.stdout == "same\n", result.stderr[-3000:]


RUN = """
import hashlib
import numpy as np, torch
from clebsch.testing import RandomGraph
from linear_calls import LinearProblem, mixing_plan
from product_calls import Problem, kernel, plan_of_mode, wide_plan

digest = hashlib.sha256()
rng = np.random.default_rng(0)
for plan, nodes in ((wide_plan(32), 300), (wide_plan(2), 300), (plan_of_mode("uvw"), 9)):
    graph = RandomGraph(*rng.integers(nodes, size=(2, 10 * nodes)), nodes)
    for shared in (False, True):
        for dtype in (torch.float32, torch.float64):
            for result in Problem.random(plan, graph, shared=shared, dtype=dtype).results():
                digest.update(result.numpy().tobytes())
for layout in ("mul_ir", "ir_mul"):
    for result in LinearProblem.random(mixing_plan("32x0e+5x1o", "17x0e+9x1o", layout), 900, (0,)).results():
        digest.update(result.numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_bits_in_every_process():
    path = os.pathsep.join(filter(None, sys.path))
    hashes = []
    for threads in ("1", "2"):
        result = python(RUN, PYTHONPATH=path, OMP_NUM_THREADS=threads, PYTHONHASHSEED=threads)
        assert result.returncode == 0, result.stderr[-3000:]
        hashes.append(result.stdout)
    assert hashes[0] == hashes[1] and len(hashes[0]) == 65


@pytest.mark.parametrize("megabytes", [1.0, 1.2, 1.7, 2.1, 3.9, 5, 11, 33, 40.5])
def test_results_of_the_same_size_take_the_same_memory(megabytes):
    points = torch.zeros(int(megabytes * 2**20 / 4), 3)
    native.drop_kept_memory()
    kept = []
    for _ in range(3):
        torch.ops.clebsch.spherical_harmonics(points, [0], True, "norm")
        kept.append(native.kept_memory())
    assert kept[1:] == kept[:1] * 2
    assert RESULTS_ARE_POOLED == (kept[0] >= megabytes * 2**20)


KEPT = """
import torch
from clebsch import backend, ops
for megabytes in (2, 4, 8, 16, 32):
    ops.spherical_harmonics(torch.zeros(megabytes << 18, 3), [0], True, "norm")
print(backend.native().kept_memory() >> 20)
"""


@pytest.mark.skipif(not RESULTS_ARE_POOLED, reason="before torch 2.11, torch allocates results")
@pytest.mark.parametrize("limit, kept", [("", 62), ("0", 0), ("1", 0), ("7", 6), ("40", 30), ("1000", 62)])
def test_memory_is_kept_to_a_limit(limit, kept):
    """A quarter of the machine's memory by default; a block that would go beyond the limit is given back."""
    result = python(KEPT, CLEBSCH_KEEP_MEMORY=limit)
    assert (result.stdout, result.stderr) == (f"{kept}\n", "")
