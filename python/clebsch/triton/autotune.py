"""Blocks and warps by trial, for those who ask for it: CLEBSCH_TRITON_AUTOTUNE=1.

The first launch of a kernel on a kind of device times a few schedules and keeps the quickest, in memory and
in a file that later processes read: triton-schedules.json in CLEBSCH_CACHE (default ~/.cache/clebsch). A
kernel that adds to what is there cannot be run twice, and keeps to the rule; so do the lanes of one that sums
over lanes, whose pieces are counted before it runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from .schedule import Schedule, rule
from .source import Source

__all__ = ["candidates", "enabled", "file", "tuned"]

_known: dict[str, Schedule] = {}


def enabled() -> bool:
    """Whether it is asked for."""
    return os.environ.get("CLEBSCH_TRITON_AUTOTUNE", "0") not in ("", "0")


def file() -> Path:
    """Where choices are kept."""
    folder = os.environ.get("CLEBSCH_CACHE") or Path.home() / ".cache" / "clebsch"
    return Path(folder) / "triton-schedules.json"


def candidates(source: Source, warp: int) -> list[Schedule]:
    """What is tried: the rule first, then other numbers of warps and, where lanes are free, of lanes."""
    first = rule(source, warp)
    blocks = [first.block]
    if not source.reduces and not source.is_of_rows:
        blocks += [block for block in (first.block // 2, first.block * 2) if block >= warp]
    found = [
        replace(first, block=block, num_warps=warps)
        for block in blocks
        for warps in (1, 2, 4, 8)
        if warps * warp <= 2 * block
    ]
    return [first, *(schedule for schedule in found if schedule != first)]


def tuned(source: Source, device: str, warp: int, seconds: Callable[[Schedule], float]) -> Schedule:
    """The quickest schedule by `seconds`, which runs the kernel; asked once for a kernel and a device."""
    if source.adds:
        return rule(source, warp)
    key = f"{device}; {source.name}; {hashlib.sha256(source.text.encode()).hexdigest()[:16]}"
    if key not in _known:
        _known.update(_read())
    if key not in _known:
        _known[key] = min(candidates(source, warp), key=seconds)
        _write(_read() | {key: _known[key]})
    return _known[key]


def _read() -> dict[str, Schedule]:
    """What is in the file; nothing if it cannot be read as such a file."""
    try:
        return {key: Schedule(**chosen) for key, chosen in json.loads(file().read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(chosen: dict[str, Schedule]) -> None:
    """Put another file in the place of the old one: other processes see either."""
    path = file()
    new = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({key: asdict(one) for key, one in sorted(chosen.items())}, indent=1))
        new.replace(path)
    except OSError:  # a folder that cannot be written: the choice holds for this process
        pass
