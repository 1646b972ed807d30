"""`clebsch.check(layer)`: does a layer give on this machine what the reference gives? A report to send along.

The module can be called, so that importing it does not hide the function of that name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clebsch import machine, o3, ops
from clebsch.algebra.irreps import Irreps
from clebsch.e3nn.linear import counterpart
from clebsch.problems import Expected, Problem, Unknown, derivatives, problem
from clebsch.reference.tensor_product import terms
from clebsch.survey import Layer, coupling_buffers, survey

__all__ = ["Check", "LayerReport", "Report", "check"]

DTYPES = (torch.float32, torch.float64)
MAX_TERMS = 6_000_000  # of a product, over all rows: what the reference sums in a few seconds
# Of the largest number of a result: how far e3nn's own may be off, whose roundings have no derived bound.
E3NN_ALLOWED = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Check:
    """One comparison: the number that is farthest off in units of what is allowed, with both.

    dtype: "float32" or "float64". detail: which result that was, or what went wrong.
    """

    name: str
    dtype: str
    error: float
    tolerance: float
    passed: bool
    detail: str = ""

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        if math.isnan(self.tolerance):
            return f"{verdict}  {self.name:<20} {self.dtype}  {self.detail}".rstrip()
        numbers = f"error {self.error:.2g}, allowed {self.tolerance:.2g}"
        return f"{verdict}  {self.name:<20} {self.dtype}  {numbers}" + f"  ({self.detail})" * bool(
            self.detail
        )


@dataclass(frozen=True)
class LayerReport:
    """The checks of a layer, or why there are none (`not_checked`).

    name: where it is in the tree of modules, "" for the root. plan: the canonical string of its product.
    """

    name: str
    description: str
    plan: str | None = None
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    not_checked: str | None = None

    @property
    def passed(self) -> bool:
        """Whether anything was checked and all of it is right."""
        return bool(self.checks) and all(one.passed for one in self.checks)

    def __str__(self) -> str:
        head = f"{self.name or 'layer'}: {self.description}"
        if self.not_checked is not None:
            return f"{head}\n  not checked: {self.not_checked}"
        lines = [head] + ([f"  plan {self.plan}"] if self.plan else [])
        given = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        lines.append(f"  {given}, seed {self.seed}")
        return "\n".join([*lines, *(f"  {one}" for one in self.checks)])


@dataclass(frozen=True)
class Report:
    """What `check` found; `print` it, or read `layers`."""

    subject: str
    machine: dict[str, str]
    layers: tuple[LayerReport, ...]

    @property
    def passed(self) -> bool:
        """Whether anything was checked and nothing was wrong; what was not checked does not count."""
        checked = [layer for layer in self.layers if layer.not_checked is None]
        return bool(checked) and all(layer.passed for layer in checked)

    def as_json(self) -> dict[str, Any]:
        """The report in dictionaries, lists, strings and numbers (NaN where there is none)."""
        return asdict(self) | {"passed": self.passed}

    def summary(self) -> str:
        """The last line: how many checks, and whether all passed."""
        checks = [one for layer in self.layers for one in layer.checks]
        left = sum(layer.not_checked is not None for layer in self.layers)
        tail = f"; {left} of {len(self.layers)} layers not checked" if left else ""
        if not checks:
            reason = "" if self.layers else f": no layer of clebsch or e3nn in {self.subject}"
            return f"NOT PASSED: nothing was checked{reason}{tail}"
        failed = sum(not one.passed for one in checks)
        if failed:
            return f"NOT PASSED: {failed} of {len(checks)} checks failed{tail}"
        return f"passed: {len(checks)} checks{tail}"

    def __str__(self) -> str:
        head = "\n".join(f"{name:<17} {value}" for name, value in self.machine.items())
        return "\n\n".join([head, *map(str, self.layers), self.summary()])

    __repr__ = __str__


def check(module: torch.nn.Module, *, rows: int | None = None, seed: int = 0) -> Report:
    """Compare each layer of ours in `module`, itself perhaps, with `clebsch.reference` on this machine.

    Values, gradients and second derivatives, in float32 and float64, each number within the tolerance that
    `clebsch.testing` derives; equivariance under a random rotation and the inversion, in float64; the same
    bits on a second run. A layer's weights are drawn anew, and values are compared for its own too. Layers of
    torch's functions (`Gate`, `Activation`, `Norm`) are compared with their definition in float64 and may be
    off by 64 roundings of the largest number. A live layer of e3nn's is run in its own type and compared with
    the reference and with ours, within 1e-12 of the largest number (float32: 1e-5).

    Args:
        module: a layer or a model. It, its gradients, hooks and torch's random numbers are left alone.
        rows: rows, edges or points of the random operands; 19 by default, or fewer where the reference would
            take more than a few seconds. A product whose reference takes too long for three rows is not
            checked.
        seed: of the operands.

    Returns:
        a `Report`: `passed`, a text for a bug report as `str`, and the checks.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"check: module must be a torch.nn.Module, got {type(module).__name__}")
    for name, value, least in (("rows", rows, 1), ("seed", seed, 0)):
        if value is None and name == "rows":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"check: {name} must be an integer >= {least}, got {value!r}")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        reports = tuple(_check_layer(layer, rows, seed) for layer in survey(module))
    return Report(type(module).__name__, machine.describe(), reports)


