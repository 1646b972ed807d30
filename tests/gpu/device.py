"""Where these tests run: on a GPU or, with ``pytest --emulated``, dry, on the emulator in the CPU's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import emulation

__all__ = ["DEVICE", "DRY", "beside", "captured", "here", "only_there", "there"]

DRY = emulation.enabled()
DEVICE = "cpu" if DRY else "cuda"
only_there = pytest.mark.skipif(DRY, reason="needs an NVIDIA GPU: about what only torch on one does")


def there(tensor: Tensor) -> Tensor:
    """A copy that lies in the device's memory as the tensor does here."""
    return emulation.there(tensor, DEVICE)


def here(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(result.detach().cpu() for result in results)


@contextmanager
def beside() -> Iterator[None]:
    """On a stream of its own, which waits for the one before and is waited for."""
    if DRY:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def captured(step: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
    """The results of a step in a CUDA graph, and what replays it. Dry: of a step while no table
    may be made, and another step: what is captured, and what it writes to, is not tried."""
    with beside():
        step()  # plans are copied at first use
    if DRY:
        with emulation.captured():
            found = step()
        return found, lambda: [result.copy_(new) for result, new in zip(found, step(), strict=True)] and None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    return found, graph.replay
