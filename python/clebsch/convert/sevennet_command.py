"""SevenNet's own command line on our kernels: `clebsch sevenn train input.yaml`."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from clebsch.convert import accelerate

__all__ = ["disable", "enable", "main"]

_replaced: list[Any] = []


def enable() -> None:
    """Whatever SevenNet builds from now on in this process is accelerated: calculators, training, inference.

    Models are built where they are now as well: in `sevenn.model_build.patch_modules`, which exchanges layers
    for those of other accelerators before they get weights. Their checkpoints stay SevenNet's. Disable it
    before a model is deployed: TorchScript is compiled from SevenNet's own code.

    Raises:
        ImportError: sevenn is not installed.
    """
    from sevenn import model_build

    if _replaced:
        return
    original = model_build.patch_modules

    @functools.wraps(original)
    def patch_modules(layers: Any, config: Any) -> Any:
        layers = original(layers, config)
        for layer in layers.values():
            if not getattr(layer, "layer_instantiated", True):
                layer.instantiate()
            accelerate(layer, inplace=True)
        return layers

    model_build.patch_modules = patch_modules
    _replaced.append(original)


def disable() -> None:
    """Undo `enable`. Models that were built stay accelerated; `clebsch.restore` gives them back."""
    from sevenn import model_build

    while _replaced:
        model_build.patch_modules = _replaced.pop()


def main(arguments: Sequence[str]) -> int:
    """SevenNet's command `sevenn` with these arguments; the exit status is 2 for what cannot be run."""
    if importlib.util.find_spec("sevenn") is None:
        print('clebsch sevenn: needs sevenn: pip install "clebsch[sevennet]"', file=sys.stderr)
        return 2
    if {"get_model", "deploy"} & set(arguments[:1]):
        print("clebsch sevenn: a deployed model is TorchScript, which cannot be accelerated", file=sys.stderr)
        return 2
    from sevenn.main.sevenn import main as run

    enable()
    given, sys.argv = sys.argv, ["sevenn", *arguments]
    try:
        run()
    finally:
        sys.argv = given
        disable()
    return 0
