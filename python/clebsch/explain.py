"""`clebsch.explain(model)`: what runs each layer, what it costs, what limits it, and why anything is slow.

The module can be called, so that importing it does not hide the function of that name.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from types import ModuleType
from typing import Any, overload

import numpy as np
import torch

from clebsch import backend, machine, nn, o3, slow_paths
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.e3nn.linear import axes, counterpart
from clebsch.machine import Limits
from clebsch.nn.symmetric_contraction_table import contraction_counts
from clebsch.problems import Problem, Unknown, problem
from clebsch.survey import Layer, product_plan, survey
from clebsch.triton.spherical_harmonics import sources as harmonics_sources
from clebsch.triton.tensor_product import sources as product_sources
from clebsch.work import Work, contraction_work, harmonics_work, linear_work, product_work

__all__ = ["Entry", "Explanation", "Pass", "explain"]

# What `Entry.backend` says of our kernels, and of a device that has none.
GPU_KERNELS = ("cuda", "triton")
KERNELS = ("cpu", *GPU_KERNELS)
NONE = "none"
# Of layers made of several steps.
THROUGH_MEMORY = "between its product and operations of torch, numbers go through memory"


@dataclass(frozen=True)
class Pass:
    """One direction of a layer, for one row (an edge of a convolution, a point of harmonics).

    name: "forward" or "backward" (all gradients). kernel: what runs it. flops (None where not counted) and
    bytes: `clebsch.work`. The rest is None where nothing was measured: limit, "memory" or "arithmetic", is
    what a row needs longer for; least_seconds is that time, and share_of_arithmetic what part of the rate of
    matrix products is reached then. seconds is the measured time, calls included, and reached the part that
    least_seconds is of it (above 1 where rows are few enough to stay in cache).
    """

    name: str
    kernel: str
    flops: int | None
    bytes: int
    limit: str | None = None
    least_seconds: float | None = None
    share_of_arithmetic: float | None = None
    seconds: float | None = None
    reached: float | None = None

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
        return Work(self.flops, self.bytes).intensity


@dataclass(frozen=True)
class Entry:
    """A layer: `name` in the tree of modules ("" for the root), class and package ("clebsch" or "e3nn").

    backend: "cpu", or on a GPU "cuda" (the compiled ones) or "triton" for our kernels, "none" where its
    device has no kernel for it, "torch" for its operations, "e3nn". instruction_set: of our kernels on the
    CPU.
    passes: none where nothing is counted. reasons: why it is slower than it might be, a sentence each.
    advice: for a layer of e3nn, what takes its place. source: if asked for, the Triton source of
    the layer's kernels by name, as they would run on a GPU.
    """

    name: str
    layer: str
    package: str
    backend: str
    instruction_set: str | None
    dtype: str
    passes: tuple[Pass, ...] = ()
    plan: str | None = None
    reasons: tuple[str, ...] = ()
    advice: str | None = None
    source: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """In dictionaries, lists, strings and numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Explanation(Sequence):
    """The entries of a module's layers, and a table of them as `str`."""

    subject: str
    machine: dict[str, str]
    limits: tuple[Limits, ...]
    entries: tuple[Entry, ...]

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def as_json(self) -> dict[str, Any]:
        """In dictionaries, lists, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_text(self))

    __repr__ = __str__


def explain(
    module: torch.nn.Module,
    *,
    rows: int | None = None,
    measure: bool = True,
    dtype: torch.dtype | None = None,
    edges_per_node: float = 40,
    source: bool = False,
) -> Explanation:
    """Say for each layer of ours in `module`, itself perhaps, and of e3nn's, what runs and what it costs.

    Per row: useful operations and least bytes, forward and backward (`clebsch.work` has the formulas), which
    of memory and arithmetic limits the layer on this machine, and the least time that this allows. And every
    reason why a layer is slower than another one would be. `print` the result, or read its entries.

    Args:
        module: a layer or a model.
        rows: time every layer, forward, on random operands of so many rows; choose as many as the program
            has, since few stay in cache. Nothing is timed by default.
        measure: whether to measure how fast this machine reads memory and multiplies matrices, a fraction of
            a second once in a process. Without, no limits are given.
        dtype: of the numbers; by default that of a layer's parameters, or torch's default.
        edges_per_node: of the graphs of convolutions, whose rows are edges.
        source: whether to keep and print the source of the kernels that Triton would run on a GPU, made for
            the plans of layers, forward and backward.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"explain: module must be a torch.nn.Module, got {type(module).__name__}")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"explain: rows must be an integer >= 1, got {rows!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"explain: dtype must be a floating point torch.dtype, got {dtype!r}")
    if not edges_per_node > 0:
        raise ValueError(f"explain: edges_per_node must be > 0, got {edges_per_node!r}")
    entries, limits = [], {}
    for layer in survey(module):
        own = dtype or layer.dtype()
        entry = _entry(layer, own, edges_per_node)
        if measure and own in slow_paths.DTYPES and entry.passes and layer.device.type == "cpu":
            limits.setdefault(own, machine.measure(own))
            entry = replace(entry, passes=tuple(_limited(one, limits[own]) for one in entry.passes))
        if rows is not None:
            entry = _timed(entry, layer, own, rows, edges_per_node)
        if source:
            entry = replace(entry, source=_source(layer, own))
        entries.append(entry)
    return Explanation(type(module).__name__, machine.describe(), tuple(limits.values()), tuple(entries))


