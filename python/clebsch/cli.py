"""The command `clebsch`: what is installed and what of it runs here, and the demonstration."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence

import clebsch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: sys.argv) and returns the exit status; SystemExit(2) if it is wrong."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["demo"]:  # has options of its own, and `clebsch demo --help` should list them
        from clebsch import demo

        return demo.main(arguments[1:]) or 0
    parser = _parser()
    if parser.parse_args(arguments).command is None:
        parser.error("a command is needed: info or demo")
    return _info()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clebsch", description=clebsch.__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"clebsch {clebsch.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help="versions, backends, instruction sets and threads on this machine")
    commands.add_parser("demo", help="train a small potential on clebsch layers (see clebsch demo --help)")
    return parser


def _info() -> int:
    for name, value in _installed():
        print(f"{name:<17} {value}")
    try:
        for name, value in _running():
            print(f"{name:<17} {value}")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"clebsch: the compiled libraries cannot be used: {error}", file=sys.stderr)
        return 1
    return 0


def _installed() -> Iterator[tuple[str, str]]:
    yield "clebsch", clebsch.__version__
    yield "torch", _torch_version()
    yield "python", platform.python_version()
    yield "system", f"{platform.system()} {platform.machine()}"


def _torch_version() -> str:
    try:
        import torch
    except ImportError as error:
        return f"cannot be imported: {error}"
    return torch.__version__


def _running() -> Iterator[tuple[str, str]]:
    from clebsch import backend

    for name, state in backend.backends().items():
        yield f"backend {name}", state
    yield "instruction sets", f"compiled {', '.join(backend.compiled_instruction_sets())}"
    yield "", f"usable here {', '.join(backend.usable_instruction_sets())}"
    yield "", f"in use {backend.instruction_set()}"
    yield from _unrolled()
    backend.load()  # the operators too
    import torch

    yield "threads", str(torch.get_num_threads())


def _unrolled() -> Iterator[tuple[str, str]]:
    """A line for every noun: the degrees that are constants in the code in use."""
    from clebsch import backend

    degrees: dict[str, dict[str, int]] = {}
    for kernel in backend.kernels():
        if kernel["instruction_set"] == backend.instruction_set():
            degrees.setdefault(kernel["noun"], {})[kernel["dtype"]] = kernel["unrolled_degree"]
    for noun, by_dtype in degrees.items():
        limits = ", ".join(f"{degree} ({dtype})" for dtype, degree in by_dtype.items())
        yield "", f"unrolled to degree {limits}: {noun}"
