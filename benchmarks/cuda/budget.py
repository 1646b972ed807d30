"""What each kernel needs of a GPU, from a fresh compilation, beside what budget.json says that it needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import sass
from .devices import DEVICES, Device

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "csrc" / "cuda"
BUDGET = Path(__file__).with_name("budget.json")
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC")  # as csrc/cuda/CMakeLists.txt

Kernels = dict[str, dict[str, dict]]  # by name and architecture

# Which way is worse; a difference in anything else makes the file old, not the kernel worse.
MORE_IS_WORSE = ("registers", "stack", "spill_stores", "spill_loads", "shared", "generic")
MORE_IS_WORSE += ("loop_global_bytes_per_fma", "loop_shared_bytes_per_fma")
LESS_IS_WORSE = ("occupancy_by_registers", "wide_loads", "wide_stores", "fma_share", "loop_fma_share")
MUST_BE_ZERO = ("stack", "spill_stores", "spill_loads")
# Two compilations of one source are not always alike: of many that were, one had a load of shared memory more
# in one loop, half a percent. The share by which these may differ; all other numbers are exact.
RATIOS = ("fma_share", "loop_fma_share", "loop_global_bytes_per_fma", "loop_shared_bytes_per_fma")
MARGIN = 0.01


def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def nvdisasm() -> str:
    """On PATH, or in the wheel nvidia-cuda-nvdisasm."""
    if found := shutil.which("nvdisasm"):
        return found
    for folder in sys.path:
        for found in sorted(Path(folder or ".").glob("nvidia/cu*/bin/nvdisasm")):
            return str(found)
    sys.exit("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")


def nvcc_version(compiler: str) -> str:
    return re.findall(r"\bV(\d+\.\d+\.\d+)", _output([compiler, "--version"]))[0]


def compile_all(compiler: str, generated: Path, jobs: int) -> Kernels:
    """Every kernel for every architecture, to machine code alone."""
    files = sorted(SOURCES.glob("*.cu"), key=lambda file: -file.stat().st_size)  # the longest first
    tasks = [(file, device) for file in files for device in DEVICES]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(lambda task: _compile(compiler, generated, Path(folder), *task), tasks)
        found: Kernels = {}
        for (_, device), kernels in zip(tasks, parts):
            for name, numbers in kernels.items():
                found.setdefault(name, {})[str(device.architecture)] = numbers
    return dict(sorted(found.items()))


def _compile(compiler: str, generated: Path, folder: Path, file: Path, device: Device) -> dict[str, dict]:
    cubin = folder / f"{file.stem}.{device.architecture}.cubin"
    includes = [f"-I{SOURCES.parent}", f"-I{generated}"]
    target = ["-cubin", f"-arch=sm_{device.architecture}", "-Xptxas=-v", "-o", str(cubin)]
    log = _output([compiler, *FLAGS, *includes, *target, str(file)])
    text = _output([nvdisasm(), str(cubin)])
    code, threads, needs = sass.parse(text), _threads(text), dict(_needs(log))
    names = _output(["c++filt", *code]).splitlines() if code else []
    return {
        short(name): _numbers(needs[mangled], threads[mangled], blocks, device)
        for name, (mangled, blocks) in zip(names, code.items())
    }


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _needs(log: str) -> Iterator[tuple[str, dict[str, int]]]:
    """What ptxas says of each kernel."""
    for name, text in re.findall(r"entry function '(\S+)'(.*?)(?=Compiling entry|\Z)", log, re.DOTALL):
        stack, stores, loads = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", text)[:3]
        registers = re.findall(r"Used (\d+) registers", text)[0]
        shared = re.findall(r"(\d+) bytes smem", text)[:1] or ["0"]
        keys = ("registers", "stack", "spill_stores", "spill_loads", "shared")
        yield name, dict(zip(keys, map(int, (registers, stack, stores, loads, *shared))))


def _threads(text: str) -> dict[str, int]:
    """Threads of a block, from the launch bounds of each kernel."""
    sections = re.split(r"\.section\s+\.nv\.info\.(\S+?),", text)[1:]
    bound = re.compile(r"EIATTR_MAX_THREADS\b.*?\.word\s+(\w+)", re.DOTALL)
    return {
        name: int(found[1], 16)
        for name, body in zip(sections[::2], sections[1::2])
        if (found := bound.search(body))
    }


def short(name: str) -> str:
    """Neither namespaces nor arguments: channels_forward<Half, 4, false>."""
    name = re.sub(r"\w+::", "", name.removeprefix("void "))
    return re.sub(r"\(\w+\)(?=\d)", "", name).split("(")[0]  # enumerators: (ContractionStep)1


def _numbers(needs: dict[str, int], threads: int, blocks: list[sass.Block], device: Device) -> dict:
    code = [i for block in blocks for i in block.code]
    loop = sass.main_loop(blocks)
    loads, stores = (sass.widths(code, stems) for stems in (sass.GLOBAL_LOADS, sass.GLOBAL_STORES))
    return {
        "threads": threads,
        **needs,
        # Shared memory of a block is what a launch asks for: roofline.py has it for the plans of models.
        "occupancy_by_registers": device.occupancy(needs["registers"], needs["shared"], threads),
        "loads": loads,
        "stores": stores,
        "wide_loads": _wide_share(loads),
        "wide_stores": _wide_share(stores),
        "generic": sum(i.stem in sass.GENERIC for i in code),
        "fma_share": sass.fused_share(code),
        "loop_fma": sass.fused(loop),
        "loop_fma_share": sass.fused_share(loop),
        "loop_global_bytes_per_fma": sass.bytes_per_fused(loop, sass.GLOBAL_LOADS + sass.GLOBAL_STORES),
        "loop_shared_bytes_per_fma": sass.bytes_per_fused(loop, sass.SHARED),
    }


def _wide_share(counted: dict[str, int]) -> float | None:
    """Of the accesses, the share that takes 16 bytes or more a thread."""
    total = sum(counted.values())
    return round(sum(n for width, n in counted.items() if int(width) >= 16) / total, 3) if total else None


def spills(kernels: Kernels) -> list[str]:
    return [
        f"{name}, sm_{architecture}: {key} {numbers[key]}, must be 0"
        for name, architecture, numbers in _flat(kernels)
        for key in MUST_BE_ZERO
        if numbers[key]
    ]


def differences(old: Kernels, new: Kernels) -> list[str]:
    before = {(name, architecture): numbers for name, architecture, numbers in _flat(old)}
    after = {(name, architecture): numbers for name, architecture, numbers in _flat(new)}
    found = [f"{name}, sm_{architecture}: in the file only" for name, architecture in before.keys() - after]
    for (name, architecture), numbers in after.items():
        known = before.get((name, architecture))
        if known is None:
            found.append(f"{name}, sm_{architecture}: not in the file")
            continue
        for key, value in numbers.items():
            if not _alike(key, known.get(key), value):
                verdict = judge(key, known.get(key), value)
                found.append(f"{name}, sm_{architecture}: {key} {known.get(key)} -> {value}, {verdict}")
    return sorted(found)


def _alike(key: str, old, new) -> bool:
    if key in RATIOS and old is not None and new is not None:
        return abs(new - old) <= MARGIN * old
    return old == new


def judge(key: str, old, new) -> str:
    if old is None or new is None or key not in MORE_IS_WORSE + LESS_IS_WORSE:
        return "the file is old"
    return "WORSE" if (new > old) == (key in MORE_IS_WORSE) else "better: the file is old"


def _flat(kernels: Kernels) -> Iterator[tuple[str, str, dict]]:
    for name, of_architecture in kernels.items():
        for architecture, numbers in of_architecture.items():
            yield name, architecture, numbers


def read() -> dict:
    return json.loads(BUDGET.read_text())


def write(version: str, kernels: Kernels) -> None:
    """A line for each kernel and architecture, so that a difference can be read."""
    rows = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(arch)}: {json.dumps(numbers)}" for arch, numbers in by_arch.items())
        + "\n  }"
        for name, by_arch in kernels.items()
    )
    BUDGET.write_text(f'{{\n "nvcc": {json.dumps(version)},\n "kernels": {{\n{rows}\n }}\n}}\n')