def _check_layer(layer: Layer, rows: int | None, seed: int) -> LayerReport:
    description = _described(layer)
    try:
        given = problem(layer, rows, seed, max_terms=0 if rows else MAX_TERMS)
    except Unknown as reason:
        return LayerReport(layer.name, description, not_checked=str(reason))
    except Exception as error:  # a class of another release, or of the same name
        if layer.origin == "clebsch":
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return LayerReport(layer.name, description, not_checked=text)
    try:
        checks = tuple(_checks(given))
    finally:
        if given.plan is not None and sum(map(given.plan.num_terms, given.plan.paths)) > 100_000:
            terms.cache_clear()  # 40 bytes a term
    plan = None if given.plan is None else str(given.plan)
    shapes = {name: operand.shape for name, operand in zip(given.names, given.operands, strict=True)}
    return LayerReport(layer.name, description, plan, seed, shapes, checks)


def _described(layer: Layer) -> str:
    """The layer's repr, on one line and not without end; with e3nn's name where it is theirs."""
    try:
        text = " ".join(repr(layer.module).split())
    except Exception:  # e3nn's SO3Grid names what it does not have
        text = ""
    text = text if 0 < len(text) <= 200 else f"{layer.class_name}(...)"
    return f"e3nn {text}" if layer.origin == "e3nn" else text


Results = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]


def _checks(given: Problem) -> Iterator[Check]:
    ours = given.layer.origin == "clebsch"
    own = given.layer.dtype()
    dtypes = DTYPES if ours else (own,) if own in DTYPES else ()
    expected = (
        ("values", ("",), (given.output(given.operands),)),
        ("gradients", given.names, given.gradients()),
        ("second derivatives", ("cotangent", *given.names), given.second_gradients()),
    )
    for dtype in dtypes:
        allowed = None if ours else _e3nn_allowed(given, dtype)
        try:
            results = _run(given, dtype)
        except Exception as error:  # whatever the layer raises is what the report is about
            yield _raised("values", dtype, error)
            continue
        for (name, labels, wanted), actual in zip(expected, ((results[0],), *results[1:]), strict=True):
            yield _compare(name, dtype, labels, actual, wanted, allowed)
        if ours:
            yield _same_bits(given, dtype, results)
        elif (replacement := _replacement(given)) is not None:
            yield _attempt("same as clebsch", dtype, _compare_with_ours, given, replacement, results[0])
    if own in DTYPES and given.with_own_weights() is not None:
        yield _attempt("own weights", own, _own_weights, given, None if ours else _e3nn_allowed(given, own))
    if ours or own == torch.float64:
        allowed = None if ours else _e3nn_allowed(given, torch.float64)
        yield _attempt("equivariance", torch.float64, _equivariance, given, allowed)


