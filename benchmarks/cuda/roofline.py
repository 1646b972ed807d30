"""docs/cuda-roofline.md: flops and bytes of each kernel, as its source has them, beside published limits."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from benchmarks.problems import DEGREE, fully_connected, local_edges, model
from benchmarks.published import UVW

from . import budget
from .devices import DEVICES, Device
from .second_cache import SecondCache

DOCUMENT = budget.REPOSITORY / "docs" / "cuda-roofline.md"
MODELS = ("mace-medium", "mace-large", "nequip-L")
STEPS = ("forward", "backward", "double backward")
TYPES = {4: "float", 8: "double"}
FLOORS = {"forward": 1.3, "backward": 1.6}  # moved over the least that is asked for
NODES = 20_000
# MB of the second cache, as published by the maker, and receivers at work at a time: four on each
# multiprocessor. Both caches are two halves, and it is not published when they hold the same lines.
CACHES = {"half of A100's": SecondCache(20_000_000, 4 * 108), "H100's": SecondCache(50_000_000, 4 * 132)}
INDICES = 24  # bytes an edge: its number, its sender, and a pass over the order

# As in csrc/cuda/tensor_product_channels.cu.
LANES, WARPS, MOST_SHARED = 32, 4, 96 << 10
PAIR_VALUES = 1024  # of tensor_product_rows.cu
FAN_VALUES = {4: 4608, 8: 2304}  # of tensor_product_fan.h, for degrees to 4


@dataclass(frozen=True)
class Work:
    """Of an edge or a point: flops, least bytes (operands and results once), the bytes that are moved, those
    of them that are gathered, and what passes by between two gathers.
    """

    flops: float
    least: float
    moved: float
    gathered: float = 0
    passing: float = 0


class Problem:
    """Lines of the tables."""

    def by_rows(self, step: str) -> bool:
        """By kernels whose bytes the tables do not know: more than the least."""
        return False


@dataclass(frozen=True)
class Convolution(Problem):
    """A channelwise convolution, an edge at a time, and the kernels that it takes."""

    name: str
    size: int  # bytes of a number
    steps = STEPS

    @cached_property
    def plan(self):
        from clebsch.algebra.plan import ProductPlan

        return ProductPlan.from_instructions(*model(self.name).arguments)

    @cached_property
    def _paths(self) -> list[tuple[int, int, int]]:
        """Channels, components of x, and cells (components of x and the output) of each path."""
        plan = self.plan
        blocks = [(plan.irreps_in1[p.i_in1], plan.irreps_out[p.i_out]) for p in plan.paths]
        return [(x.mul, x.ir.dim, x.ir.dim * out.ir.dim) for x, out in blocks]

    def work(self, step: str) -> Work:
        cells, components = (sum(mul * part[n] for mul, *part in self._paths) for n in (1, 0))
        plan, weights = self.plan, self.plan.weight_numel
        dim1, dim2 = plan.irreps_in1.dim, plan.irreps_in2.dim
        own, node = plan.irreps_out.dim / DEGREE, dim1 / DEGREE  # of a receiver (out, g), of a sender (x, gx)
        # Rows of senders that are read, which is once at least, and written; rows of them that are gathered,
        # and what else is moved: rows of gx, which their senders sum, and weights that a second pass reads.
        flops, least, read, written, gathered, more = {
            "forward": (2 * cells + components, weights + dim2 + own, 1, 0, 1, 0),
            "backward": (4 * cells + 5 * components, 2 * weights + 2 * dim2 + own, 1, 1, 1, 2 * dim1),
            "double backward": (
                10 * cells + 15 * components,
                3 * weights + 4 * dim2 + 2 * own,
                2,
                1,
                4,
                2 * weights + 2 * dim1,
            ),
        }[step]
        passing = self.size * least + INDICES
        bytes_least = passing + self.size * (read + written) * node
        # Sums of senders that windows of gx go on with.
        again = written * 2 * node * (self.windows() - 1)
        moved = bytes_least + self.size * (gathered * dim1 - read * node + more + again)
        rows = self.size * dim1 if written else 0
        return Work(flops, bytes_least, moved, self.size * gathered * dim1, passing + rows)

    def windows(self) -> int:
        """In which the rows of gx of all edges are made and summed, as csrc/cuda/run_product.cpp has it."""
        edges = NODES * DEGREE
        weights = edges * self.plan.weight_numel * self.size
        return math.ceil(edges * self.plan.irreps_in1.dim * self.size / max(256 << 20, weights // 3))

    def kernels(self, step: str) -> Iterator[tuple[str, int]]:
        """Name in the budget and shared memory of a block; what sums rows afterwards is left out."""
        if step != "backward":
            yield self._kernel("forward", step != "forward")
        if step != "forward":
            yield self._kernel("backward", step != "backward")

    def _kernel(self, side: str, tangent: bool) -> tuple[str, int]:
        packed = 16 // self.size
        widest = max(block.mul for block in (*self.plan.irreps_in1, *self.plan.irreps_out))
        several = [n for n in (4, 2) if n <= packed and widest >= LANES * packed / 2]
        channels = next((n for n in several if self._shared(side, tangent, n) <= MOST_SHARED), 1)
        shared = self._shared(side, tangent, channels)
        type_, tangents = TYPES[self.size], str(tangent).lower()
        if shared > MOST_SHARED:
            return kernel_of_rows(side, tangent, self.size)
        return f"channels_{side}<{type_}, {channels}, {tangents}>", shared

    def by_rows(self, step: str) -> bool:
        return any(name.startswith("rows") for name, _ in self.kernels(step))

    def _shared(self, side: str, tangent: bool, channels: int) -> int:
        """Bytes of a block, as forward_bytes and backward_bytes have them."""
        used_in1, used_out = ({getattr(p, i) for p in self.plan.paths} for i in ("i_in1", "i_out"))
        in1 = sum(self.plan.irreps_in1[i].ir.dim for i in used_in1)
        out = sum(self.plan.irreps_out[i].ir.dim for i in used_out)
        dense = sum(cells for *_, cells in self._paths)
        each = WARPS * (1 + tangent + (side == "backward"))
        tiles = (out + each * in1) * LANES * channels * self.size
        return tiles + each * dense * self.size + (8 * WARPS if side == "forward" else 0)


def kernel_of_rows(side: str, tangent: bool, size: int, more: int = 0) -> tuple[str, int]:
    """P, and Q backward, with their tangents; more: values."""
    values = PAIR_VALUES * (1 + tangent) * (1 + (side == "backward")) + more
    return f"rows_{side}<{TYPES[size]}, {str(tangent).lower()}>", values * size


@dataclass(frozen=True)
class Dense(Problem):
    """A fully connected product with weights of each row."""

    name: str
    size: int
    steps = STEPS

    @cached_property
    def plan(self):
        from clebsch.algebra.plan import ProductPlan

        problem = fully_connected(self.name, *UVW[self.name][:3])
        return ProductPlan.from_instructions(*problem.arguments)

    def work(self, step: str) -> Work:
        plan = self.plan
        operands = plan.irreps_in1.dim + plan.irreps_in2.dim + plan.weight_numel
        fused = sum(
            plan.irreps_in1[p.i_in1].mul * plan.irreps_in2[p.i_in2].mul * out.mul * out.ir.dim
            for p in plan.paths
            for out in [plan.irreps_out[p.i_out]]
        )
        times, inputs, outputs, again = {
            "forward": (2, 1, 1, 0),
            "backward": (4, 2, 1, 0),
            "double backward": (10, 3, 2, 2),
        }[step]
        least = self.size * (inputs * operands + outputs * plan.irreps_out.dim)
        return Work(times * fused, least, least + self.size * again * plan.weight_numel)

    def kernels(self, step: str) -> Iterator[tuple[str, int]]:
        if step != "backward":
            yield kernel_of_rows("forward", step != "forward", self.size, FAN_VALUES[self.size])
        if step != "forward":
            yield kernel_of_rows("backward", step != "backward", self.size)


@dataclass(frozen=True)
class Harmonics(Problem):
    """Degrees 0 to 3 of a point."""

    size: int
    l_max: int = 3
    steps = STEPS

    @property
    def name(self) -> str:
        return f"harmonics to l = {self.l_max}"

    def work(self, step: str) -> Work:
        n = (self.l_max + 1) ** 2
        flops, numbers = {
            "forward": (7 * n, 3 + n),
            "backward": (13 * n, 6 + n),
            "double backward": (29 * n, 9 + 2 * n),
        }[step]
        return Work(flops, self.size * numbers, self.size * numbers)

    def kernels(self, step: str) -> Iterator[tuple[str, int]]:
        columns = (self.l_max + 1) ** 2
        name = f"unrolled_harmonics<{TYPES[self.size]}, {self.l_max}, {STEPS.index(step)}>"
        yield name, 128 * (columns | 1) * self.size


@dataclass(frozen=True)
class Counted(Problem):
    """One of the others of docs/cuda.md: of each step its flops, and the numbers that it moves once."""

    name: str
    size: int
    counts: dict[str, tuple[float, float]]

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(self.counts)

    def work(self, step: str) -> Work:
        flops, numbers = self.counts[step]
        return Work(flops, self.size * numbers, self.size * numbers)

    def kernels(self, step: str) -> Iterator[tuple[str, int]]:
        return iter(())


def counted(size: int) -> Iterator[Counted]:
    # A channel of a node: 16 components in, 4 out; of degrees to 3 and correlation 3.
    contraction = {
        "forward": (1956, 16 + 4),
        "backward": (3076, 2 * 16 + 4),
        "double backward": (6200, 3 * 16 + 2 * 4),
    }
    yield Counted("contraction to 0e + 1o", size, contraction)
    components, channels = 16, 128
    linear = 2 * components * channels**2, 2 * components * channels
    yield Counted("linear 128x, l <= 3", size, {"forward": linear, "gradient of weights": linear})
    yield Counted("gate, a vector", size, {"forward": (3, 2 * 3 + 1), "backward": (3 * 3, 3 * 3 + 2)})
    yield Counted("silu", size, {"forward": (3, 2), "backward": (6, 3), "double backward": (13, 5)})


def attainable(work_bytes: float, flops: float, device: Device, size: int) -> float:
    """The share of the peak that memory alone lets through."""
    return min(1.0, flops / work_bytes / device.balance(size))


def _bound(work: Work, by_rows: bool, device: Device, size: int) -> str:
    bytes_ = (work.least if by_rows else work.moved, work.least)
    low, high = (attainable(count, work.flops, device, size) for count in bytes_)
    if low >= 1:
        return "peak"
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low * 100:.0f}-{high:.0%}"


def _rows() -> Iterator[Convolution | Dense | Harmonics | Counted]:
    for size in TYPES:
        for name in MODELS:
            yield Convolution(name, size)
        yield Dense("DiffDock-L=2", size)
        yield Harmonics(size)
        yield from counted(size)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bounds(size: int) -> str:
    rows = []
    for problem in _rows():
        for step in problem.steps if problem.size == size else ():
            work, by_rows = problem.work(step), problem.by_rows(step)
            low, high = (f"{work.flops / value:.1f}" for value in (work.moved, work.least))
            rows.append(
                [
                    f"{problem.name}, {step}",
                    *(f"{round(value):,}" for value in (work.flops, work.least)),
                    "more" if by_rows else f"{round(work.moved):,}",
                    high if by_rows or low == high else f"{low}-{high}",
                    *(_bound(work, by_rows, device, size) for device in DEVICES),
                ]
            )
    head = ["", "flops", "least bytes", "moved", "flops / byte", *(device.name for device in DEVICES)]
    return _table(head, rows)


def _ratios() -> str:
    sorted_in_space = local_edges(NODES).senders.view(NODES, DEGREE)
    numbers = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    at_random = numbers[sorted_in_space[numbers.argsort()]]
    rows = []
    for name in MODELS:
        problem = Convolution(name, 4)
        for step, floor in FLOORS.items():
            work = problem.work(step)

            def ratio(hits: float, work: Work = work) -> str:
                return f"{(work.moved - hits * work.gathered) / work.least:.2f}"

            needed = max(0.0, (work.moved - floor * work.least) / work.gathered)
            in_caches = [
                ratio(cache.hits(senders, work.gathered, work.passing))
                for senders in (sorted_in_space, at_random)
                for cache in CACHES.values()
            ]
            rows.append([f"{name}, {step}", f"{floor:.2f}", ratio(0), f"{needed:.0%}", *in_caches])
    found = [f"{order}, {cache}" for order in ("sorted in space", "at random") for cache in CACHES]
    return _table(["", "asked for", "no gather hits", "gathers that have to hit", *found], rows)


def _room(kernels: budget.Kernels) -> str:
    rows = []
    for problem in _rows():
        for step in problem.steps:
            for name, shared in problem.kernels(step):
                warps = []
                for device in DEVICES:
                    needs = kernels[name][str(device.architecture)]
                    blocks = device.resident_blocks(
                        needs["registers"], needs["shared"] + shared, needs["threads"]
                    )
                    warps.append(f"{blocks * needs['threads'] // 32} ({needs['registers']})")
                rows.append([f"{problem.name}, {step}", f"`{name}`", f"{shared / 1024:.1f}", *warps])
    return _table(["", "kernel", "shared memory, KiB", *(device.name for device in DEVICES)], rows)


def text() -> str:
    read = budget.read()
    limits = _table(
        ["", *(device.name for device in DEVICES)],
        [
            ["bandwidth, GB/s", *(f"{device.bandwidth:,}" for device in DEVICES)],
            *(
                [f"peak, {name}, Tflop/s", *(f"{device.peak[size]:g}" for device in DEVICES)]
                for size, name in TYPES.items()
            ),
            *(
                [
                    f"flops / byte where they meet, {name}",
                    *(f"{device.balance(size):.1f}" for device in DEVICES),
                ]
                for size, name in TYPES.items()
            ),
        ],
    )
    return f"""# What memory lets the kernels for GPUs reach