def _entry(layer: Layer, dtype: torch.dtype, edges_per_node: float) -> Entry:
    on_kernels = layer.is_on_kernels
    reasons, advice = [], None
    if layer.reason is not None:
        reasons.append(f"left to {layer.origin}: {layer.reason}")
    if layer.is_waiting:
        reasons.append("clebsch.e3nn is enabled: what runs this layer shows when it has run")
    if layer.is_recorded:
        reasons.append("TorchScript runs what it recorded of this layer: its calls are not seen here")
    if layer.overrides_forward:
        reasons.append(f"its class overrides the forward of {layer.kind}: what that does is not seen here")
    if layer.accelerated is not None:
        advice = f"accelerated: {layer.accelerated}"
    elif layer.origin == "e3nn" and not on_kernels:
        advice = _advice(layer)
    runs = backend.backend_of(layer.noun, layer.device.type) or NONE
    entry = Entry(
        layer.name,
        layer.class_name,
        layer.origin,
        runs if on_kernels else layer.origin,
        backend.instruction_set() if on_kernels and runs == "cpu" else None,
        str(dtype).removeprefix("torch."),
        advice=advice,
    )
    describe = _describe_recorded if layer.is_recorded else _describe_other
    describe = _DESCRIBED.get("product" if layer.is_product else layer.kind, describe)
    try:
        entry = describe(entry, layer, dtype, edges_per_node)
    except Exception as error:  # a class of another release, or of the same name
        if layer.origin == "clebsch":
            raise
        reasons.append(f"cannot be described: {' '.join(f'{type(error).__name__}: {error}'.split())}")
    if on_kernels and entry.backend in (*KERNELS, NONE):
        reasons += slow_paths.of_machine(layer.noun, dtype, layer.device)
    elif not on_kernels:
        entry = replace(
            entry,
            reasons=() if entry.passes else entry.reasons,
            passes=tuple(replace(one, kernel=f"{layer.origin}'s code") for one in entry.passes),
        )
    return replace(entry, reasons=(*reasons, *entry.reasons))


