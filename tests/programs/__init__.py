"""Programs written for e3nn, and the way to run them with another package in its place.

Each is a script that imports `nn` and `o3` from e3nn in one line at its head and has

    make_model() -> torch.nn.Module
    train(model, steps, seed=0) -> list of the loss before every step
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

NAMES = ("first_steps", "convolution_block", "tetris", "se3_transformer")
IMPORT = "from e3nn import nn, o3\n"


def load_program(name: str, package: str = "e3nn") -> ModuleType:
    """The program as a fresh module whose `nn` and `o3` are those of `package`, and nothing else changed."""
    path = Path(__file__).with_name(f"{name}.py")
    source = path.read_text()
    if source.count(IMPORT) != 1:
        raise ValueError(f"load_program: {path.name} must contain {IMPORT!r} once")
    source = source.replace(IMPORT, IMPORT.replace("e3nn", package))
    spec = importlib.util.spec_from_loader(f"programs_with_{package}.{name}", loader=None, origin=str(path))
    module = importlib.util.module_from_spec(spec)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module
