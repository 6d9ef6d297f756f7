"""Console output that the commands share: plain lines, tables, sizes for people, and progress bars."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from moongate.training import Step

__all__ = ["print_table", "progress_bar", "readable", "say", "say_notes", "size_of", "training_bar"]

SMOOTHED_STEPS = 25
"""The loss that the bar shows is the mean over this many steps; that of one step depends mostly on its noise level."""


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print plain text as it is: no wrapping of paths, no markup in brackets."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_notes(console: Console, notes: Sequence[str]) -> None:
    """Print what was skipped while pictures or captions were read."""
    for note in notes:
        say(console, note, style="yellow")


def print_table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows of text as a table. Long cells continue on the next line; words of the head stay whole."""
    table = Table(title=title or None, title_justify="left")
    for name in head:
        table.add_column(name, overflow="fold", min_width=max(map(len, name.split())))
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def size_of(file: Path) -> str:
    """Return the size of a file, or of all files in a folder, for people to read."""
    return readable(sum(path.stat().st_size for path in (file.iterdir() if file.is_dir() else [file])))


def readable(size: float) -> str:
    """Return a number of bytes for people to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def progress_bar(console: Console) -> Progress:
    """Return a bar with a count, a note and the time left. Each task needs a field `note`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console)


@contextlib.contextmanager
def training_bar(console: Console) -> Iterator[Callable[["Step"], None]]:
    """Show a bar while training, and yield the function to call after each step."""
    with progress_bar(console) as progress:
        task = progress.add_task("Training", total=None, note="")
        losses: list[float] = []

        def show(step: "Step") -> None:
            if step.index == 1:  # a bar may show several runs, one after the other
                losses.clear()
            losses.append(step.loss)
            recent = losses[-SMOOTHED_STEPS:]
            note = f"loss {sum(recent) / len(recent):.3f}  {step.pictures_per_second:.1f} pictures/s"
            progress.update(task, total=step.steps, completed=step.index, note=note)

        yield show
