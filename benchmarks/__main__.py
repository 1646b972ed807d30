"""python -m benchmarks NAME [options]"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from . import NAMES

if TYPE_CHECKING:
    from .device import Device
    from .harness import Row
    from .session import Session

RESULTS = Path(__file__).parent / "results"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", epilog="See docs/benchmarks.md.")
    parser.add_argument("name", choices=[*NAMES, "all"])
    parser.add_argument("--threads", type=int, default=1, help="of torch and its peers (default 1)")
    parser.add_argument("--isa", default="", help="of clebsch's kernels: avx512, avx2, baseline")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: an NVIDIA GPU")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: does it run at all?")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases named like this (* and ?)")
    parser.add_argument(
        "--client",
        default="",
        choices=["", "mace", "nequip", "allegro", "sevennet"],
        help="(accelerate) the package whose models are measured",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also peers that compile: e3nn or the model under torch.compile (slow)",
    )
    parser.add_argument("--memory", type=float, default=12.0, metavar="GIB", help="of the largest problems")
    parser.add_argument("--plot", action="store_true", help="also a picture (matplotlib)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON and picture")
    options = parser.parse_args(arguments)
    if (options.name == "accelerate") != bool(options.client):
        parser.error("accelerate needs --client, and no other benchmark takes it")
    return options


def prepare(options: argparse.Namespace) -> None:
    """Threads and instruction set are read when torch, sphericart and clebsch are first imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    if options.isa:
        os.environ["CLEBSCH_ISA"] = options.isa


def stem(name: str, options: argparse.Namespace, complete: bool = True) -> str:
    """Runs with other settings than the default do not overwrite its results, nor those that ended early
    the results of any run that did not."""
    device = "" if options.device == "cpu" else options.device
    parts = [
        name,
        options.client,
        device,
        options.isa,
        f"threads{options.threads}" if options.threads != 1 else "",
    ]
    parts += ["quick" if options.quick else "", "part" if options.only else ""]
    parts += ["" if complete else "ended"]
    return "-".join(filter(None, parts))


def chosen(options: argparse.Namespace, device: Device) -> dict[str, ModuleType]:
    """The benchmarks to run; SystemExit at once where something is missing for all, or for the one."""
    if missing := device.missing():
        sys.exit(f"benchmarks: --device {device.name} does not run here: {'; '.join(missing)}")
    # Models of other packages need environments of their own; published sizes are for GPUs.
    apart = {"accelerate", "published"} if device.name == "cpu" else {"accelerate"}
    names = [name for name in NAMES if name not in apart] if options.name == "all" else [options.name]
    modules = {name: import_module(f".{name}", __package__) for name in names}
    refused = {name: reason for name in names if (reason := device.refuses(modules[name]))}
    lines = [
        f"benchmarks: {name} does not run on {device.name}: {reason}" for name, reason in refused.items()
    ]
    if refused.keys() == modules.keys():
        sys.exit("\n".join(lines))
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    return {name: module for name, module in modules.items() if name not in refused}


def measured(module: ModuleType, session: Session) -> tuple[list[Row], BaseException | None]:
    """Rows, and what ended the run before it was through: hours of numbers are written all the same."""
    from .device import first_line

    rows: list[Row] = []
    try:
        for row in module.rows(session):
            rows.append(row)
    except BaseException as failure:
        session.note(f"ended early: {first_line(failure)}")
        return rows, failure
    return rows, None


def main(arguments: list[str] | None = None, device: Device | None = None) -> int:
    options = parse(arguments)
    prepare(options)
    import torch

    from . import machine, report
    from .device import DEVICES
    from .session import Session

    device = device or DEVICES[options.device]()
    modules = chosen(options, device)
    torch.set_num_threads(options.threads)
    session = Session(
        **{
            k: getattr(options, k) for k in ("quick", "only", "threads", "isa", "compile", "memory", "client")
        },
        device=device,
    )
    command = "python -m benchmarks " + " ".join(sys.argv[1:] if arguments is None else arguments)
    notes, every = report.caveats(options.quick, machine.load()), []
    for name, module in modules.items():
        print(name, file=sys.stderr, flush=True)
        place = machine.describe(command) | device.describe()
        session.notes.clear()
        rows, ended = measured(module, session)
        if ended is not None and not rows:
            raise ended
        every += rows
        path = options.results / f"{stem(name, options, ended is None)}.json"
        report.write_json(path, name, place, rows, [*notes, *session.notes])
        title = f"{name}: {device.title(place)}"
        report.show(title, rows)
        print(*session.notes, sep="\n", end="\n" if session.notes else "")
        if options.plot:
            report.plot(path.with_suffix(".png"), title, rows)
        if ended is not None:
            raise ended
    print(report.summary(every, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
