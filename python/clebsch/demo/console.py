"""What both demonstrations say, where they write, and how they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["UserError", "output_directory", "print_table", "progress", "threads"]


class UserError(Exception):
    """Something to fix on the command line or in the environment: one sentence, no traceback."""


def output_directory(name: str) -> Path:
    """The folder, made if need be. UserError if it cannot be."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {name}: {error.strerror}") from None
    return path


def progress(console: Console) -> Progress:
    """A bar with the time that is left; its tasks have a field `note`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("[bold]{task.description:<11}[/]"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def threads(count: int) -> str:
    """The count in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def print_table(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """What was measured, and values aligned on the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.MARKDOWN, show_header=True, header_style="bold")
    table.add_column(title, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for name, value in rows:
        table.add_row(name, value)
    console.print()
    console.print(table)
    console.print()
