"""The tools of the other tests: only rounding passes the tolerance, and random problems are hard enough."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import reference
from clebsch.algebra.plan import MODES, ProductPlan
from clebsch.testing import (
    ALLOWANCE,
    assert_close_to_reference,
    poison,
    random_graphs,
    random_linear_plans,
    random_operands,
    random_plans,
    relative_error,
    tolerance,
)

PLAN = ProductPlan.from_instructions(
    "4x0e+4x1o",
    "1x0e+1x1o",
    "4x0e+4x1o",
    [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (1, 0, 1, "uvu", False)],
)


# Tolerance


@pytest.mark.parametrize(
    ("dtype", "unit"), [(np.float32, 2.0**-24), ("float64", 2.0**-53), (torch.float32, 2.0**-24)]
)
def test_the_tolerance_is_the_bound(dtype, unit):
    rounded = (100 + 7) * unit
    assert tolerance(3.0, 100, dtype) == pytest.approx(ALLOWANCE * rounded / (1 - rounded) * 3.0, rel=1e-12)
    assert tolerance(0.0, 0, dtype) == 0
    assert 0 < tolerance(0.0, 5, dtype) < 1e-30


@pytest.mark.parametrize("dtype", [np.int64, torch.bfloat16, torch.float16])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match=r"^tolerance: dtype must be float32 or float64, got "):
        tolerance(1.0, 1, dtype)


def sum_in_float32(plan, x, y, w):
    """The same terms, added one after the other in float32."""
    from clebsch.reference.tensor_product import terms

    form = terms(plan)
    w = np.concatenate([w, np.ones((len(x), 1), np.float32)], axis=1)
    out = np.zeros((len(x), plan.irreps_out.dim), np.float32)
    for o, i, j, k, value in zip(form.out, form.in1, form.in2, form.weight, form.value, strict=True):
        out[:, o] += np.float32(value) * x[:, i] * y[:, j] * w[:, k]
    return out


@settings(max_examples=30)
@given(random_plans(max_terms=1000), st.integers(0, 10**6))
def test_rounding_passes(plan, seed):
    operands = random_operands(plan, 3, dtype=np.float32, seed=seed)
    worst = assert_close_to_reference(
        sum_in_float32(plan, *operands), reference.tensor_product, plan, *operands
    )
    assert worst <= 1


@given(st.integers(0, 10**6), st.integers(0, 15))
def test_a_number_off_by_a_hundred_thousandth_does_not(seed, where):
    operands = random_operands(PLAN, 1, dtype=np.float32, seed=seed)
    out = reference.tensor_product(PLAN, *operands).astype(np.float32)
    magnitude = reference.magnitude(reference.tensor_product, PLAN, *operands)
    out[0, where] += 1e-5 * magnitude[0, where]
    with pytest.raises(AssertionError, match=r"result 0: 1 of 16 numbers are too far off; the worst, at "):
        assert_close_to_reference(out, reference.tensor_product, PLAN, *operands)


def test_what_is_not_a_number_is_too_far_off():
    operands = random_operands(PLAN, 2)
    out = reference.tensor_product(PLAN, *operands)
    assert assert_close_to_reference(out, reference.tensor_product, PLAN, *operands) == 0
    for wrong in (np.nan, np.inf):
        out[1, 3] = wrong
        with pytest.raises(AssertionError, match=r"1 of 32 numbers are too far off; the worst, at \(1, 3\)"):
            assert_close_to_reference(out, reference.tensor_product, PLAN, *operands)


def test_an_output_that_no_path_reaches_must_be_zero():
    plan = ProductPlan("1x0e", "1x0e", "1x0e", ())
    one = np.ones((1, 1))
    for out, passes in ((0.0, True), (1e-300, False)):
        arguments = (np.full((1, 1), out), reference.tensor_product, plan, one, one, np.zeros((1, 0)))
        if passes:
            assert_close_to_reference(*arguments)
        else:
            with pytest.raises(AssertionError):
                assert_close_to_reference(*arguments)


def test_tensors_tuples_and_results_that_nobody_wanted():
    operands = [torch.tensor(a, requires_grad=True) for a in random_operands(PLAN, 2, dtype=np.float32)]
    grad = torch.ones(2, 16)
    arguments = (reference.tensor_product_backward, PLAN, grad, *operands)
    numpy_operands = [operand.detach().numpy() for operand in operands]
    gx, gy, gw = map(torch.tensor, reference.tensor_product_backward(PLAN, grad.numpy(), *numpy_operands))
    assert_close_to_reference((gx.float(), gy.float(), gw.float()), *arguments)
    assert_close_to_reference((torch.empty(0), None, gw), *arguments)
    with pytest.raises(AssertionError, match=r": 3 results expected, got 2$"):
        assert_close_to_reference((gx, gy), *arguments)
    with pytest.raises(AssertionError, match=r"result 1: shape \(2, 4\) expected, got \(4, 2\)$"):
        assert_close_to_reference((gx, gy.T, gw), *arguments)


@pytest.mark.parametrize("normalize", [True, False])
def test_harmonics_have_a_tolerance(normalize):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((20, 3)).astype(np.float32)
    arguments = ([0, 3, 12], points, normalize, "component")
    Y = reference.spherical_harmonics(*arguments)
    assert_close_to_reference(Y.astype(np.float32), reference.spherical_harmonics, *arguments)
    Y[:, 1:8] *= 1 + 1e-5
    with pytest.raises(AssertionError):
        assert_close_to_reference(Y.astype(np.float32), reference.spherical_harmonics, *arguments)


def test_relative_error():
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(torch.tensor([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.5 / 29.25**0.5)
    assert np.isnan(relative_error(np.array([np.nan]), np.ones(1)))


def test_poison():
    for memory in (np.zeros((2, 3)), torch.zeros(2, 3)):
        assert poison(memory) is memory and np.isnan(np.asarray(memory)).all()


# Random problems


def test_random_plans_are_ugly():
    seen = collections.Counter()

    @settings(max_examples=300, database=None, derandomize=True)
    @given(random_plans())
    def look(plan):
        outputs = [path.i_out for path in plan.paths]
        blocks = [block for path in plan.paths for block in plan.blocks(path)]
        muls = {mul for irreps in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out) for mul, _ in irreps}
        seen.update({path.mode for path in plan.paths})
        seen.update({path.has_weight for path in plan.paths})
        seen.update(
            {
                "no path": not plan.paths,
                "several paths": len(plan.paths) > 2,
                "empty irreps": not (plan.irreps_in1 and plan.irreps_in2 and plan.irreps_out),
                "repeated output": len(set(outputs)) < len(outputs),
                "permuted output": outputs != sorted(outputs),
                "unused output": len(set(outputs)) < len(plan.irreps_out),
                "zero multiplicity": 0 in muls,
                "prime multiplicity": bool(muls & {7, 13, 17, 31}),
                "l = 8": any(block.ir.l == 8 for block in blocks),
                "odd sum of degrees": any(sum(b.ir.l for b in plan.blocks(path)) % 2 for path in plan.paths),
                plan.layout: True,
            }
        )

    look()
    wanted = {
        *MODES,
        True,
        False,
        "no path",
        "several paths",
        "empty irreps",
        "repeated output",
        "permuted output",
    }
    wanted |= {"unused output", "zero multiplicity", "prime multiplicity", "l = 8", "odd sum of degrees"}
    assert not [trait for trait in (*wanted, "mul_ir", "ir_mul") if seen[trait] < 3]


def test_random_linear_plans_are_ugly():
    seen = collections.Counter()

    @settings(max_examples=300, database=None, derandomize=True)
    @given(random_linear_plans())
    def look(plan_and_biased):
        plan, biased = plan_and_biased
        assert all(plan.irreps_out[block].ir.l == 0 for block in biased) and len({*biased}) == len(biased)
        inputs, outputs = ([getattr(path, name) for path in plan.paths] for name in ("i_in1", "i_out"))
        muls = {mul for irreps in (plan.irreps_in1, plan.irreps_out) for mul, _ in irreps}
        seen.update(
            {
                "no path": not plan.paths,
                "empty irreps": not (plan.irreps_in1 and plan.irreps_out),
                "repeated input": len({*inputs}) < len(inputs),
                "repeated output": len({*outputs}) < len(outputs),
                "repeated path": len({*zip(inputs, outputs)}) < len(inputs),
                "unused input": len({*inputs}) < len(plan.irreps_in1),
                "unused output": len({*outputs}) < len(plan.irreps_out),
                "zero multiplicity": 0 in muls,
                "prime multiplicity": bool(muls & {7, 13, 17, 31}),
                "l = 8": any(plan.irreps_in1[i].ir.l == 8 for i in inputs),
                "bias": bool(biased),
                "permuted biases": list(biased) != sorted(biased),
                "bias alone": bool({*biased} - {*outputs}),
                plan.layout: True,
            }
        )

    look()
    assert {"mul_ir", "ir_mul"} <= {*seen}
    assert not [trait for trait in seen if seen[trait] < 3]


def test_random_graphs_are_ugly():
    seen = collections.Counter()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(random_graphs(min_nodes=0))
    def look(graph):
        senders, receivers, num_nodes = graph
        assert senders.dtype == receivers.dtype == np.int64 and senders.shape == receivers.shape
        assert not len(senders) or 0 <= min(senders.min(), receivers.min())
        assert not len(senders) or max(senders.max(), receivers.max()) < num_nodes
        edges = list(zip(senders.tolist(), receivers.tolist(), strict=True))
        seen.update(
            {
                f"{len(edges)} edges": True,
                "no nodes": num_nodes == 0,
                "isolated": num_nodes > 1 and len({*senders, *receivers}) < num_nodes,
                "self loop": any(sender == receiver for sender, receiver in edges),
                "repeated": len(set(edges)) < len(edges),
                "unsymmetric": any((receiver, sender) not in edges for sender, receiver in edges),
                "unsorted": receivers.tolist() != sorted(receivers),
            }
        )

    look()
    wanted = ["0 edges", "1 edges", "7 edges", "40 edges", "no nodes", "isolated", "self loop", "repeated"]
    assert not [trait for trait in (*wanted, "unsymmetric", "unsorted") if seen[trait] < 3]
