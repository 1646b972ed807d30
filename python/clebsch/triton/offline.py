"""Compiling kernels for GPUs that are not here, and reading what they need of them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .launch import compiled, require_triton
from .schedule import Schedule, rule
from .source import COUNTS, Source

__all__ = ["TARGETS", "amd_width", "compile_for", "is_work_space", "lower", "nvidia_width"]

TARGETS = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
    "hip:gfx1100": ("hip", "gfx1100", 32),
}
"""Backend, architecture and threads in a warp."""

_INTEGERS = {"order": "*i64", "begins": "*i32", "components": "*i32"}
_TYPES = {"float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16"}


def compile_for(source: Source, target: str, dtype: str = "float32", aligned: bool = True) -> dict[str, Any]:
    """Compile a kernel for one of TARGETS, with no GPU at hand and no interpreter; what it needs.

    aligned: whether operands begin at multiples of 16 bytes and rows are multiples of 16 elements apart.

    Returns:
        block, num_warps; registers of a thread, spills (on AMD those of scalars apart: they go to
        lanes of vectors); shared memory in bytes; instructions, on NVIDIA those of the longest loop too, and
        the loads and stores of global memory by their width in bits; seconds of processor time that the
        compiler took.
    """
    triton = require_triton()
    from triton.backends.compiler import GPUTarget

    code, schedule = _typed(source, target, dtype, aligned)
    options = schedule.options(is_nvidia=target.startswith("cuda"))
    start = sum(os.times()[:4])
    kernel = triton.compile(code, target=GPUTarget(*TARGETS[target]), options=options)
    seconds = sum(os.times()[:4]) - start
    found = _nvidia(kernel, triton) if target.startswith("cuda") else _amd(kernel)
    shared = {"shared": kernel.metadata.shared, "seconds": round(seconds, 2)}
    return {"block": schedule.block, "num_warps": schedule.num_warps, **found, **shared}


def lower(source: Source, target: str, dtype: str = "float32") -> str:
    """What Triton's front end makes of a kernel, in hundredths of a second, or CompilationError."""
    require_triton()
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    code, schedule = _typed(source, target, dtype, aligned=False)
    machine, context = GPUTarget(*TARGETS[target]), ir.context()
    backend = make_backend(machine)
    options = backend.parse_options(schedule.options(is_nvidia=target.startswith("cuda")))
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options), backend.get_module_map()
    return str(code.make_ir(machine, options, *functions, context))


def _typed(source: Source, target: str, dtype: str, aligned: bool) -> tuple[Any, Schedule]:
    """A kernel with the types of its arguments, and its schedule."""
    from triton.compiler import ASTSource

    schedule = rule(source, TARGETS[target][2])
    signature, attributes = {}, {}
    for i, name in enumerate(source.arguments):
        is_count = name in COUNTS or name.endswith("_stride")
        stored = "float32" if dtype != "float64" and is_work_space(source, name) else dtype
        signature[name] = "i32" if is_count else _INTEGERS.get(name, _TYPES[stored])
        if aligned and name not in COUNTS:
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature["BLOCK"] = "constexpr"
    code = ASTSource(
        fn=compiled(source), signature=signature, constexprs={"BLOCK": schedule.block}, attrs=attributes
    )
    return code, schedule


def is_work_space(source: Source, name: str) -> bool:
    """Whether an argument holds parts of sums or coefficients, which have 32 bits at least."""
    told_by = {"coefficients": "coefficients", "parts": "parts", "gx": "first", "gy": "first", "gw": "count"}
    return told_by.get(name) in source.arguments


def _nvidia(kernel: Any, triton: Any) -> dict[str, Any]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def output(option: str) -> str:
            command = [tool, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", output("-res-usage")))
        line = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);"
        listing = re.findall(line, output("-sass"))
    code = [word for _, word, _ in listing]
    return {
        "registers": int(usage["REG"]),
        "spills": int(usage["STACK"]) + int(usage["LOCAL"]) + _count(code, ("LDL", "STL")),
        "instructions": len(code),
        "loop": _loop(listing),
        "loads": _widths(code, "LDG", nvidia_width),
        "stores": _widths(code, "STG", nvidia_width),
    }


_NVIDIA_WIDTHS = ("U8", "S8", "U16", "S16", "64", "128", "256")


def _loop(listing: list[tuple[str, str, str]]) -> int:
    """Instructions of the longest loop, from where a branch leads back to the branch."""
    places = [int(place, 16) for place, _, _ in listing]
    longest = 0
    for i, (_, word, rest) in enumerate(listing):
        leads = re.search(r"0x([0-9a-f]+)", rest) if word.startswith("BRA") else None
        if leads and int(leads.group(1), 16) < places[i]:
            longest = max(longest, sum(int(leads.group(1), 16) <= place <= places[i] for place in places))
    return longest


def _count(code: list[str], names: tuple[str, ...]) -> int:
    return sum(word.split(".")[0] in names for word in code)


def nvidia_width(word: str) -> int:
    """Of a load or store: LDG.E.U16.CONSTANT, STG.E.64, LDG.E are of 16, 64 and 32 bits."""
    widths = [int(part.lstrip("US")) for part in word.split(".") if part in _NVIDIA_WIDTHS]
    return widths[0] if widths else 32


def _amd(kernel: Any) -> dict[str, Any]:
    text = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found.group(1)) if found else 0

    code = re.findall(r"^\s+([a-z][a-z0-9_]+)\s", text, re.M)
    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count"),
        "scalar_spills": number("sgpr_spill_count"),
        "instructions": len(code),
        "loads": _widths(code, ("global_load", "buffer_load"), amd_width),
        "stores": _widths(code, ("global_store", "buffer_store"), amd_width),
    }


def amd_width(word: str) -> int:
    """Of a load or store: global_load_dwordx2, buffer_load_b64, global_store_short, global_load_d16_b16."""
    found = re.search(r"dwordx(\d)|_[bui](\d+)$|_[bui](8|16)_", word)
    if found:
        return int(found.group(1)) * 32 if found.group(1) else int(found.group(2) or found.group(3))
    return 16 if "short" in word else 8 if "byte" in word else 32


def _widths(code: list[str], begin: str | tuple[str, ...], width: Callable[[str], int]) -> dict[str, int]:
    counts: dict[int, int] = {}
    for word in code:
        if word.startswith(begin):
            counts[width(word)] = counts.get(width(word), 0) + 1
    return {str(bits): counts[bits] for bits in sorted(counts)}