**Computed, not measured.** No kernel has run on a GPU, and no time is stated. Printed by
`make cuda-budget` from the plans, the formulas of [cuda.md](cuda.md) and `benchmarks/cuda/budget.json` (nvcc
{read["nvcc"]}). A bound says what no kernel that moves these bytes can exceed, not what ours reaches.

## Limits

{limits}

As published by the maker: data sheets of the SXM modules (A100 with 80 GB, H100) and the brief on the
architecture of B200, as part of HGX at 1,000 W; other sources put its peaks at 75 and 37. A multiply-add
is two flops, tensor cores are left out. A kernel of which not all arithmetic is multiply-adds cannot
reach the peak.

## Bounds

For an edge of a convolution with {DEGREE} edges a node, for a point, a channel of a node (contraction), a
row (DiffDock, linear), a copy (gate), a number (silu). *Least*: each operand and result once. *Moved*: also
what is gathered for senders, if no gather hits a cache, what a second pass reads again, and sums of senders
that windows of {NODES * DEGREE:,} edges go on with. Flops are those of the source, zeros in M included;
making M from y (at most two in a hundred) and sums over lanes are left out, and weights that all rows or
nodes share are in a cache. Under the name of a GPU: **at most this share of its peak**, from the bytes moved
to the least; "peak" where memory is not the bound: contractions load an operand from shared memory for each
multiply-add, and linear layers use no tensor cores. *More*: sums or their tangents do not fit shared memory
and the kernel of rows runs, which moves more than is counted here; its bound is that of the least bytes.

### float32

{_bounds(4)}

### float64

{_bounds(8)}

## Bytes moved over the least

In float32, per edge. What a gather finds in the second cache is not moved; rows of gx are written and read
by the sum of their sender in any case, and sums of all senders once more for every window but the first.
How many gathers hit depends on how nodes are numbered: the last
columns are from a model of a cache (`benchmarks/cuda/second_cache.py`), which drops what was used least
recently, and in which all that passes by takes room, for {NODES:,} nodes on a lattice with {DEGREE}
neighbours. Sorted in space, as atoms of a crystal or of a molecule are, or as a program can sort them, the
kernels move what is asked for; with nodes numbered at random, large graphs find too little.

{_ratios()}

## Warps that a multiprocessor has room for

Of {DEVICES[0].warps}; in brackets the registers of a thread. From registers, shared memory of a block at
that plan, and the limits of the architecture. The sums of senders' rows that follow a backward take
little of either.

{_room(read["kernels"])}
"""


def write() -> int:
    DOCUMENT.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(write())
