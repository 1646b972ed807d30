"""Which modules of which packages are known, and what becomes of them.

Classes are known by package and name, so that no package need be imported, nor be of any version. A rule
looks at one live module and gives {module: class whose forward it takes}, for itself and for parts that it
depends on, or why nothing is done: `Left`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from clebsch.convert import allegro, allegro_layers, e3nn, mace, nequip, sevennet
from clebsch.convert.left import Left
from clebsch.convert.swap import Accelerated, is_accelerated, original_class, package_of

__all__ = ["Decision", "decide"]

Rule = Callable[[torch.nn.Module], "dict[torch.nn.Module, type[Accelerated]] | Left"]

RULES: dict[tuple[str, str], Rule] = {
    (package, name): rule
    for package, rules in (
        ("e3nn", e3nn.RULES),
        ("mace", mace.RULES),
        ("nequip", nequip.RULES | allegro_layers.NETWORK_RULES),
        ("allegro", allegro.RULES | allegro_layers.RULES),
        ("sevenn", sevennet.RULES),
    )
    for name, rule in rules.items()
}


class Decision(NamedTuple):
    """What becomes of the module at `name` in the tree: `rule` takes its forward, or `left` says why not."""

    name: str
    module: torch.nn.Module
    rule: type[Accelerated] | None
    left: str | None


def decide(model: torch.nn.Module) -> Iterator[Decision]:
    """One decision for every module that is known here, in the order of the tree; each object once.

    A module that contains others decides about them first.
    """
    made: dict[torch.nn.Module, type[Accelerated]] = {}
    for name, module in model.named_modules():
        if is_accelerated(module):
            # A part that was accelerated on its own may have another task in the whole.
            if made.get(module, type(module)._clebsch_rule) is not type(module)._clebsch_rule:
                yield Decision(name, module, made[module], None)
            continue
        left = None
        if module not in made:
            found = _apply(module)
            if isinstance(found, Left):
                left = found.reason
            else:
                for part, rule in found.items():
                    made.setdefault(part, rule)
        if module in made or left is not None:
            yield Decision(name, module, made.get(module), left)


def _apply(module: torch.nn.Module) -> dict[torch.nn.Module, type[Accelerated]] | Left:
    if isinstance(module, torch.jit.ScriptModule):
        # What was compiled has no forward to be replaced; its parts look like modules all the same.
        return {}
    changed = None
    for cls in original_class(module).__mro__:
        rule = RULES.get((package_of(cls), cls.__name__))
        if rule is not None:
            if "forward" in vars(module):
                return Left("its forward was replaced")
            return rule(module) if changed is None else Left(f"{changed} has a forward of its own")
        if "forward" in vars(cls) and changed is None:
            changed = f"{cls.__module__}.{cls.__qualname__}"
    return {}
