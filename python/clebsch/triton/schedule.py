"""Block sizes and warps: the rule.

A lane of a kernel keeps `Source.values` numbers of 32 bits. Threads take 4, 2 or 1 neighbouring lanes, for
loads of 16 bytes where memory allows, as many as leave a thread within 128 numbers; where neighbours
in the lanes are not neighbours in memory (components innermost, several of them), 1: wide loads are not to be
had, and loads of different widths would be brought together through shared memory. A program takes as many
lanes as there are, up to 4 warps of them. Kernels that sum over lanes take one warp: sums stay within it.
Threads that keep many numbers may take all registers that a thread can have: left alone, the compiler for
NVIDIA's spills some so that more warps run at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .source import Source

__all__ = ["Schedule", "rule"]

MOST_IN_THREAD, MANY_IN_THREAD = 128, 80


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
        return Schedule(4 * warp, 4)
    wide = 1
    if source.contiguous:
        wide = next((n for n in (4, 2) if n * source.values <= MOST_IN_THREAD and source.lanes % n == 0), 1)
    wanted = _power_of_two(source.lanes)
    most = wide * warp * (1 if source.reduces else 4)
    block = max(warp, min(wanted, most))
    return Schedule(block, max(1, min(4, block // (wide * warp))), wide * source.values > MANY_IN_THREAD)


def _power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()
