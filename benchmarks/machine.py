"""Where and with what a number was measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("torch", "e3nn", "sphericart-torch", "numpy")


def isa_in_use() -> str:
    """Instruction set of the clebsch kernels: avx512, avx2, baseline."""
    from clebsch import backend

    return backend.instruction_set()


def load() -> float:
    """Processes that ran or waited in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def describe(command: str) -> dict[str, object]:
    import torch

    import clebsch

    return {
        "cpu": _cpu_field("model name"),
        "cpu family, model": [_cpu_field("cpu family"), _cpu_field("model")],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": isa_in_use(),
        "threads": torch.get_num_threads(),
        "load average": load(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"clebsch": clebsch.__version__} | installed(PACKAGES),
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def fresh_python(*arguments: str) -> object:
    """The JSON printed by a new interpreter with these arguments; RuntimeError with its complaint."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(f"a fresh process of this benchmark failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])  # packages greet when they are imported


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0] == name), "")


def installed(packages: Iterable[str]) -> dict[str, str | None]:
    """Their versions, None for what is absent."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Short hash, with "+" where tracked files differ from it."""
    try:
        return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
