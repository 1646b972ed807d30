"""Triton's kernels run by its interpreter: with ``pytest --interpreted`` they take the place of the CPU's.

All operator tests run so but those marked `about_the_cpu` or `not_interpreted`, on problems as large as
sizes.py allows: kernels_reached.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain, combinations, product
from typing import Any

__all__ = ["MARK", "NAME", "OTHER_TESTS", "enabled", "every_kernel", "kinds", "launched", "load"]

MARK, NAME, OTHER_TESTS = "not_interpreted", "kinds of Triton's kernels", "test_triton_interpreted.py"

_library = None
_launched: set[tuple[str, ...]] = set()


def load() -> None:
    """Replace the CPU's operators, and note what is launched. Before Triton is imported: kernels are
    interpreted or not for good."""
    global _library
    os.environ["TRITON_INTERPRET"] = "1"
    from clebsch import ops  # noqa: F401  the operators are defined before they are replaced
    from clebsch.triton import spherical_harmonics, tensor_product
    from clebsch.triton.operators import register

    _library = register("CPU")
    for module in (spherical_harmonics, tensor_product):
        module.launch = _noting(module.launch)
    _round_bfloat16()


def enabled() -> bool:
    """Whether operators run in the interpreter."""
    return _library is not None


def launched() -> set[tuple[str, ...]]:
    """Kinds of kernels that were launched since the last call."""
    found = set(_launched)
    _launched.clear()
    return found


def _round_bfloat16() -> None:
    """float32 becomes the nearest number of bfloat16, and comes back, as on GPUs; the interpreter cuts places
    off, and changes some numbers below the smallest normal one."""
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(numbers: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if (given, wanted) == (tl.float32, tl.bfloat16):
            return torch.tensor(numbers).to(torch.bfloat16).view(torch.uint16).numpy()
        if (given, wanted) == (tl.bfloat16, tl.float32):
            return torch.tensor(numbers).view(torch.bfloat16).to(torch.float32).numpy()
        return convert(numbers, given, wanted, mode)

    interpreter._convert_float = rounded


def _noting(launch: Any) -> Any:
    def noted(source: Any, owners: int, arguments: Mapping[str, Any]) -> None:
        launch(source, owners, arguments)
        if owners > 0:
            operand = arguments["x"] if "x" in arguments else arguments["points"]
            _launched.update(kinds(source, str(operand.dtype).removeprefix("torch.")))

    return noted


# What kinds of kernels there are

DTYPES = ("float32", "float64", "float16", "bfloat16")
PLACES = ("rows", "graph")
LAYOUTS = ("mul_ir", "ir_mul")
OPERANDS = ("x", "y", "w")


def kinds(source: Any, dtype: str) -> Iterator[tuple[str, ...]]:
    """What a kernel is one of: by its step, the type of its numbers, and what it says of itself."""
    name = re.sub(r"_\d+$", "", source.name)
    place = "graph" if "order" in source.arguments else "rows"
    if name == "sender_sums":
        yield name, dtype
    elif name.startswith("spherical_harmonics"):
        yield name, dtype, re.search(r"normalize = \w+", source.text)[0]
        yield name, re.search("integral|component|norm", source.text)[0]
    else:
        layout = re.search(r"# layout (\w+)", source.text)[1]
        modes = set(re.findall(r"# path \d+: .*, (\S+)$", source.text, re.MULTILINE))
        needs = "".join(operand for operand in OPERANDS if f"g{operand}" in source.arguments)
        along = "".join(operand for operand in OPERANDS if f"a{operand}" in source.arguments)
        if name.startswith("channels"):
            yield name, dtype, place, layout
            yield name, place, f"for {needs}"
            yield name, place, f"along {along}"
        name = name.removesuffix("_tangent") if name.startswith("modes") else name
        for mode in modes if name.startswith("modes") else ():
            step = "along tangents" if along else "plain"
            yield name, mode, step, dtype, place
            yield name, mode, step, place, layout
            yield name, mode, place, "pieces" if "count" in source.arguments else "whole"


def every_kernel() -> set[tuple[str, ...]]:
    """Those of the kernels that there are."""
    from clebsch.algebra.plan import MODES

    some = ["".join(few) for n in range(4) for few in combinations(OPERANDS, n)]
    found: list[Any] = [("sender_sums", dtype) for dtype in DTYPES]
    for step in ("forward", "backward", "double_backward"):
        name = (f"spherical_harmonics_{step}",)
        found += product(name, DTYPES, ("normalize = True", "normalize = False"))
        found += product(name, ("integral", "component", "norm"))
    for step, needed, tangents in (
        ("forward", [""], [""]),
        ("tangent", [""], some[1:]),
        ("backward", some[1:], [""]),
        ("double_backward", some[1:], some[1:]),
    ):
        name = (f"channels_{step}",)
        facets = [*(f"for {needs}" for needs in needed), *(f"along {along}" for along in tangents)]
        found += chain(product(name, DTYPES, PLACES, LAYOUTS), product(name, PLACES, facets))
    for target in ("out", "gx", "gy", "gw"):
        name, steps = (f"modes_{target}",), ("plain", "along tangents")
        found += chain(
            product(name, MODES, steps, DTYPES, PLACES), product(name, MODES, steps, PLACES, LAYOUTS)
        )
        found += product(name, MODES, PLACES, ("whole", "pieces") if target == "gw" else ("whole",))
    return set(found)
