"""Replacing methods of e3nn's classes, and putting them back."""

from __future__ import annotations

import functools
import types
import uuid
from collections.abc import Callable
from typing import Any

__all__ = ["ALWAYS", "MARK", "Switch", "install", "is_on", "layer_classes", "switch", "uninstall"]

# In the __dict__ of a module that is to run on our kernels though not all are: `switch.token`.
MARK = "_clebsch_enabled"
# The mark of a class whose modules do so whatever the switch says.
ALWAYS = "always"

# takes (what was replaced, module, *arguments)
Route = Callable[..., Any]


class Switch:
    """Whether all modules run on our kernels, and the mark of those that do where not all do.

    A copy or pickle of a module carries the mark along: it means nothing once all was disabled, nor in
    another process.
    """

    def __init__(self) -> None:
        self.everywhere = False
        self.token = uuid.uuid4().hex


switch = Switch()
_installed: list[tuple[type, str, Any, Any]] = []


def is_on(module: Any) -> bool:
    """Whether this module is to run on our kernels."""
    return switch.everywhere or getattr(module, MARK, None) in (switch.token, ALWAYS)


def layer_classes() -> tuple[type, type, type]:
    """TensorProduct, Linear and SphericalHarmonics of the installed e3nn. ImportError if there is none."""
    try:
        from e3nn import o3
    except ModuleNotFoundError as error:
        if error.name != "e3nn":
            raise
        raise ImportError("clebsch.e3nn: e3nn is not installed: there is nothing to enable") from None
    return o3.TensorProduct, o3.Linear, o3.SphericalHarmonics


def install(replaced: dict[str, dict[str, Route]]) -> None:
    """Put the routes of {class name: {method name: route}} in the place of e3nn's methods; once."""
    if _installed:
        return
    for cls in layer_classes():
        for name, route in replaced[cls.__name__].items():
            own = vars(cls).get(name)
            ours = _routed(getattr(cls, name), route)
            setattr(cls, name, ours)
            _installed.append((cls, name, own, ours))


def uninstall() -> None:
    """Undo `install`. What somebody has put in the place of ours since stays, and finds ours turned off."""
    switch.token = uuid.uuid4().hex
    while _installed:
        cls, name, own, ours = _installed.pop()
        if vars(cls).get(name) is not ours:
            continue
        if own is None:
            delattr(cls, name)
        else:
            setattr(cls, name, own)


def _routed(original: Callable[..., Any], route: Route) -> Callable[..., Any]:
    def method(self, *args, **kwargs):
        return route(original, self, *args, **kwargs)

    # torch.jit.script compiles the source of what is wrapped, and looks its names up in the globals of what
    # wraps it: with those of the original it finds e3nn's own code, complete.
    with_its_globals = types.FunctionType(
        method.__code__, original.__globals__, original.__name__, None, method.__closure__
    )
    return functools.wraps(original)(with_its_globals)
