"""Block sizes and warps: the rule.

A lane of a kernel keeps `Source.values` numbers of 32 bits, and all lanes share `Source.common`. Threads take
4, 2 or 1 neighbouring lanes, as many as leave a thread within 224 numbers of both kinds, and no thread of a
warp idle. What lies in the lanes one after another (weights, scalars, all blocks of ir_mul, their gradients,
work space) is then loaded and stored 16 or 8 bytes at a time. Blocks of vectors in mul_ir are still loaded a
number at a time, by threads that begin further apart, so that an instruction touches more sectors; but what
does not depend on the lane, which is most instructions (harmonics, their sums with coefficients, what is
left of sums over lanes), is done once for all lanes of a thread. Counts: docs/triton.md. Not so forward over
rows, where as much is stored as is loaded (`Source.wide` is False): Triton rearranges numbers in shared
memory before it stores them, which in a convolution is once for a node.

A program takes as many lanes as there are, up to 4 warps of them. Kernels that sum over lanes take one warp:
sums stay within it. Threads that keep many numbers may take all registers that a thread can have: left alone,
the compiler for NVIDIA's spills some so that more warps run at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .source import Source

__all__ = ["Schedule", "rule"]

MOST_IN_THREAD, MANY_IN_THREAD = 224, 70


@dataclass(frozen=True)
class Schedule:
    """How a kernel is started: lanes of a program, its warps, and whether a thread may take all registers."""

    block: int
    num_warps: int
    all_registers: bool = False

    def options(self, is_nvidia: bool) -> dict[str, Any]:
        """What Triton is told."""
        limit = {"maxnreg": 255} if self.all_registers and is_nvidia else {}
        return {"num_warps": self.num_warps, "enable_fp_fusion": True, **limit}


def rule(source: Source, warp: int = 32) -> Schedule:
    """The schedule of a kernel on a device with `warp` threads in a warp."""
    if source.is_of_rows:
        return Schedule(4 * warp, 4, source.values > MANY_IN_THREAD)
    wide = 1
    wanted = _power_of_two(source.lanes)
    if source.wide:
        wide = next((n for n in (4, 2) if _takes(source, n, wanted // warp)), 1)
    most = wide * warp * (1 if source.reduces else 4)
    block = max(warp, min(wanted, most))
    return Schedule(block, max(1, min(4, block // (wide * warp))), wide * source.values > MANY_IN_THREAD)


def _takes(source: Source, lanes: int, most: int) -> bool:
    """Whether a thread takes so many lanes: its registers do, and masks and threads come out even."""
    few = lanes * source.values + source.common <= MOST_IN_THREAD
    return few and source.lanes % lanes == 0 and lanes <= most


def _power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()