def _source(layer: Layer, dtype: torch.dtype) -> dict[str, str] | None:
    """Of the kernels of Triton for a product or harmonics of ours; None for other layers."""
    if not layer.is_on_kernels:
        return None
    name, module = str(dtype).removeprefix("torch."), layer.module
    try:
        if layer.is_product:
            graph, shared = layer.kind == "TensorProductConv", bool(module.shared_weights)
            made = product_sources(product_plan(layer), name, graph=graph, shared=shared)
        elif layer.kind == "SphericalHarmonics":
            degrees = tuple(ir.l for mul, ir in Irreps(str(module.irreps_out)) for _ in range(mul))
            steps = ("forward", "backward", "double_backward")
            fixed = (bool(module.normalize), module.normalization)
            made = [one for step in steps for one in harmonics_sources(name, degrees, *fixed, step)]
        else:
            return None
    except NotImplementedError as error:  # too large a plan: the sentence says what to do
        return {"none": f"# {error}\n"}
    return {kernel.name: kernel.text for kernel in made}


def _advice(layer: Layer) -> str:
    """What takes the place of a layer of e3nn's."""
    for room, package in (("o3", o3), ("nn", nn)):
        for name in (layer.class_name, layer.kind):
            if name in package.__all__:
                return f"clebsch.{room}.{name} takes its place"
    return "left to e3nn: not hot, clebsch has no such layer"


def _passes(kernels: Sequence[str], work: Sequence[Work]) -> tuple[Pass, ...]:
    names = ("forward", "backward")
    return tuple(
        Pass(name, kernel, one.flops, one.bytes)
        for name, kernel, one in zip(names, kernels, work, strict=True)
    )


def _describe_product(entry: Entry, layer: Layer, dtype: torch.dtype, edges_per_node: float) -> Entry:
    plan, shared = product_plan(layer), bool(layer.module.shared_weights)
    graph = edges_per_node if layer.kind == "TensorProductConv" else None
    square = layer.kind == "TensorSquare"
    work = product_work(plan, dtype.itemsize, shared=shared, edges_per_node=graph, is_square=square)
    reasons = list(_reasons(entry, plan, dtype, shared, may_be_one_hot=shared and graph is None))
    if getattr(layer.module, "_did_compile_right", False):
        reasons.append("right has no kernel: operations of torch, an einsum for each path and copies to join")
    passes = _passes(_kernels(entry, plan, dtype, shared), work)
    return replace(entry, passes=passes, plan=str(plan), reasons=tuple(reasons))


def _kernels(entry: Entry, plan: ProductPlan, dtype: torch.dtype, shared: bool) -> tuple[str, str]:
    """Of a product: forward and backward."""
    if entry.backend in GPU_KERNELS:
        return (slow_paths.kernel_on_gpu(plan, entry.backend),) * 2
    if entry.backend == NONE:
        return (NONE,) * 2
    return slow_paths.kernels(plan, dtype, shared=shared)


def _reasons(
    entry: Entry, plan: ProductPlan, dtype: torch.dtype, shared: bool, *, may_be_one_hot: bool = False
) -> Iterator[str]:
    """Why a product is slower than another one would be."""
    if entry.backend in GPU_KERNELS:
        yield from slow_paths.of_gpu(plan, may_be_one_hot=may_be_one_hot)
    if entry.backend in (*GPU_KERNELS, NONE):
        return
    yield from slow_paths.of_plan(plan, dtype, shared=shared)
    if may_be_one_hot and entry.backend == "cpu":
        yield from slow_paths.of_one_hot(plan)


