"""Where functions run and how their time is taken: `Cpu` by a clock, `Cuda` by events on the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from .machine import installed, isa_in_use

if TYPE_CHECKING:
    from .harness import Floor

Call = Callable[[], object]


class Device(Protocol):
    """`sample`: seconds that a timing takes at least; `share`: of published sizes, which are made for GPUs,
    what is measured; `is_cold`: no call finds in a cache what the call before left."""

    name: str
    sample: float
    share: float
    is_cold: bool

    def missing(self) -> list[str]:
        """What keeps every benchmark from running."""

    def refuses(self, benchmark: ModuleType) -> str:
        """Why this benchmark does not run, or ""."""

    def ready(self, call: Call) -> tuple[Call, str]:
        """What is timed in the place of `call`, and what must be known of it, or ""."""

    def seconds(self, call: Call, repeats: int = 1) -> float:
        """Of one call, the mean of `repeats`."""

    def held(self, floor: Floor | None, isa: str = "avx512") -> Floor | None:
        """The floor where it was set for what runs (`isa`: "" for any), none otherwise."""

    def describe(self) -> dict[str, object]:
        """What the description of the machine does not say."""

    def title(self, machine: dict[str, object]) -> str:
        """For the table."""


class Cpu:
    """Repeated calls find in the caches what an untimed one before them brought back."""

    name, sample, share, is_cold = "cpu", 0.010, 0.02, False

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def missing(self) -> list[str]:
        return []

    def refuses(self, benchmark: ModuleType) -> str:
        return ""

    def ready(self, call: Call) -> tuple[Call, str]:
        return call, ""

    def seconds(self, call: Call, repeats: int = 1) -> float:
        if repeats > 1:
            call()
        start = self.clock()
        for _ in range(repeats):
            call()
        return (self.clock() - start) / repeats

    def held(self, floor: Floor | None, isa: str = "avx512") -> Floor | None:
        import torch

        return floor if not isa or (isa_in_use(), torch.get_num_threads()) == (isa, 1) else None

    def describe(self) -> dict[str, object]:
        return {}

    def title(self, machine: dict[str, object]) -> str:
        return f"{machine['cpu']}, {machine['isa']}, {machine['threads']} thread(s)"


class Cuda:
    """Every call is a replay of a CUDA graph where it can be captured, between two events, caches emptied
    before: no time of Python or of launches, operands come from memory. No floors: none was measured."""

    name, sample, share, is_cold = "cuda", 0.002, 1.0, True

    def __init__(self, gpu: Gpu | None = None) -> None:
        self.gpu = gpu or TorchGpu()

    def missing(self) -> list[str]:
        from clebsch import backend

        return backend.cuda_missing()

    def refuses(self, benchmark: ModuleType) -> str:
        operators = getattr(benchmark, "OPERATORS", None)
        if operators is None:
            return "it measures the processor"
        lacking = [name for name in operators if not self.gpu.has_kernel(name)]
        return f"{', '.join(lacking)}: no kernel for GPUs" if lacking else ""

    def ready(self, call: Call) -> tuple[Call, str]:
        try:
            return self.gpu.capture(call), ""
        except Exception as error:  # whatever a peer does that cannot be captured
            return call, f"not in a CUDA graph ({first_line(error)})"

    def seconds(self, call: Call, repeats: int = 1) -> float:
        laps = []
        for _ in range(repeats):
            self.gpu.flush()
            start = self.gpu.event()
            call()
            laps.append((start, self.gpu.event()))
        self.gpu.wait()
        return 1e-3 * sum(start.elapsed_time(end) for start, end in laps) / repeats

    def held(self, floor: Floor | None, isa: str = "avx512") -> Floor | None:
        return None

    def describe(self) -> dict[str, object]:
        from .peers import PEERS

        return {"gpu": self.gpu.describe(), "peers": installed(peer.package for peer in PEERS)}

    def title(self, machine: dict[str, object]) -> str:
        return str(machine["gpu"]["name"])


DEVICES: dict[str, Callable[[], Device]] = {"cpu": Cpu, "cuda": Cuda}


class Event(Protocol):
    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""


class Gpu(Protocol):
    """What `Cuda` needs of one."""

    def has_kernel(self, operator: str) -> bool:
        """Of clebsch."""

    def capture(self, call: Call) -> Call:
        """What replays the kernels of `call`; any error if it cannot be captured."""

    def flush(self) -> None:
        """Empties the second cache, in the order of calls."""

    def event(self) -> Event:
        """Recorded where calls so far end."""

    def wait(self) -> None:
        """For all that was called."""

    def describe(self) -> dict[str, object]: ...


class TorchGpu:
    """torch's current device. Nothing of it is touched before the first call."""

    WARM = 3  # calls before a capture: plans copy their tables, libraries choose their kernels

    def __init__(self) -> None:
        self._ballast = None

    def has_kernel(self, operator: str) -> bool:
        import torch

        from clebsch import ops  # noqa: F401  defines what is asked for

        return torch._C._dispatch_has_kernel_for_dispatch_key(f"clebsch::{operator}", "CUDA")

    def capture(self, call: Call) -> Call:
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def flush(self) -> None:
        import torch

        if self._ballast is None:
            size = 2 * torch.cuda.get_device_properties().L2_cache_size
            self._ballast = torch.empty(size, dtype=torch.uint8, device="cuda")
        self._ballast.zero_()

    def event(self) -> Event:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()

    def describe(self) -> dict[str, object]:
        import torch

        properties = torch.cuda.get_device_properties()
        return {
            "name": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "bytes": properties.total_memory,
            "L2 cache": properties.L2_cache_size,
            "CUDA of torch": torch.version.cuda,
        }


def first_line(error: BaseException) -> str:
    """Of what it says, with its type, to stand in a table."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
