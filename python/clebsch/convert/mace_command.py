"""MACE's own command line on our kernels: `clebsch mace_run_train ...`, `clebsch mace_eval_configs ...`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from clebsch.convert import accelerate, command

__all__ = ["COMMANDS", "disable", "enable", "main"]

# Names of MACE's commands, and where they are.
COMMANDS = {"mace_run_train": "mace.cli.run_train", "mace_eval_configs": "mace.cli.eval_configs"}

_switch = command.Switch()


def enable() -> None:
    """What MACE's commands train and evaluate in this process from now on is accelerated meanwhile.

    A model that is trained, or evaluated after it, is accelerated in place and restored at the end: whatever
    MACE copies, saves or compiles is its own. One that is read to be evaluated stays accelerated.

    Raises:
        ImportError: mace-torch is not installed.
        AttributeError: this version of mace-torch has no such functions.
    """
    from mace import tools
    from mace.cli import eval_configs, run_train

    if _switch.is_on:
        return
    _switch.replace(
        (tools, "train", _while_it_runs),
        (run_train, "create_error_table", _while_it_runs),
        (eval_configs, "get_model_output", _from_now_on),
    )


def disable() -> None:
    """Undo `enable`."""
    _switch.off()


def _while_it_runs(function: Any) -> Any:
    signature = inspect.signature(function)

    def accelerated(*args: Any, **kwargs: Any) -> Any:
        model = signature.bind(*args, **kwargs).arguments["model"]
        with command.while_accelerated(model):
            _switch.say(model.modules())
            return function(*args, **kwargs)

    return accelerated


def _from_now_on(function: Any) -> Any:
    """The model is the first argument, the same for every batch."""
    known = None

    def accelerated(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal known
        if model is not known:
            known = accelerate(model, inplace=True)
            _switch.say(model.modules())
        return function(model, *args, **kwargs)

    return accelerated


def main(name: str, arguments: Sequence[str]) -> int:
    """MACE's command `name` with these arguments; the exit status is 2 if it is not installed."""
    needs = ("mace", "mace-torch")
    return command.run(name, arguments, needs, enable, disable, lambda: import_module(COMMANDS[name]).main)
