"""Models of others on our kernels: `accelerate` and `restore`."""

from __future__ import annotations

import copy
import pickle

import torch

from clebsch.convert.left import LEFT
from clebsch.convert.rules import decide
from clebsch.convert.swap import is_covered, swap, unswap

__all__ = ["accelerate", "restore"]


def accelerate(model: torch.nn.Module, *, inplace: bool = False, strict: bool = False) -> torch.nn.Module:
    """The model with the forward of every module that is known here replaced by our kernels.

    Known are e3nn's products, Linear and SphericalHarmonics of any version from 0.4.4, and the blocks of
    MACE, NequIP, Allegro and SevenNet that contain convolutions, whose weights are then never made whole.
    Parameters, buffers and names stay, so state_dict, optimisers and training go on; energies, forces and
    gradients agree up to rounding. `print(clebsch.explain(model))` says what was replaced, what was left as
    it is and why; `restore` undoes it. What a kernel does not take at a call (other dtypes, devices without
    kernels, autocast, transforms) goes to the module's own code.

    Args:
        model: a live model; not TorchScript, whose code is fixed.
        inplace: change the model itself, rather than a copy of it.
        strict: raise if a module is known but has to be left.

    Returns:
        The accelerated model: of the same class, with the same modules. It can be copied and pickled (to be
        read where clebsch is installed) and compiled; restore it before torch.jit.script.

    Raises:
        TypeError: model is no `torch.nn.Module`, or cannot be copied.
        ValueError: with strict, naming each module that was left.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    if not inplace:
        model = _copy(model)
    decisions = list(decide(model))
    left = [decision for decision in decisions if decision.left is not None]
    if strict and left:
        reasons = "; ".join(
            f"{one.name or 'model'} ({type(one.module).__name__}): {one.left}" for one in left
        )
        raise ValueError(f"accelerate: model has modules that are left as they are: {reasons}")
    for decision in decisions:
        if decision.rule is not None:
            swap(decision.module, decision.rule)
        else:
            decision.module.__dict__[LEFT] = decision.left
    return model


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Undo `accelerate`, in place: the model as its package made it, with the weights of now.

    Raises:
        TypeError: model is no `torch.nn.Module`.
        ValueError: something has changed the class of an accelerated module since, as parametrizations and
            sharded parameters do; nothing is undone then.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if is_covered(module):
            raise ValueError(
                f"restore: model.{name} has a class on top of ours, {type(module).__qualname__}: "
                "take away first what was put on after accelerate"
            )
    for module in model.modules():
        unswap(module)
    return model


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    """A deep copy with the keys of the original in its state_dict, also of parameters that torch cannot copy:
    MACE's, of powers without couplings.
    """
    memo = {}
    for parameter in model.parameters():
        if "__new__" in vars(type(parameter)) and type(parameter) is not torch.nn.Parameter:
            data = parameter.detach().clone()
            memo[id(parameter)] = torch.Tensor._make_subclass(type(parameter), data, parameter.requires_grad)
    try:
        made = copy.deepcopy(model, memo)
    except (TypeError, pickle.PickleError) as error:
        raise TypeError(
            f"accelerate: model cannot be copied ({error}); inplace=True changes the model itself"
        ) from error
    # Code of e3nn's that was traced is traced again in a copy, and its constants are buffers there.
    for before, after in zip(model.modules(), made.modules(), strict=True):
        if not isinstance(after, torch.jit.ScriptModule):
            after._non_persistent_buffers_set.update(after._buffers.keys() - before._buffers.keys())
    return made