def _attempt(name: str, dtype: torch.dtype, function: Callable[..., Check], *arguments: Any) -> Check:
    try:
        return function(name, dtype, *arguments)
    except Exception as error:
        return _raised(name, dtype, error)


def _raised(name: str, dtype: torch.dtype, error: Exception) -> Check:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Check(name, _name(dtype), math.nan, math.nan, False, text[:300])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _run(given: Problem, dtype: torch.dtype) -> Results:
    return derivatives(given.call, given.tensors(dtype), given.cotangent, given.tangents)


def _compare(
    name: str,
    dtype: torch.dtype,
    labels: Sequence[str],
    actual: Sequence[Tensor],
    expected: Sequence[Expected],
    allowed: float | None = None,
) -> Check:
    """The worst of several results, each called by its label."""
    worst: tuple[float, float, float, str] = (-1.0, 0.0, 0.0, "")
    for label, result, wanted in zip(labels, actual, expected, strict=True):
        if tuple(result.shape) != wanted.value.shape or result.dtype != dtype:
            detail = f"{wanted.value.shape} in {_name(dtype)} expected, got {tuple(result.shape)} in "
            detail = f"{label}: " * bool(label) + detail + _name(result.dtype)
            return Check(name, _name(dtype), math.nan, math.nan, False, detail)
        bound = wanted.bound(dtype)
        if allowed is not None:
            bound = np.full_like(bound, allowed * wanted.magnitude.max(initial=0.0))
        found = _farthest(result.detach().double().numpy() - wanted.value, bound)
        if found is not None and found[0] > worst[0]:
            worst = (*found, label)
    units, error, bound, label = worst
    return Check(name, _name(dtype), error, bound, units <= 1, label)


def _farthest(difference: NDArray, bound: NDArray) -> tuple[float, float, float] | None:
    """(error / bound, error, bound) where the first is largest; NaN is the largest; None of no numbers."""
    if difference.size == 0:
        return None
    error = np.abs(difference)
    # an error of 0 is 0 tolerances even where the tolerance is 0
    units = np.divide(error, bound, out=np.where(error == 0, 0.0, np.inf), where=bound > 0)
    units = np.where(np.isnan(units), np.inf, units)
    at = np.unravel_index(np.argmax(units), units.shape)
    return float(units[at]), float(error[at]), float(bound[at])


def _same_bits(given: Problem, dtype: torch.dtype, results: Results) -> Check:
    def content(results: Results) -> list[bytes]:
        return [value.numpy().tobytes() for value in (results[0], *results[1], *results[2])]

    again = _run(given, dtype)
    same = content(results) == content(again)
    return Check("same bits twice", _name(dtype), math.nan, math.nan, same)


def _own_weights(name: str, dtype: torch.dtype, given: Problem, allowed: float | None) -> Check:
    operands, call = given.with_own_weights()
    if not all(np.isfinite(operand).all() for operand in operands):
        return Check(
            name, _name(dtype), math.nan, math.nan, False, "the layer holds weights that are not finite"
        )
    with torch.no_grad():
        out = call(*(torch.from_numpy(operand).to(dtype) for operand in operands))
    return _compare(name, dtype, ("",), (out,), (given.output(operands),), allowed)


def _equivariance(name: str, dtype: torch.dtype, given: Problem, allowed: float | None) -> Check:
    """The layer of rotated operands against its rotated output.

    What is allowed is what each of the two may be off, and the roundings of rotations: 12 (2l + 1) for the
    largest degree l, of the matrices and of what is multiplied by them.
    """
    turn = _Rotation.random(given)
    rotated = tuple(map(turn, given.operands, given.spaces))
    with torch.no_grad():
        out, moved = (
            given.call(*(torch.from_numpy(np.ascontiguousarray(operand)) for operand in operands)).numpy()
            for operands in (given.operands, rotated)
        )
    bounding = rotated
    if given.is_multilinear:
        bounding = tuple(
            turn(np.abs(operand), space, absolute=True)
            for operand, space in zip(given.operands, given.spaces, strict=True)
        )
    here, there = given.output(given.operands), given.output(bounding)
    magnitude = there.magnitude + turn(here.magnitude, given.space_out, absolute=True)
    spaces = [space for space in (*given.spaces, given.space_out) if space is not None]
    roundings = 12 * (2 * max((ir.l for space in spaces for _, ir in space), default=0) + 1)
    wanted = Expected(turn(out, given.space_out), magnitude, here.terms.max(initial=0) + roundings)
    wanted = wanted._replace(terms=np.full(magnitude.shape, wanted.terms))
    return _compare(name, dtype, ("",), (torch.from_numpy(moved),), (wanted,), allowed)


