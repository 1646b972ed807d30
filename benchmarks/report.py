"""Rows as a table in the terminal, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .harness import Row

COLUMNS = ("case", "quantity", "median", "quartiles", "floor", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    spread, floor = row.spread, row.floor
    sign = {"at least": ">=", "at most": "<="}
    return (
        row.name,
        row.quantity,
        f"{_number(spread.median)} {row.unit}",
        f"{_number(spread.low)} .. {_number(spread.high)}",
        f"{sign[floor.sense]} {floor.value:g}" if floor else "",
        verdict(row),
    )


def verdict(row: Row) -> str:
    return "; ".join(filter(None, (_of_floor(row), str(row.detail.get("remark", "")))))


def _of_floor(row: Row) -> str:
    if row.floor is None:
        return ""
    missed = row.floor.missed_by(row.spread.median)
    return f"missed by {100 * missed:.0f} %" if missed else "met"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def caveats(quick: bool, load: float) -> list[str]:
    """Why the numbers of a run should not be quoted."""
    found = ["quick: sizes are not those that the floors are set for"] if quick else []
    if load > 1:
        found.append(
            f"load average {load:.1f} at the start: others use this machine, measure again when it is quiet"
        )
    return found


def summary(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    held = [row for row in rows if row.floor]
    missed = [row for row in held if row.floor.missed_by(row.spread.median)]
    lines = [f"{len(held) - len(missed)} of {len(held)} floors met"]
    lines += [f"  {row.name}, {row.quantity}: {verdict(row)}" for row in missed]
    return "\n".join([*lines, *notes])


def table(title: str, rows: Sequence[Row]) -> str:
    """Plain text, columns aligned."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([title, body[0], "-" * len(body[0]), *body[1:]])


def show(title: str, rows: Sequence[Row]) -> None:
    """With rich where it is installed and a person is looking, plain otherwise."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(table(title, rows))
        return
    console = Console()
    if not console.is_terminal:
        print(table(title, rows))
        return
    fancy = Table(*COLUMNS, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        met = row.floor is None or not row.floor.missed_by(row.spread.median)
        fancy.add_row(*cells(row), style=None if met else "red")
    console.print(fancy)


def write_json(
    path: Path, name: str, machine: dict[str, object], rows: Sequence[Row], notes: Sequence[str] = ()
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, object] = {"name": name, "machine": machine, "caveats": list(notes)}
    content["rows"] = [row.as_json() for row in rows]
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Ratios as bars with their quartiles; a tick where the floor is."""
    from matplotlib.figure import Figure

    ratios = [row for row in rows if row.unit == "x"][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(ratios):
        spread, missed = row.spread, row.floor and row.floor.missed_by(row.spread.median)
        errors = [[spread.median - spread.low], [spread.high - spread.median]]
        axes.barh(place, spread.median, xerr=errors, color="tab:red" if missed else "tab:blue")
        if row.floor:
            axes.plot([row.floor.value] * 2, [place - 0.4, place + 0.4], color="black")
    axes.set_yticks(range(len(ratios)), [f"{row.name}: {row.quantity}" for row in ratios], fontsize=7)
    axes.set(
        xscale="log", xlabel="ratio of times, median and quartiles; black: the floor", ylim=(-1, len(ratios))
    )
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
