"""Command lines of other packages, whose models are accelerated while they run."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from clebsch.convert import accelerate, restore
from clebsch.convert.left import LEFT
from clebsch.convert.swap import is_accelerated

__all__ = ["Switch", "run", "while_accelerated"]


class Switch:
    """Functions of a package that are replaced as long as it is on, and what is said of its models, once."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []
        self._has_spoken = False

    @property
    def is_on(self) -> bool:
        """Whether something is replaced."""
        return bool(self._replaced)

    def replace(self, *changes: tuple[Any, str, Callable[[Any], Any]]) -> None:
        """For each (module, name, make), put make(function) in the place of the function of that name.

        AttributeError, before anything is replaced, if there is none.
        """
        originals = [getattr(place, name) for place, name, _ in changes]
        for (place, name, make), original in zip(changes, originals, strict=True):
            setattr(place, name, functools.wraps(original)(make(original)))
            self._replaced.append((place, name, original))

    def off(self) -> None:
        """Put back what was replaced."""
        while self._replaced:
            place, name, original = self._replaced.pop()
            setattr(place, name, original)
        self._has_spoken = False

    def say(self, modules: Iterable[torch.nn.Module]) -> None:
        """How many of the modules are accelerated and what was left, where the package logs; the first time
        alone.
        """
        if self._has_spoken:
            return
        self._has_spoken = True
        log, text = logging.getLogger(), f"clebsch: {_summary(list(modules))}"
        if log.handlers and log.isEnabledFor(logging.INFO):
            log.info(text)
        else:
            print(text, file=sys.stderr)


def _summary(modules: Sequence[torch.nn.Module]) -> str:
    count = sum(map(is_accelerated, modules))
    done = f"{count} module{'s' * (count > 1)} accelerated"
    left = [f"left: {type(one).__name__}, {vars(one)[LEFT]}" for one in modules if LEFT in vars(one)]
    return "; ".join([done if count else "no module is accelerated, the model runs as it is", *left])


@contextmanager
def while_accelerated(model: torch.nn.Module) -> Iterator[None]:
    """`accelerate` in place, and `restore` at the end; an error of the block's is shown all the same."""
    accelerate(model, inplace=True)
    try:
        yield
    except BaseException:
        try:
            restore(model)
        except ValueError as error:
            logging.getLogger().warning("clebsch: %s", error)
        raise
    restore(model)


def run(
    command: str,
    arguments: Sequence[str],
    needs: tuple[str, str],
    enable: Callable[[], None],
    disable: Callable[[], None],
    find: Callable[[], Callable[[], Any]],
) -> int:
    """Run a package's command with these arguments, switched on; the exit status is 2 for what cannot be run.

    needs: the package, and what pip installs it by. find: imports the package's own function.
    """
    package, requirement = needs
    if importlib.util.find_spec(package) is None:
        print(f"clebsch {command}: needs {package}: pip install {requirement}", file=sys.stderr)
        return 2
    main = find()
    try:
        enable()
    except AttributeError as error:
        print(f"clebsch {command}: this version of {package} is not known: {error}", file=sys.stderr)
        return 2
    given, sys.argv = sys.argv, [command, *arguments]
    try:
        main()
    finally:
        sys.argv = given
        disable()
    return 0
