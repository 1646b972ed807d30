"""What Triton's kernels of published models need of GPUs that are not here: tests/triton_resources.json.

    PYTHONPATH=python:tests python tests/triton_resources.py [TARGET...]

compiles all of them (for some of `offline.TARGETS`) with the Triton that is installed, and writes the table
of its version. A compiler's numbers move with its version: one is pinned (Makefile), the other is what torch
for GPUs brings. Of a kernel that is compiled the table holds a hash, so that a test sees without compiling
whether the table is that of the sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.triton import offline, spherical_harmonics, tensor_product
from clebsch.triton.schedule import rule
from clebsch.triton.source import Source

__all__ = ["FILE", "compile_kernel", "digest", "kernels", "key", "read", "same", "traffic"]

FILE = Path(__file__).with_suffix(".json")
EDGE2E, EDGE3 = "1x0e+1x1e+1x2e", "1x0e+1x1o+1x2e+1x3o"
# Node features, edge harmonics, layout, dtype; outputs of the irreps of the edges.
PLANS = {
    "MACE-small": ("128x0e", EDGE3, "mul_ir", "float32"),
    "MACE-medium": ("128x0e+128x1o", EDGE3, "mul_ir", "float32"),
    "MACE-medium ir_mul": ("128x0e+128x1o", EDGE3, "ir_mul", "float32"),
    "MACE-medium float64": ("128x0e+128x1o", EDGE3, "mul_ir", "float64"),
    "MACE-large": ("128x0e+128x1o+128x2e", EDGE3, "mul_ir", "float32"),
    "NequIP-L": ("128x0e+64x1o+32x2e+32x3o", EDGE3, "mul_ir", "float32"),
    "SevenNet-0": ("128x0e+64x1e+32x2e", EDGE2E, "mul_ir", "float32"),
    "MACE-medium float16": ("128x0e+128x1o", EDGE3, "mul_ir", "float16"),
    "MACE-medium bfloat16": ("128x0e+128x1o", EDGE3, "ir_mul", "bfloat16"),
}
NARROW = ("float16", "bfloat16")  # not differentiated twice
# Every path "uvw": x, y, outputs; the first over the edges of a graph, the second over rows, sharing weights.
DENSE = {
    "DiffDock": ("48x0e+10x1o", "1x0e+1x1o+1x2e", "48x0e+10x1o"),
    "self-connection": ("128x0e+64x1o", "5x0e", "128x0e+64x1o"),
}


def plan(name: str) -> tuple[ProductPlan, str]:
    """The product of messages of a model, and the dtype."""
    node, edge, layout, dtype = PLANS[name]
    kept = {ir for _, ir in Irreps(edge)}
    found = [
        (i, j, (mul, ir))
        for i, (mul, ir1) in enumerate(Irreps(node))
        for j, (_, ir2) in enumerate(Irreps(edge))
        for ir in ir1 * ir2
        if ir in kept
    ]
    out, place, _ = Irreps([block for _, _, block in found]).sort()
    paths = [(i, j, place[k], "uvu", True) for k, (i, j, _) in enumerate(found)]
    return ProductPlan.from_instructions(
        node, edge, out, sorted(paths, key=lambda p: p[2]), layout=layout
    ), dtype


def dense_plan(name: str) -> ProductPlan:
    """Every path that couples blocks of x and y to a block of the output."""
    x, y, out = map(Irreps, DENSE[name])
    paths = [
        (i, j, k, "uvw", True)
        for i, (_, ir1) in enumerate(x)
        for j, (_, ir2) in enumerate(y)
        for k, (_, ir) in enumerate(out)
        if ir in ir1 * ir2
    ]
    return ProductPlan.from_instructions(*DENSE[name], paths)


def kernels() -> Iterator[tuple[str, str, Source]]:
    """(model, dtype, source): all that a step of training runs on the edges of a graph."""
    for model in PLANS:
        parsed, dtype = plan(model)
        for source in tensor_product.sources(parsed, dtype, graph=True, shared=False):
            if dtype not in NARROW or ("tangent" not in source.name and "double" not in source.name):
                yield model, dtype, source
    for model in DENSE:
        graph = model == "DiffDock"
        for source in tensor_product.sources(dense_plan(model), graph=graph, shared=not graph):
            yield model, "float32", source
    for highest in (3, 4, 10):
        for step in ("forward", "backward", "double_backward"):
            ls = tuple(range(highest + 1))
            for source in spherical_harmonics.sources("float32", ls, True, "component", step):
                yield f"harmonics to l = {highest}", "float32", source


def traffic(source: Source, lanes: int) -> tuple[int, int]:
    """Accesses of warps to global memory for an edge, and the sectors of 32 bytes that they touch, of all
    lanes of a kernel in float32, if a thread has so many lanes."""
    warps, accesses, sectors = source.lanes // (32 * lanes), 0, 0
    for place in re.findall(r"^ {8,}.*tl\.(?:load|store)\((.*)", source.text, re.M):
        along = re.search(r"\+ lane(?: \* (\d+))?,", place)
        if along is None:  # a number for all lanes
            count, touched = 1, 1
        elif along[1] is None:
            count, touched = 1, 4 * lanes
        else:
            count, touched = lanes, min(4 * lanes * int(along[1]), 32)
        accesses += warps * count
        sectors += warps * count * touched
    return accesses, sectors


def key(model: str, source: Source, target: str) -> str:
    """Of a row of the table."""
    return f"{model}; {source.name}; {target}"


def compile_kernel(job: tuple[str, str, Source, str]) -> tuple[str, dict[str, Any]]:
    """A row of the table."""
    model, dtype, source, target = job
    found = offline.compile_for(source, target, dtype)
    return key(model, source, target), {**found, "source": digest(source, target)}


def digest(source: Source, target: str) -> str:
    """Of a kernel and of how it is compiled."""
    schedule = rule(source, offline.TARGETS[target][2])
    text = f"{source.text}{schedule}{schedule.options(is_nvidia=target.startswith('cuda'))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read() -> dict[str, dict[str, Any]]:
    """The committed tables, by versions of Triton."""
    return json.loads(FILE.read_text())


def same(row: dict[str, Any]) -> dict[str, Any]:
    """What must not differ between two compilations."""
    return {name: value for name, value in row.items() if name != "seconds"}


def main(targets: Sequence[str]) -> None:
    """Compile everything and write the table of this version."""
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a kernel that is found on disk takes no seconds
    jobs = [(*kernel, target) for kernel in kernels() for target in targets]
    rows = {}
    with get_context("spawn").Pool(2) as pool:
        for name, row in pool.imap(compile_kernel, jobs):
            rows[name] = row
            print(name, row, file=sys.stderr, flush=True)
    tables = read() | {metadata.version("triton"): rows}
    parts = []
    for version, table in sorted(tables.items()):
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
        parts.append(f"  {json.dumps(version)}: {{\n{lines}\n  }}")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(offline.TARGETS))
