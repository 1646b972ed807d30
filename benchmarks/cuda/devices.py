"""Published limits of the GPUs that the kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """GB/s, Tflop/s with a multiply-add as two, KiB of shared memory of a multiprocessor.

    Bandwidth and peaks, without tensor cores: the maker's data sheets of SXM modules, A100 with 80 GB
    and H100, and its brief on the architecture of B200, as part of HGX at 1,000 W. Limits of a
    multiprocessor: the maker's table of compute capabilities.
    """

    name: str
    architecture: int
    bandwidth: float
    peak: dict[int, float]  # by bytes of a number
    shared: int
    warps: int = 64
    blocks: int = 32
    registers: int = 65536

    def resident_blocks(self, registers: int, shared: int, threads: int) -> int:
        """Blocks of threads that a multiprocessor has room for; shared: bytes a block, all in all."""
        warps = -(-threads // 32)
        of_warp = _up(registers * 32, 256)
        by_registers = self.registers // 4 // of_warp * 4 // warps  # each quarter has registers of its own
        by_shared = self.shared * 1024 // _up(shared + 1024, 128)  # the system takes one KiB
        return min(self.warps // warps, self.blocks, by_registers, by_shared)

    def occupancy(self, registers: int, shared: int, threads: int) -> float:
        warps = -(-threads // 32) * self.resident_blocks(registers, shared, threads)
        return round(warps / self.warps, 3)

    def balance(self, size: int) -> float:
        """Flops for each byte of memory at which both limits meet."""
        return self.peak[size] * 1e3 / self.bandwidth


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


DEVICES = (
    Device("A100", 80, 2039, {4: 19.5, 8: 9.7}, 164),
    Device("H100", 90, 3350, {4: 67, 8: 34}, 228),
    Device("B200", 100, 8000, {4: 80, 8: 40}, 228),
)
