"""From source to a kernel that runs. The only file that imports Triton."""

from __future__ import annotations

import functools
import hashlib
import itertools
import linecache
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from . import autotune
from .schedule import Schedule, rule
from .source import MOST_TILES, Source, Table

__all__ = ["compiled", "launch", "require_triton"]

_ROOMS = {"cuda": torch.cuda, "xpu": torch.xpu}
"""Where torch keeps what it knows of the devices of a kind."""


@functools.cache
def require_triton() -> Any:
    """The module triton. ImportError, with the remedy, if it is not installed."""
    try:
        import triton
    except ImportError as error:
        raise ImportError(
            f"clebsch: no kernels for tensors on a GPU ({error}). Install 'clebsch[triton]' or, for NVIDIA's,"
            " build the compiled ones with CLEBSCH_CUDA=ON and nvcc; 'clebsch info' says what there is"
        ) from error
    return triton


@functools.lru_cache(maxsize=4096)
def compiled(source: Source) -> Any:
    """The kernel of a source, which Triton compiles at its first launch and keeps on disk."""
    triton = require_triton()
    import triton.language as tl

    # Triton reads the text of a function by its file: linecache knows it, and errors show the lines.
    file = f"<clebsch {source.name} {hashlib.sha256(source.text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(source.text), None, source.text.splitlines(keepends=True), file)
    room = {"triton": triton, "tl": tl, "__name__": "clebsch.triton.generated"}
    exec(compile(source.text, file, "exec"), room)
    return room[source.name]


def launch(source: Source, owners: int, arguments: Mapping[str, Any]) -> None:
    """Run a kernel for each of `owners` and all of its tiles; nothing where there are none."""
    if owners == 0:
        return
    device, warp = _device(arguments), _warp(arguments)
    tables = _table(source.table, device, _number(arguments)) if source.table else {}
    given = {name: tables[name] if name in tables else arguments[name] for name in source.arguments}

    def start(schedule: Schedule) -> None:
        if source.reduces and schedule.block != by_rule.block:
            raise AssertionError("pieces of sums were counted for other tiles")  # `tiles`
        programs = -(-owners // schedule.block) if source.is_of_rows else owners
        if programs >= 1 << 31:
            raise NotImplementedError(
                f"clebsch: a Triton kernel takes at most {(1 << 31) - 1} rows, got {programs}; split the rows"
            )
        count = max(1, _tiles(source, schedule))
        layers = -(-count // MOST_TILES)  # what `Writer.tile` makes of two axes
        options = schedule.options(is_nvidia=device.type == "cuda" and torch.version.hip is None)
        with _on(device):
            compiled(source)[(programs, -(-count // layers), layers)](
                **given, BLOCK=schedule.block, **options
            )

    by_rule = rule(source, warp)
    if not (autotune.enabled() and device.type in _ROOMS):
        start(by_rule)
        return
    from triton.testing import do_bench

    def time(schedule: Schedule) -> float:
        with _on(device):
            return do_bench(lambda: start(schedule), warmup=5, rep=20, return_mode="median")

    start(autotune.tuned(source, _ROOMS[device.type].get_device_name(device), warp, time))


@functools.lru_cache(maxsize=64)
def _table(table: Table, device: torch.device, number: torch.dtype) -> dict[str, torch.Tensor]:
    """A table as kernels read it, row after row."""
    entries = [entry for row in table for entry in row]
    begins = list(itertools.accumulate(map(len, table), initial=0))
    with torch.inference_mode(False):
        return {
            "begins": torch.tensor(begins, dtype=torch.int32, device=device),
            "components": torch.tensor([e[:3] for e in entries], dtype=torch.int32, device=device),
            "coefficients": torch.tensor([e[3] for e in entries], dtype=number, device=device),
        }


def _number(arguments: Mapping[str, Any]) -> torch.dtype:
    """What kernels compute in."""
    doubles = (value.dtype == torch.float64 for value in arguments.values() if torch.is_tensor(value))
    return torch.float64 if any(doubles) else torch.float32


def tiles(source: Source, arguments: Mapping[str, Any]) -> int:
    """How many tiles a launch has, of a kernel that sums over lanes: trials leave it its block."""
    return _tiles(source, rule(source, _warp(arguments)))


def _tiles(source: Source, schedule: Schedule) -> int:
    return -(-source.lanes // schedule.block)


def _warp(arguments: Mapping[str, Any]) -> int:
    """Threads in a warp of the device at hand."""
    return _warp_of(_device(arguments))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton starts a kernel on the current device and its stream, wherever the operands are."""
    return _ROOMS[device.type].device(device) if device.type in _ROOMS else nullcontext()


def _device(arguments: Mapping[str, Any]) -> torch.device:
    return next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))


@functools.cache
def _warp_of(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).warp_size
    return 32
