"""The command `clebsch`: what is installed, what of it runs here, whether it computes what it should, and the
demonstration.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Sequence

import clebsch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: sys.argv) and returns the exit status; SystemExit(2) if it is wrong."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["demo"]:  # has options of its own, and `clebsch demo --help` should list them
        from clebsch import demo

        return demo.main(arguments[1:]) or 0
    if arguments[:1] == ["sevenn"]:
        from clebsch.convert import sevennet_command

        return sevennet_command.main(arguments[1:])
    if arguments[:1] and arguments[0] in ("mace_run_train", "mace_eval_configs"):
        from clebsch.convert import mace_command

        return mace_command.main(arguments[0], arguments[1:])
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.error("a command is needed: info, check, demo, sevenn, mace_run_train or mace_eval_configs")
    return _check(parsed.rows, parsed.seed) if parsed.command == "check" else _info()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clebsch", description=clebsch.__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"clebsch {clebsch.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help="versions, backends, instruction sets and threads on this machine")
    check = commands.add_parser("check", help="compare every kernel with the reference on this machine")
    check.add_argument("--rows", type=_positive, help="rows of the random operands (default: 19)")
    check.add_argument("--seed", type=_natural, default=0, help="of the operands (default: 0)")
    commands.add_parser("demo", help="train a potential, or run a trained one (see clebsch demo --help)")
    commands.add_parser("sevenn", help="SevenNet's own command line, its models accelerated")
    commands.add_parser("mace_run_train", help="MACE's own training, accelerated")
    commands.add_parser("mace_eval_configs", help="MACE's own evaluation of structures, accelerated")
    return parser


def _positive(text: str) -> int:
    return _at_least(1, text)


def _natural(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer >= {least}, got {text!r}")
    return int(text)


def _check(rows: int | None, seed: int) -> int:
    """One line for each standard layer as it is checked, the whole report of what failed."""
    try:
        from clebsch import machine
        from clebsch.check import check
        from clebsch.standard_layers import standard_layers

        for name, value in machine.describe().items():
            print(f"{name:<17} {value}")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return _unusable(error)
    failed = count = 0
    for name, layer in standard_layers():
        start = time.perf_counter()
        report = check(layer, rows=rows, seed=seed)
        checks = sum(len(found.checks) for found in report.layers)
        count += 1
        failed += not report.passed
        taken = f"{checks:>3} checks  {time.perf_counter() - start:.1f} s"
        print(f"{'ok  ' if report.passed else 'FAIL'}  {name:<50} {taken}", flush=True)
        if not report.passed:
            print("\n".join(map(str, report.layers)), flush=True)
    print(f"NOT PASSED: {failed} of {count} layers" if failed else f"passed: {count} layers")
    return 1 if failed else 0


def _unusable(error: Exception) -> int:
    print(f"clebsch: the compiled libraries cannot be used: {error}", file=sys.stderr)
    return 1


def _info() -> int:
    for name, value in _installed():
        print(f"{name:<17} {value}")
    try:
        for name, value in _running():
            print(f"{name:<17} {value}")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return _unusable(error)
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
