"""Tables that kernels for GPUs keep on a device from the first use on: who allocates them, and when that is
refused. On the emulator; what a GPU makes of it is in tests/gpu."""

import re
from collections import Counter

import pytest
import torch

import emulation
from clebsch import ops
from contraction_calls import Problem as ContractionProblem
from linear_calls import LinearProblem, mixing_plan
from product_calls import Problem, same_bits, wide_plan

pytestmark = pytest.mark.skipif(
    not emulation.enabled(), reason="about the kernels of GPUs: pytest --emulated"
)


def with_last_number(table, number):
    """A copy of the table of a contraction that ends with another coefficient."""
    return torch.cat((table[:-1], torch.tensor([number], dtype=torch.float64).view(torch.int64)))


def first_uses(number):
    """By noun a call whose tables nobody has met, if `number` is one that no other test takes."""
    product = Problem.random(wide_plan(number), 3)
    yield "tensor_product", product.forward
    degrees = [1] * number
    yield "spherical_harmonics", lambda: ops.spherical_harmonics(torch.ones(2, 3), degrees, True, "norm")
    contraction = ContractionProblem("1x0e+1x1o", "1x0e+1x1o", 2)
    given = contraction.operands["x"], contraction.operands["weight"]
    index, table, widths = contraction.constants
    table = with_last_number(table, number)
    yield "symmetric_contraction", lambda: ops.symmetric_contraction(*given, index, table, widths)
    linear = LinearProblem.random(mixing_plan(f"{number}x0e", "3x0e"), 2)
    yield "linear", lambda: linear.results()[0]
    gates, gated = torch.ones(2, number), torch.ones(2, 3 * number)
    yield "gate", lambda: ops.gate(torch.ones(2, 1), gates, gated, ((number,), (3,)))


NOUNS = [noun for noun, _ in first_uses(1)]


@pytest.mark.parametrize("noun", NOUNS)
def test_tables_are_allocated_by_a_thread_of_their_own(noun):
    """Where a pool of torch's has the allocations of this one, tables must not lie in it."""
    call = dict(first_uses(41))[noun]

    def operations():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        return Counter(event.name for event in profile.events())

    first, second = operations(), operations()
    assert first == second
    assert first.total() > 0


@pytest.mark.parametrize("noun", NOUNS)
def test_the_first_use_is_not_captured(noun):
    call = dict(first_uses(43))[noun]
    message = (
        f"{noun}: the first use on a device copies tables there, which a CUDA graph cannot capture: run the "
        "same step once, with its derivatives, before it is captured"
    )
    with emulation.captured():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="^" + re.escape(message) + "$"):
                call()
    expected = call()
    with emulation.captured():
        assert same_bits((call(),), (expected,))


def test_a_table_that_was_written_to():
    """Contractions are known by what is in their tables, not by where these lie."""
    problem = ContractionProblem("1x0e+1x1o", "1x0e+1x1o", 2)
    table = problem.table.tensor
    before, kept = problem.forward(), table.clone()
    table.copy_(with_last_number(table, 47))
    changed = problem.forward()
    assert not torch.equal(changed, before)
    table.copy_(kept)
    assert same_bits((problem.forward(),), (before,))
