"""SevenNet's own command line on our kernels: `clebsch sevenn train input.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from clebsch.convert import accelerate, command

__all__ = ["disable", "enable", "main"]

_switch = command.Switch()


def enable() -> None:
    """Whatever SevenNet builds from now on in this process is accelerated: calculators, training, inference.

    Models are built where they are now as well: in `sevenn.model_build.patch_modules`, which exchanges layers
    for those of other accelerators before they get weights. Their checkpoints stay SevenNet's. Disable it
    before a model is deployed: TorchScript is compiled from SevenNet's own code.

    Raises:
        ImportError: sevenn is not installed.
    """
    from sevenn import model_build

    if _switch.is_on:
        return

    def make(original: Any) -> Any:
        def patch_modules(layers: Any, config: Any) -> Any:
            layers = original(layers, config)
            for layer in layers.values():
                if not getattr(layer, "layer_instantiated", True):
                    layer.instantiate()
                accelerate(layer, inplace=True)
            _switch.say(part for layer in layers.values() for part in layer.modules())
            return layers

        return patch_modules

    _switch.replace((model_build, "patch_modules", make))


def disable() -> None:
    """Undo `enable`. Models that were built stay accelerated; `clebsch.restore` gives them back."""
    _switch.off()


def main(arguments: Sequence[str]) -> int:
    """SevenNet's command `sevenn` with these arguments; the exit status is 2 for what cannot be run."""
    if {"get_model", "deploy"} & set(arguments[:1]):
        print("clebsch sevenn: a deployed model is TorchScript, which cannot be accelerated", file=sys.stderr)
        return 2

    def find() -> Any:
        from sevenn.main.sevenn import main as run

        return run

    return command.run("sevenn", arguments, ("sevenn", '"clebsch[sevennet]"'), enable, disable, find)
