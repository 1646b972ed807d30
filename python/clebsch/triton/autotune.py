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
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
        tried = candidates(source, warp)
        kept = _read().get(key)  # by anybody: what is not among the candidates is tried anew
        found = next((one for one in tried if asdict(one) == kept), None)
        if found is None:
            found = _quickest(tried, seconds)
            if found is None:  # nothing runs: the launch shall say why
                return tried[0]
            _write(_read() | {key: asdict(found)})
        _known[key] = found
    return _known[key]


def _quickest(tried: Sequence[Schedule], seconds: Callable[[Schedule], float]) -> Schedule | None:
    """A schedule that fails, for want of registers, say, takes forever; None if all do."""
    times = {}
    for schedule in tried:
        with suppress(Exception):
            times[schedule] = seconds(schedule)
    return min(times, key=times.__getitem__, default=None)


def _read() -> dict[str, Any]:
    """What is in the file, by others too; nothing if it cannot be read as such a file."""
    try:
        kept = json.loads(file().read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(kept: dict[str, Any]) -> None:
    """Put another file in the place of the old one: other threads and processes see either."""
    path = file()
    with suppress(OSError):  # a folder that cannot be written: the choice holds for this process
        path.parent.mkdir(parents=True, exist_ok=True)
        number, new = tempfile.mkstemp(prefix=f"{path.stem}.", dir=path.parent)
        try:
            with open(number, "w") as opened:
                json.dump(kept, opened, indent=1, sort_keys=True)
            os.replace(new, path)
        except OSError:
            os.unlink(new)
