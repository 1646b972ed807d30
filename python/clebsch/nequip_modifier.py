"""`enable_clebsch` among NequIP's model modifiers, so that its configurations and commands switch us on.

NequIP loads this module whenever it is imported (entry point `nequip.extension`), half-way through its own
import: what is needed of NequIP is not there yet, and kernels are not to be loaded before they are asked for.
Models in packages bring NequIP's classes along as they were packaged, so the modifier is offered for any
model, rather than added to a class.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

__all__ = ["offer"]

# Where NequIP looks for the modifiers of a model.
PLACE = "nequip.model.modify_utils"


def offer(place: Any) -> None:
    """Put the modifier among those that `place`, the module of NequIP, finds for a model; once."""
    from nequip.nn.model_modifier_utils import model_modifier

    found_there = place.get_all_modifiers
    if hasattr(found_there, "_clebsch"):
        return

    class Modifiers:
        @model_modifier(
            persistent=False,
            private=True,  # it belongs to no model: it is there where clebsch is installed
            unsupported_devices=["cuda", "xpu"],
            supported_compile_modes=["aotinductor"],
        )
        @classmethod
        def enable_clebsch(cls, model: Any) -> Any:
            """Run the model on clebsch's kernels for the CPU: `clebsch.accelerate` in place."""
            from clebsch.convert import accelerate

            return accelerate(model, inplace=True)

    @functools.wraps(found_there)
    def get_all_modifiers(module: Any, _all_modifiers: dict[str, Any] | None = None) -> dict[str, Any]:
        found = found_there(module, _all_modifiers)
        found.setdefault("enable_clebsch", Modifiers.enable_clebsch)
        return found

    get_all_modifiers._clebsch = True
    place.get_all_modifiers = get_all_modifiers


class _Watch(MetaPathFinder):
    """Waits for the import of `PLACE`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != PLACE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                offer(module)

            spec.loader.exec_module = exec_module
        return spec


if PLACE in sys.modules:
    offer(sys.modules[PLACE])
else:
    sys.meta_path.insert(0, _Watch())
