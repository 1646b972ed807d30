"""Compiled spherical harmonics and Clebsch-Gordan tensor products, with layers that take the place of e3nn's.

    from clebsch import Graph, nn, o3

Everything is imported at first use, so that `clebsch.numpy` and `clebsch.algebra` work without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clebsch import algebra, backend, e3nn, models, nn, numpy, o3, ops, reference, testing
    from clebsch.check import check
    from clebsch.convert import accelerate, restore
    from clebsch.explain import explain
    from clebsch.graph import Graph

__all__ = [
    "Graph",
    "__version__",
    "accelerate",
    "algebra",
    "backend",
    "check",
    "e3nn",
    "explain",
    "models",
    "nn",
    "numpy",
    "o3",
    "ops",
    "reference",
    "restore",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name == "Graph":
        value = importlib.import_module("clebsch.graph").Graph
    elif name in ("accelerate", "restore"):
        value = getattr(importlib.import_module("clebsch.convert"), name)
    elif name == "__version__":
        value = _version()
    elif name in __all__:
        return importlib.import_module(f"clebsch.{name}")
    else:
        hint = f": import e3nn.{name}, which works beside clebsch" if name in ("io", "math", "util") else ""
        raise AttributeError(f"module 'clebsch' has no attribute {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The version of the installed package, or that of the pyproject.toml of a source tree that is not
    installed.
    """
    import re
    from importlib import metadata
    from pathlib import Path

    try:
        return metadata.version("clebsch")
    except metadata.PackageNotFoundError:
        pass
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    found = (
        re.search(r'^version\s*=\s*"([^"]+)"', pyproject.read_text(), re.M) if pyproject.is_file() else None
    )
    return found.group(1) if found else "unknown"
