"""Runs programs that import e3nn on our kernels, without a change of their source.

    import clebsch

    clebsch.e3nn.enable()              # every product, Linear and SphericalHarmonics of e3nn in this process
    clebsch.e3nn.enable(model)         # those of one live model
    with clebsch.e3nn.enable(): ...    # for a while
    clebsch.e3nn.disable()

The `forward` of e3nn's classes is replaced, which takes live modules along, under e3nn 0.4.4 and all later
ones. Modules stay e3nn's: parameters, state_dict, pickles, generated code. What our kernels do not take goes
to that code at every call: other dtypes, devices without kernels, autocast, torch.jit, transforms of
torch.func, forward-mode derivatives, subclasses of Tensor. docs/checkpoints.md lists it.

A module tells what became of its last call, or of its construction, in two attributes: ``_clebsch_reason``,
None if it did not go to e3nn's code, else one sentence why; and ``_clebsch_plan``, the canonical string of
the `ProductPlan` that serves a product, else None.
"""

from __future__ import annotations

import threading
import weakref
from types import TracebackType

import torch

from clebsch.e3nn.forwards import MARK, install, is_on, layer_classes, switch, uninstall
from clebsch.e3nn.routes import REPLACED, prepare

__all__ = ["Enabled", "disable", "enable", "is_enabled"]

_lock = threading.RLock()
_holders: list[Enabled] = []


class Enabled:
    """What `enable` returns: a context manager that ends what it began, and nothing that others began."""

    def __init__(self, model: torch.nn.Module | None) -> None:
        layer_classes()  # ImportError before anything is changed
        self._given = None if model is None else weakref.WeakSet(_layers(model))
        self._modules = self._given  # without those that `disable` took away since it was entered

    def __enter__(self) -> Enabled:
        with _lock:
            if self not in _holders:
                self._modules = None if self._given is None else weakref.WeakSet(self._given)
                _holders.append(self)
                _apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            if self in _holders:
                _holders.remove(self)
                _release(self._modules)
                _apply()


def enable(model: torch.nn.Module | None = None) -> Enabled:
    """Run e3nn's products, `Linear` and `SphericalHarmonics` on our kernels: those of `model`, or all.

    Modules that exist are included, as are, without `model`, those built later. Calls may be repeated and
    nested; the value returned may be used as a context manager, which ends this call's effect alone.

    Raises:
        ImportError: no e3nn is installed. TypeError: `model` is no module. ValueError: it has no such layer.
    """
    return Enabled(model).__enter__()


def disable(model: torch.nn.Module | None = None) -> None:
    """Undo every `enable`, or what was asked for the layers of `model` alone.

    A layer stays on the kernels if all layers are, until all are disabled.
    """
    with _lock:
        if model is None:
            ended, _holders[:] = list(_holders), []
            for holder in ended:
                _release(holder._modules)
        else:
            layers = _layers(model)
            for holder in _holders:
                if holder._modules is not None:
                    holder._modules -= set(layers)
            _release(layers)
        _apply()


def is_enabled(module: torch.nn.Module | None = None) -> bool:
    """Whether all layers of e3nn are on our kernels, or this one."""
    return switch.everywhere if module is None else is_on(module)


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"clebsch.e3nn: model must be a torch.nn.Module, got {type(model).__name__}")
    found = [module for module in model.modules() if isinstance(module, layer_classes())]
    if not found:
        raise ValueError(
            f"clebsch.e3nn: model, a {type(model).__name__}, has no TensorProduct, Linear or "
            "SphericalHarmonics of e3nn"
        )
    return found


def _release(modules: object) -> None:
    """Take the mark from modules that no other holder has."""
    for module in modules or ():
        if not any(holder._modules is not None and module in holder._modules for holder in _holders):
            module.__dict__.pop(MARK, None)


def _apply() -> None:
    """Make the classes and marks what the holders ask for."""
    _holders[:] = [holder for holder in _holders if holder._modules is None or len(holder._modules) > 0]
    if _holders:
        install(REPLACED)
    else:
        uninstall()
    for holder in _holders:
        for module in holder._modules or ():
            if module.__dict__.get(MARK) != switch.token:
                module.__dict__[MARK] = switch.token
                prepare(module)
    switch.everywhere = any(holder._modules is None for holder in _holders)