def _describe_harmonics(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    module = layer.module
    degrees = [ir.l for mul, ir in Irreps(str(module.irreps_out)) for _ in range(mul)]
    work = harmonics_work(degrees, dtype.itemsize, normalize=module.normalize)
    passes = _passes((NONE if entry.backend == NONE else "lanes are points",) * 2, work)
    is_on_cpu = entry.backend not in (*GPU_KERNELS, NONE)
    reasons = tuple(slow_paths.of_harmonics(degrees, dtype)) if is_on_cpu else ()
    return replace(entry, passes=passes, reasons=reasons)


def _describe_linear(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    module = layer.module
    try:
        f_in, f_out = (size or 1 for size in axes(module))
    except ValueError as error:
        return replace(entry, reasons=(f"its operations and bytes are not counted: {error}",))
    irreps_in, irreps_out = Irreps(str(module.irreps_in)), Irreps(str(module.irreps_out))
    products = [
        (f_in * ins.path_shape[0], f_out * ins.path_shape[1], irreps_out[ins.i_out].ir.dim)
        for ins in module.instructions
        if ins.i_in >= 0
    ]
    weights = 0 if module.shared_weights else f_in * f_out * module.weight_numel
    work = linear_work(products, (f_in * irreps_in.dim, f_out * irreps_out.dim), weights, dtype.itemsize)
    ours = module if layer.origin == "clebsch" else counterpart(module)
    is_compiled = getattr(ours, "_sizes", None) is not None and _suits_kernels(layer, dtype)
    reasons = slow_paths.of_linear(irreps_out, shared=module.shared_weights, is_compiled=is_compiled)
    entry = entry if is_compiled else _on_torch(entry)
    return replace(entry, passes=_passes(("matrix products",) * 2, work), reasons=tuple(reasons))


def _suits_kernels(layer: Layer, dtype: torch.dtype) -> bool:
    """For a layer that torch's operations do as well. Autocast and transforms show only in a call."""
    return str(dtype).removeprefix("torch.") in backend.dtypes_of(layer.noun, layer.device.type)


def _describe_net(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    sizes = [int(size) for size in layer.module.hs]
    products = [(inputs, outputs, 1) for inputs, outputs in pairwise(sizes)]
    ends = (sizes[0], sizes[-1]) if sizes else (0, 0)
    passes = _passes(("matrix products",) * 2, linear_work(products, ends, 0, dtype.itemsize))
    reason = ("operations of torch: what lies between its layers goes through memory",)
    return replace(_on_torch(entry), passes=passes, reasons=reason if len(sizes) > 2 else ())


def _describe_gate(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    """Ours multiplies in a kernel of its own, not by the product that it keeps for its state_dict."""
    module, gated = layer.module, layer.module.irreps_gated.dim
    is_compiled = module.irreps_gates.dim > 0 and _suits_kernels(layer, dtype)
    scaled = [_scaled(act.irreps_in, act.acts) for act in (module.act_scalars, module.act_gates)]
    flops = sum(scaled) + gated, 2 * sum(scaled) + 3 * gated
    reasons = [THROUGH_MEMORY] if is_compiled else slow_paths.of_gate(has_gates=module.irreps_gates.dim > 0)
    return _describe_moved(entry, layer, dtype, ["gate"] * is_compiled, flops, reasons)


def _describe_activation(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    scaled = _scaled(layer.module.irreps_in, layer.module.acts)
    return _describe_moved(entry, layer, dtype, (), (scaled, 2 * scaled), [slow_paths.FUNCTIONS])


def _scaled(irreps: Irreps, acts: Sequence[Any]) -> int:
    """Numbers that go through a function, and are multiplied by its constant."""
    return sum(block.mul for block, act in zip(irreps, acts, strict=True) if act is not None)


def _describe_norm(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    product = _part(layer, layer.module.tp)
    per_norm = (0, 0) if layer.module.squared else (2, 3)  # its sign and root; their derivatives
    return _describe_composed(entry, layer, dtype, [product], per_norm, layer.module.irreps_out.dim)


def _describe_norm_activation(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    module = layer.module
    products = [_part(layer, part) for part in (module.norm.tp, module.scalar_multiplier)]
    per_norm = (3, 6) if module.normalize else (2, 3)  # least norm, root, quotient; or as of Norm
    per_norm = (per_norm[0] + bool(module.bias), per_norm[1] + bool(module.bias))
    return _describe_composed(entry, layer, dtype, products, per_norm, module.norm.irreps_out.dim)


def _part(layer: Layer, product: torch.nn.Module) -> Layer:
    return Layer("", product, layer.origin, "TensorProduct")


def _describe_composed(
    entry: Entry,
    layer: Layer,
    dtype: torch.dtype,
    products: Sequence[Layer],
    per_norm: tuple[int, int],
    norms: int,
) -> Entry:
    """Products of ours, and operations of torch on norms between them."""
    plans = [product_plan(product) for product in products]
    names = dict.fromkeys(_kernels(entry, plan, dtype, True)[0] for plan in plans)
    work = [product_work(plan, dtype.itemsize, shared=True, is_square=i == 0) for i, plan in enumerate(plans)]
    flops = tuple(sum(one[step].flops for one in work) + per_norm[step] * norms for step in range(2))
    return _describe_moved(entry, layer, dtype, list(names), flops, [THROUGH_MEMORY])


def _describe_batch_norm(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    module, dim = layer.module, layer.module.irreps.dim
    scalars = sum(mul for mul, ir in module.irreps if ir.is_scalar())
    is_measured = module.training or module.instance
    # Means of scalars and their subtraction, sums of squares, the scale; the shift of scalars. Backward the
    # gradients of features and scale, of the mean squares and of the means.
    forward = scalars + dim + scalars * bool(module.affine and module.include_bias)
    backward = dim + 2 * dim * bool(module.affine) + scalars * bool(module.affine and module.include_bias)
    if is_measured:
        forward, backward = forward + scalars + 2 * dim, 3 * dim + 2 * dim + 2 * scalars
    takes_kernel = is_measured and module.reduce == "max" and _suits_kernels(layer, dtype)
    ours = layer.origin == "clebsch" and takes_kernel
    names = [_kernels(entry, ProductPlan.parse(module._plan), dtype, True)[0]] if ours else []
    reasons = [slow_paths.BATCH, *[THROUGH_MEMORY] * ours]
    return _describe_moved(entry, layer, dtype, names, (forward, backward), reasons)


def _describe_dropout(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    module = layer.module
    count = module.irreps.dim if module.training and module.p > 0 else 0
    return _describe_moved(entry, layer, dtype, (), (count, count), [slow_paths.DRAWS] if count else [])


def _describe_extract(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    return _describe_moved(entry, layer, dtype, (), (0, 0), [slow_paths.COPIES])


def _describe_recorded(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    return _on_torch(entry)


def _describe_other(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    """Layers that are not known here."""
    products = [part for part in map(survey, layer.module.children()) for part in part if part.is_product]
    names = sorted(
        {_kernels(entry, product_plan(part), dtype, bool(part.module.shared_weights))[0] for part in products}
    )
    return _describe_moved(entry, layer, dtype, names, (None, None), [THROUGH_MEMORY] if names else [])


def _describe_moved(
    entry: Entry,
    layer: Layer,
    dtype: torch.dtype,
    names: Sequence[str],
    flops: tuple[int | None, int | None],
    reasons: Sequence[str],
) -> Entry:
    """Layers that touch each number a few times: what they must move, and no count of functions.

    names: of the kernels that take part. flops: forward and backward.
    """
    if layer.origin == "clebsch" and not names:
        entry = _on_torch(entry)
    entry, module = replace(entry, reasons=tuple(reasons)), layer.module
    given = [getattr(module, name, getattr(module, "irreps", None)) for name in ("irreps_in", "irreps_out")]
    if layer.kind == "Extract":
        given[1] = sum((Irreps(str(irreps)) for irreps in module.irreps_outs), Irreps(""))
    try:
        sizes = [Irreps(str(irreps)).dim for irreps in given]
    except ValueError:  # several outputs, or none that it tells
        return entry
    # Backward: the gradient of the output and the input are read, the gradient of the input is written.
    forward, backward = (dtype.itemsize * count for count in (sum(sizes), 2 * sizes[0] + sizes[1]))
    kernel = " + ".join([*names, "torch"])
    work = Work(flops[0], forward), Work(flops[1], backward)
    return replace(entry, passes=_passes((kernel,) * 2, work))


def _describe_reduced(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    plans = getattr(layer.module, "plans", None)
    if not plans:  # e3nn's
        return entry
    costs = [product_work(plan, dtype.itemsize, shared=True) for plan in plans]
    work = [
        Work(sum(cost.flops for cost in one), sum(cost.bytes for cost in one))
        for one in zip(*costs, strict=True)
    ]
    kernels = (_kernels(entry, plan, dtype, True) for plan in plans)
    names = (dict.fromkeys(one) for one in zip(*kernels, strict=True))
    reasons = [f"{len(plans)} products one after another, each written to memory"] if len(plans) > 1 else []
    reasons += dict.fromkeys(reason for plan in plans for reason in _reasons(entry, plan, dtype, True))
    return replace(entry, passes=_passes([" + ".join(one) for one in names], work), reasons=tuple(reasons))


def _describe_contraction(entry: Entry, layer: Layer, dtype: torch.dtype, _: float) -> Entry:
    module = layer.module
    sizes = sum(ir.dim for _, ir in module.irreps_in), sum(ir.dim for _, ir in module.irreps_out)
    counts = contraction_counts(module._table)
    work = contraction_work(counts, module.num_channels, sizes, dtype.itemsize)
    kernel = NONE if entry.backend == NONE else "lanes are channels"
    return replace(entry, passes=_passes((kernel,) * 2, work))


def _on_torch(entry: Entry) -> Entry:
    is_ours = entry.backend in (*KERNELS, NONE)
    return replace(entry, backend="torch", instruction_set=None) if is_ours else entry


_DESCRIBED = {
    "product": _describe_product,
    "SphericalHarmonics": _describe_harmonics,
    "Linear": _describe_linear,
    "Gate": _describe_gate,
    "Activation": _describe_activation,
    "Norm": _describe_norm,
    "NormActivation": _describe_norm_activation,
    "BatchNorm": _describe_batch_norm,
    "Dropout": _describe_dropout,
    "Extract": _describe_extract,
    "FullyConnectedNet": _describe_net,
    "ReducedTensorProducts": _describe_reduced,
    "SymmetricContraction": _describe_contraction,
}


def _limited(one: Pass, limits: Limits) -> Pass:
    memory = one.bytes / limits.bytes_per_second
    arithmetic = (one.flops or 0) / limits.flops_per_second
    least = max(memory, arithmetic)
    return replace(
        one,
        limit=None if least == 0 else "memory" if memory >= arithmetic else "arithmetic",
        least_seconds=least,
        share_of_arithmetic=None if one.flops is None or least == 0 else arithmetic / least,
    )


TIMED_SECONDS = 0.1


def _timed(entry: Entry, layer: Layer, dtype: torch.dtype, rows: int, edges_per_node: float) -> Entry:
    """The entry with the time of its forward pass, the quickest of those that fit a tenth of a second."""
    try:
        given = problem(layer, rows, edges_per_node=edges_per_node, dtype=np.float32)
        seconds = _seconds(given, dtype)
    except Unknown as reason:
        return replace(entry, reasons=(*entry.reasons, f"not timed: {reason}"))
    except Exception as error:  # whatever a user made of the layer
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return replace(entry, reasons=(*entry.reasons, f"not timed: {text}"))
    if not entry.passes:
        return entry
    forward, *others = entry.passes
    each = seconds / rows
    reached = None if forward.least_seconds is None else forward.least_seconds / each
    return replace(entry, passes=(replace(forward, seconds=each, reached=reached), *others))


def _seconds(given: Problem, dtype: torch.dtype) -> float:
    operands = [torch.from_numpy(operand).to(dtype) for operand in given.operands]
    best, end = float("inf"), None
    with torch.no_grad():
        given.call(*operands)
        while end is None or time.perf_counter() < end:
            start = time.perf_counter()
            end = end or start + TIMED_SECONDS
            given.call(*operands)
            best = min(best, time.perf_counter() - start)
    return best


# The table.

_COLUMNS = ("", "kernel", "flops", "bytes", "flops/byte", "limit", "at best", "share")
_TIMED = ("takes", "reached")
_RIGHT = ("flops", "bytes", "flops/byte", "at best", "share", "takes", "reached")
_WIDTH = 110


def _text(explanation: Explanation) -> Iterator[str]:
    facts = explanation.machine
    yield (
        f"clebsch {facts['clebsch']}, torch {facts['torch']}, {facts['processor'] or 'unknown processor'}, "
        f"{facts['instruction set']}, threads: {facts['threads']}"
    )
    for limits in explanation.limits:
        yield (
            f"measured limits: reads {_short(limits.bytes_per_second)}B/s, multiplies matrices in "
            f"{limits.dtype} at {_short(limits.flops_per_second)}flop/s"
        )
    if not explanation.entries:
        yield f"no layer of clebsch or e3nn in {explanation.subject}"
        return
    is_timed = any(one.seconds is not None for entry in explanation for one in entry.passes)
    columns = _COLUMNS + _TIMED * is_timed
    cells = [[_cells(one)[: len(columns)] for one in entry.passes] for entry in explanation]
    rows = [columns, *(line for lines in cells for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = _aligned(columns, columns, widths)
    yield from (head, "-" * len(head))
    for entry, lines in zip(explanation, cells, strict=True):
        yield _title(entry)
        yield from (_aligned(line, columns, widths) for line in lines)
        if entry.advice is not None:
            yield f"  + {entry.advice}"
        for reason in entry.reasons:
            yield textwrap.fill(reason, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    yield "flops, bytes, times: of a row, which is an edge of a convolution and a point of harmonics"
    if explanation.limits:
        yield "limit: what a row needs longer for; at best: that time; share: of the rate of matrix products"
    if is_timed:
        yield "takes: forward, calls included; reached: at best / takes, over 100 % where caches hold them"
    for entry in explanation:
        for text in (entry.source or {}).values():
            yield from ("", f"# Triton, for {entry.name or entry.layer}", *text.splitlines())


def _aligned(line: Sequence[str], columns: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for cell, column, width in zip(line, columns, widths, strict=True)
    )
    return "  " + "  ".join(aligned).rstrip()


def _title(entry: Entry) -> str:
    package = f"{entry.package} " * (entry.package != "clebsch")
    layer = f"{entry.name}: " * bool(entry.name) + package + entry.layer
    runs = entry.backend if entry.instruction_set is None else f"{entry.backend} {entry.instruction_set}"
    return f"{layer} ({entry.dtype}, {runs})"


def _cells(one: Pass) -> tuple[str, ...]:
    def shown(value: float | None, factor: float, form: str) -> str:
        return "" if value is None else form.format(factor * value)

    return (
        one.name,
        one.kernel,
        "" if one.flops is None else _short(one.flops).strip(),
        _short(one.bytes).strip(),
        shown(one.intensity, 1, "{:.3g}"),
        one.limit or "",
        shown(one.least_seconds, 1e9, "{:,.3g} ns" if (one.least_seconds or 0) < 1e-6 else "{:,.0f} ns"),
        shown(one.share_of_arithmetic, 100, "{:.0f} %"),
        shown(one.seconds, 1e9, "{:,.3g} ns" if (one.seconds or 0) < 1e-6 else "{:,.0f} ns"),
        shown(one.reached, 100, "{:.0f} %"),
    )


def _short(value: float) -> str:
    """Three digits and a prefix: 12600 is "12.6 k"."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


class _CallableModule(ModuleType):
    """`clebsch.explain` is this module once it is imported, and is called all the same."""

    def __call__(
        self,
        module: torch.nn.Module,
        *,
        rows: int | None = None,
        measure: bool = True,
        dtype: torch.dtype | None = None,
        edges_per_node: float = 40,
        source: bool = False,
    ) -> Explanation:
        return explain(
            module, rows=rows, measure=measure, dtype=dtype, edges_per_node=edges_per_node, source=source
        )

    __call__.__doc__ = explain.__doc__


sys.modules[__name__].__class__ = _CallableModule