class _Rotation:
    """A rotation and the inversion together, of rows of irreps."""

    def __init__(self, angles: Sequence[float], layout: str) -> None:
        self.angles, self.layout = [torch.tensor(angle, dtype=torch.float64) for angle in angles], layout

    @classmethod
    def random(cls, given: Problem) -> _Rotation:
        alpha, height, gamma = given.rng.uniform(-1, 1, 3)
        return cls((math.pi * alpha, math.acos(height), math.pi * gamma), given.layout)

    def __call__(self, array: NDArray, space: Irreps | None, absolute: bool = False) -> NDArray:
        """The rows rotated; as they are if they belong to no space. absolute: by the matrices' magnitudes."""
        if space is None:
            return array
        parts = np.split(array, np.cumsum([block.dim for block in space])[:-1], axis=-1) if space else []
        turned = [array[..., :0]]
        for part, (mul, ir) in zip(parts, space, strict=True):
            matrix = o3.wigner_D(ir.l, *self.angles).numpy() * ir.p
            matrix = np.abs(matrix) if absolute else matrix
            rows = part.shape[:-1]
            if self.layout == "mul_ir":
                part = part.reshape(*rows, mul, ir.dim) @ matrix.T
            else:
                part = matrix @ part.reshape(*rows, ir.dim, mul)
            turned.append(part.reshape(*rows, mul * ir.dim))
        return np.concatenate(turned, axis=-1)


def _e3nn_allowed(given: Problem, dtype: torch.dtype) -> float:
    """Relative to the largest number. A layer made in float32 and converted since computes with coupling
    coefficients that were rounded then."""
    for triple, stored in coupling_buffers(given.module).items():
        exact = o3.wigner_3j(*triple, dtype=torch.float64)
        off = min((stored.double() - sign * exact).abs().max() for sign in (1, -1))
        if 1e-12 < off < 1e-6:
            return E3NN_ALLOWED[torch.float32]
    return E3NN_ALLOWED[dtype]


def _replacement(given: Problem) -> Callable[..., Tensor] | None:
    """Our layer of the same arguments, called like the problem's."""
    module, kind = given.module, given.layer.kind
    if kind == "TensorSquare":
        return lambda x, weight: ops.tensor_product(x, x, weight, given.plan)
    if given.layer.is_product:
        return lambda x, y, weight: ops.tensor_product(x, y, weight, given.plan)
    if kind == "SphericalHarmonics":
        return o3.SphericalHarmonics(
            str(module.irreps_out), module.normalize, module.normalization, str(module.irreps_in)
        )
    if kind == "Linear":
        ours = counterpart(module)
        if not isinstance(ours, str):
            return lambda *operands: given.call_of(ours, *operands)
    return None


def _compare_with_ours(
    name: str, dtype: torch.dtype, given: Problem, replacement: Callable[..., Tensor], theirs: Tensor
) -> Check:
    wanted = given.output(given.operands)
    with torch.no_grad():
        ours = replacement(*(operand.detach() for operand in given.tensors(dtype)))
    wanted = wanted._replace(value=ours.double().numpy())
    return _compare(name, dtype, ("",), (theirs,), (wanted,), _e3nn_allowed(given, dtype))


class _CallableModule(ModuleType):
    """`clebsch.check` is this module once it is imported, and is called all the same."""

    def __call__(self, module: torch.nn.Module, *, rows: int | None = None, seed: int = 0) -> Report:
        return check(module, rows=rows, seed=seed)

    __call__.__doc__ = check.__doc__


sys.modules[__name__].__class__ = _CallableModule
