"""Another forward for a live module: its class is exchanged for one of ours that inherits from it.

Parameters, buffers, submodules, hooks and attributes are not touched, so the state_dict, optimisers and
references of others stay as they are, and taking the class back is all there is to undoing it.
"""

from __future__ import annotations

import copyreg
from functools import cache
from typing import Any

import torch

from clebsch.e3nn.forwards import ALWAYS, MARK

__all__ = [
    "Accelerated",
    "forward_of",
    "is_accelerated",
    "is_covered",
    "original_class",
    "package_of",
    "swap",
    "unswap",
]

# What we keep on a module begins with this; it goes neither into pickles nor into copies.
PREFIX = "_clebsch_"


class Accelerated:
    """The first base of a class that `swap` makes; the module's own class is the second.

    `super().forward` of a subclass is then what the module did before.
    """

    does = "its forward is ours"  # what `explain` says of it

    _clebsch_enabled = ALWAYS  # for the routes of clebsch.e3nn
    _nequip_custom_ops_libs = ("clebsch.ops",)  # what a compiled model of NequIP imports when it is loaded

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`type(module)(...)` makes a module of the package, which no rule has looked at."""
        return cls._clebsch_original(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles are accelerated too; the class that `swap` made has no name to be found by."""
        make, (_, *args), state, *rest = super().__reduce_ex__(protocol)
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if not _is_ours(name)}
        cls = type(self)
        return _remake, (make, cls._clebsch_rule, cls._clebsch_original, *args), state, *rest


def _remake(make: Any, rule: type[Accelerated], original: type, *args: Any) -> Any:
    cls = _joined(rule, original)
    return object.__new__(cls) if make is copyreg.__newobj__ else make(cls, *args)


def _is_ours(name: str) -> bool:
    """Whether what is kept on a module under this name is ours; the mark belongs to clebsch.e3nn."""
    return name.startswith(PREFIX) and name != MARK


@cache
def _joined(rule: type[Accelerated], original: type) -> type:
    names = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    own = {"_clebsch_rule": rule, "_clebsch_original": original}
    return type(original.__name__, (rule, original), {**names, **own})


def swap(module: torch.nn.Module, rule: type[Accelerated]) -> None:
    """Give a module the forward of `rule`, in place, also in the place of another rule's.

    ValueError if somebody has put a class of theirs on top of ours.
    """
    if is_covered(module):
        raise ValueError(f"swap: module has a class on top of ours, {type(module).__qualname__}")
    _set_class(module, _joined(rule, original_class(module)))


def unswap(module: torch.nn.Module) -> None:
    """Give a module the class back that `swap` took, and forget what was found out about it.

    ValueError if somebody has put a class of theirs on top of ours since.
    """
    if is_covered(module):
        raise ValueError(f"unswap: module has a class on top of ours, {type(module).__mro__[0].__qualname__}")
    if is_accelerated(module):
        _set_class(module, original_class(module))
    for name in [name for name in vars(module) if _is_ours(name)]:
        del vars(module)[name]


def is_covered(module: torch.nn.Module) -> bool:
    """Whether its class inherits from one that `swap` made, as with parametrizations."""
    return is_accelerated(module) and "_clebsch_rule" not in vars(type(module))


def is_accelerated(module: torch.nn.Module) -> bool:
    """Whether its forward is ours."""
    return isinstance(module, Accelerated)


def original_class(module: torch.nn.Module) -> type:
    """The class of a module, apart from what `swap` did."""
    return type(module)._clebsch_original if is_accelerated(module) else type(module)


def forward_of(module: torch.nn.Module | None) -> str:
    """Name of the class whose forward a module has, apart from ours; "" if the module has one of its own."""
    if module is None or "forward" in vars(module):
        return ""
    return next((cls.__name__ for cls in original_class(module).__mro__ if "forward" in vars(cls)), "")


def package_of(cls: type) -> str:
    """The package that a class is of; torch.package puts `<torch_package_N>.` before its name."""
    names = cls.__module__.split(".")
    return names[1] if names[0].startswith("<torch_package_") and len(names) > 1 else names[0]


def _set_class(module: torch.nn.Module, cls: type) -> None:
    object.__setattr__(module, "__class__", cls)
