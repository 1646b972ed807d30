"""The operators of linear layers, called in every way, next to what the reference says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clebsch import backend, ops, reference  # noqa: F401  ops loads the operators
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from product_calls import PROMISED, assert_result, instruction_sets, poisoned_memory

__all__ = ["LINEAR_RESULTS", "LinearProblem", "mixing_plan", "with_elements"]

LINEAR_RESULTS = ("out", "grad_x", "grad_weight")


def mixing_plan(irreps_in: str, irreps_out: str, layout: str = "mul_ir") -> ProductPlan:
    """A path between any two blocks of the same irrep, each with another coefficient."""
    in1, out = Irreps(irreps_in), Irreps(irreps_out)
    pairs = [(i, k) for i, k in np.ndindex(len(in1), len(out)) if in1[i].ir == out[k].ir]
    paths = [(i, 0, k, "uvw", True, 1.0 - 0.3 * n) for n, (i, k) in enumerate(pairs)]
    return ProductPlan(in1, "1x0e", out, tuple(paths), layout)


def with_elements(plan: ProductPlan, elements: int) -> ProductPlan:
    """The plan with so many scalars in the one block of y: a matrix of each path for each of them."""
    return ProductPlan(plan.irreps_in1, f"{elements}x0e", plan.irreps_out, plan.paths, plan.layout)


@dataclass(frozen=True)
class LinearProblem:
    """A plan with operands and the cotangent of the output; bias: for all rows, or for each. index: the
    element of y that each row names, or None.
    """

    plan: ProductPlan
    biased: tuple[int, ...]
    x: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor
    index: Tensor | None = None

    @classmethod
    def random(
        cls,
        plan: ProductPlan,
        rows: int,
        biased: tuple[int, ...] = (),
        *,
        bias_per_row: bool = False,
        present: int | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> LinearProblem:
        """Numbers that both dtypes hold, so that one reference serves both. present: with an index, which
        names so many of the elements of y.
        """
        rng = np.random.default_rng(seed)
        biases = sum(plan.irreps_out[block].mul for block in biased)
        shapes = (
            (rows, plan.irreps_in1.dim),
            (plan.weight_numel,),
            (rows, biases) if bias_per_row else (biases,),
            (rows, plan.irreps_out.dim),
        )
        drawn = (rng.standard_normal(shape, np.float32) for shape in shapes)
        tensors = [torch.from_numpy(array).to(dtype) for array in drawn]
        if present is None:
            return cls(plan, tuple(biased), *tensors)
        named = rng.permutation(plan.irreps_in2.dim)[:present]
        index = named[rng.integers(0, len(named), rows)] if rows else np.zeros(0, np.int64)
        return cls(plan, tuple(biased), *tensors, torch.from_numpy(index))

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.weight, self.bias, self.grad

    def with_operands(self, *operands: Tensor) -> LinearProblem:
        return replace(self, **dict(zip(("x", "weight", "bias", "grad"), operands, strict=True)))

    def to(self, dtype: torch.dtype) -> LinearProblem:
        other = self.with_operands(*(operand.to(dtype) for operand in self.operands))
        if "expected" in self.__dict__:
            other.__dict__["expected"] = self.expected
        return other

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of `LINEAR_RESULTS`."""
        backend.register_couplings(self.plan)
        call, plan = torch.ops.clebsch, str(self.plan)
        return (
            call.linear(self.x, self.weight, self.bias, plan, self.biased, self.index),
            call.linear_grad_x(self.grad, self.weight, plan, self.index),
            call.linear_grad_weight(self.x, self.grad, plan, self.index),
        )

    @cached_property
    def expected(self) -> list[tuple[NDArray, NDArray, NDArray]]:
        """For each of `LINEAR_RESULTS` what the reference says, its magnitude, and the number of its
        terms."""
        x, weight, bias, grad = (operand.double().numpy() for operand in self.operands)
        index = None if self.index is None else self.index.numpy()

        def judged(function: Callable[..., NDArray], *operands: object) -> tuple[NDArray, NDArray, NDArray]:
            arguments = (self.plan, *operands)
            return (
                function(*arguments),
                reference.magnitude(function, *arguments),
                reference.term_counts(function, *arguments),
            )

        return [
            judged(reference.linear, x, weight, bias, self.biased, index),
            judged(reference.linear_grad_x, grad, weight, index),
            judged(reference.linear_grad_weight, x, grad, index),
        ]

    def check(self, results: tuple[Tensor, ...] | None = None) -> None:
        """Assert that the operators give what the reference gives, up to rounding."""
        results = self.results() if results is None else results
        for name, actual, expected in zip(LINEAR_RESULTS, results, self.expected, strict=True):
            assert_result(f"{name} of {self.plan}, {len(self.x)} rows", actual, *expected, self.x.dtype)

    def check_everywhere(self) -> None:
        """`check` under every instruction set and in both dtypes, on poisoned memory."""
        self.expected  # noqa: B018  once for all
        for _ in instruction_sets():
            for dtype in PROMISED:
                with poisoned_memory():
                    self.to(dtype).check()
