"""What a layer must compute and move for one row: useful floating point operations and least bytes.

A multiply-add is two operations, and so is a product or a sum on its own here, since it takes as long: what
is counted can be held against the rate of matrix products. For a product of irreps the count is that of the
order of contraction that the kernels use (docs/kernels.md): the coupling of path p meets y first,
M_v[m1, m3] = sum_m2 C y_v[m2]. With t the terms (non-zero coupling coefficients) of a path, s the non-zero
cells (m1, m3) of its M, U, V and W the copies in its three blocks, n the pairs (u, v) that its mode couples,
and a = 2 l1 + 1, b = 2 l3 + 1, a row takes, in multiply-adds,

    forward    V t + n (s + a)                       uvu, uvv, uvuv, uvu<v; without weights V t + n s
               V t + n s + n W b                     uvw, uuw, u<vw; for uvw n W a + V W s + V t if less
               2 U t + U a                           uuu: C x y added is a product and a multiply-add
    backward   2 V t + n (2 s + 3 a)                 without weights 2 V t + 2 n s
               2 V t + 3 n s + 2 n W b                  with weights for all rows, uvw takes if that is less
               2 V t + 2 V W s + 3 n W a, or this with x and y having changed places
               4 U t + 3 U a

where backward is the gradients of x, y and the weights together: M is made again, x M's product with the
gradient is shared by two of them. Each operand and each result is moved once, whatever stays in cache is not
counted; blocks that no path uses are not read, and gradients have the size of what they belong to. Weights
that all rows share count nothing for a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .algebra.plan import Path, ProductPlan

__all__ = ["Work", "contraction_work", "harmonics_work", "linear_work", "product_work"]

DENSE = ("uvw", "uuw", "u<vw")
INDEX_BYTES = 8


@dataclass(frozen=True)
class Work:
    """Of one row: floating point operations (None if not counted) and bytes."""

    flops: int | None
    bytes: int

    @property
    def intensity(self) -> float | None:
        """Operations a byte; None where they are not counted."""
        return None if self.flops is None or self.bytes == 0 else self.flops / self.bytes


def product_work(
    plan: ProductPlan,
    itemsize: int,
    *,
    shared: bool,
    edges_per_node: float | None = None,
    is_square: bool = False,
) -> tuple[Work, Work]:
    """Forward and backward of a product over rows, or over the edges of a graph.

    itemsize: bytes of a number. shared: whether one weight serves all rows. edges_per_node: for a graph; an
    edge then reads y, its weights and the index of its sender (8 bytes), and of a node's row of x and of the
    output the part that falls to one of its edges. is_square: x is y too, and is moved once.
    """
    counts = [_multiply_adds(plan, path, shared) for path in plan.paths if 0 not in _copies(plan, path)]
    forward, backward = (2 * sum(count[i] for count in counts) for i in range(2))
    x, y, out = (_used(plan, slot) for slot in range(3))
    if is_square:
        x, y = max(x, y), 0
    weight = 0 if shared else plan.weight_numel
    whole_out = plan.irreps_out.dim  # what no path leads to is written too: zeros
    per_node, index = (1.0, 0) if edges_per_node is None else (1 / edges_per_node, INDEX_BYTES)
    moved_forward = itemsize * ((x + whole_out) * per_node + y + weight) + index
    # grad_out, x, y and weight are read, the gradients of the latter written.
    moved_backward = itemsize * ((2 * x + out) * per_node + 2 * y + 2 * weight) + index
    return Work(forward, round(moved_forward)), Work(backward, round(moved_backward))


def _copies(plan: ProductPlan, path: Path) -> tuple[int, int, int]:
    return tuple(block.mul for block in plan.blocks(path))


def _used(plan: ProductPlan, slot: int) -> int:
    """Components of the blocks of x (0), y (1) or the output (2) that a path uses."""
    irreps = (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)[slot]
    blocks = {(path.i_in1, path.i_in2, path.i_out)[slot] for path in plan.paths}
    return sum(irreps[i].dim for i in blocks)


def _multiply_adds(plan: ProductPlan, path: Path, shared: bool) -> tuple[int, int]:
    """Of one path, forward and backward: the table at the head of this file."""
    u, v, w = _copies(plan, path)
    entries = plan.entries(path)
    t, s = len(entries), len({(entry.m1, entry.m3) for entry in entries})
    ir1, _, ir3 = (block.ir for block in plan.blocks(path))
    a, b = (ir1.dim, ir3.dim) if path.has_weight else (0, 0)
    if path.mode == "uuu" and v > 1:
        return 2 * u * t + u * a, 4 * u * t + 3 * u * a
    triangle = path.mode in ("uvu<v", "u<vw")
    n = u * (u - 1) // 2 if triangle else u if path.mode in ("uuw", "uuu") else u * v
    made = v * t
    if path.mode in DENSE and path.has_weight:
        forward = made + n * s + n * w * b
        if path.mode == "uvw":
            forward = min(forward, made + n * w * a + v * w * s)
        backward = 2 * made + 3 * n * s + 2 * n * w * b
        if path.mode == "uvw" and shared:
            made_of_x, ir2 = u * t, plan.blocks(path)[1].ir
            cells = len({(entry.m2, entry.m3) for entry in entries})
            forward = min(forward, made_of_x + n * w * ir2.dim + u * w * cells)
            backward = min(
                backward,
                2 * made + 2 * v * w * s + 3 * n * w * a,
                2 * made_of_x + 2 * u * w * cells + 3 * n * w * ir2.dim,
            )
        return forward, backward
    return made + n * (s + a), 2 * made + n * (2 * s + 3 * a)


def harmonics_work(degrees: Sequence[int], itemsize: int, *, normalize: bool) -> tuple[Work, Work]:
    """Forward and backward of spherical harmonics of one point.

    Forward, in multiply-adds, with the pole y, t = x^2 + z^2 and c_m + i s_m = (z + i x)^m: 2 for t, 4 for
    each m >= 2; for each l up to the largest the Legendre recurrence takes 5 for m <= l - 2 and 2 for m = l -
    1; then one for each component with m != 0; 8 to normalise (squares, root, division, scaling). The
    backward pass moves 6 numbers beside its gradients; its operations are not counted.
    """
    l_max, columns = max(degrees, default=0), sum(2 * l + 1 for l in degrees)
    count = sum(2 + 5 * (l - 1) for l in range(1, l_max + 1)) + 4 * max(l_max - 1, 0)
    count += sum(2 * l for l in degrees) + (2 if l_max > 1 else 0)
    count += 8 if normalize and l_max > 0 else 0
    return Work(2 * count, itemsize * (3 + columns)), Work(None, itemsize * (6 + columns))


def linear_work(
    products: Sequence[tuple[int, int, int]], sizes: tuple[int, int], weights: int, itemsize: int
) -> tuple[Work, Work]:
    """Forward and backward of matrix products over rows.

    products: (inputs, outputs, components) of each, which takes inputs outputs components multiply-adds
    forward and twice as many backward (gradients of features and weights). sizes: lengths of a row in and
    out. weights: those of each row, 0 where they are shared.
    """
    flops = 2 * sum(inputs * outputs * components for inputs, outputs, components in products)
    length_in, length_out = sizes
    forward = itemsize * (length_in + length_out + weights)
    return Work(flops, forward), Work(2 * flops, forward + itemsize * (length_in + weights))


def contraction_work(
    counts: Mapping[str, int], channels: int, sizes: tuple[int, int], itemsize: int
) -> tuple[Work, Work]:
    """Forward and backward of a symmetric contraction of one node.

    counts: those of its table, for each channel (csrc/cpu/symmetric_contraction.inl.h): entries E, groups G,
    terms T, pairs S and products N take E + G + S + N multiply-adds forward, and backward 2 E + G + 2 T + 3 S
    + 2 N, for the gradients of features and of weights. sizes: components of a channel in and out. Weights
    belong to species and count nothing for a node.
    """
    e, g, t, s, n = (counts[name] for name in ("entries", "groups", "terms", "pairs", "products"))
    length_in, length_out = sizes
    return (
        Work(2 * channels * (e + g + s + n), itemsize * channels * (length_in + length_out)),
        Work(
            2 * channels * (2 * e + g + 2 * t + 3 * s + 2 * n),
            itemsize * channels * (2 * length_in + length_out),
        ),
    )
