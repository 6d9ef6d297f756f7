"""Console output that the commands share: plain lines, tables, sizes for people, and progress bars."""

import contextlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from moongate.training import Step

__all__ = [
    "bytes_of",
    "plain",
    "print_table",
    "progress_bar",
    "readable",
    "say",
    "say_notes",
    "size_of",
    "training_bar",
]

ALLOWED = "\n\t\u200c\u200d"
"""Of the hidden characters, those that text needs: lines, and the joiners of some scripts and of emoji."""
SMOOTHED_STEPS = 25
"""The loss that the bar shows is the mean over this many steps; that of one step depends mostly on its noise level."""


def plain(text: str) -> str:
    """Return text as a terminal may show it: control, direction and surrogate characters become visible escapes.

    Text from files would otherwise move the cursor, set the title, or show words in another order than they have.
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in hidden and character not in ALLOWED
        else character
        for character in text
    )


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print text without wrapping of paths, markup in brackets, or terminal escapes."""
    console.print(plain(text), style=style, markup=False, highlight=False, soft_wrap=True)


def say_notes(console: Console, notes: Sequence[str]) -> None:
    """Print what was skipped while pictures or captions were read."""
    for note in notes:
        say(console, note, style="yellow")


def print_table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows of text as a table that fits the terminal. Long cells continue on the next line; words stay whole."""
    table = Table(title=Text(plain(title)) if title else None, title_justify="left")
    shown = [[plain(cell) for cell in row] for row in rows]
    for name, width in zip(head, _widths([head, *shown], console.width - 3 * len(head) - 1), strict=True):
        table.add_column(name, overflow="fold", width=width)
    for row in shown:
        table.add_row(*row)
    console.print(table, markup=False)


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the widths of a table's columns: those of their cells, less where the longest words leave room."""
    columns = [[line for cell in column for line in cell.splitlines()] for column in zip(*rows, strict=True)]
    widths = [max(map(cell_len, lines), default=1) for lines in columns]
    words = [max((cell_len(word) for line in lines for word in line.split()), default=1) for lines in columns]
    while sum(widths) > room and max(widths) > 1:
        loose = [index for index, width in enumerate(widths) if width > words[index]] or range(len(widths))
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def bytes_of(file: Path) -> int:
    """Return the size of a file in bytes, or of all files in a folder."""
    return sum(path.stat().st_size for path in (file.iterdir() if file.is_dir() else [file]))


def size_of(file: Path) -> str:
    """Return the size of a file, or of all files in a folder, for people to read."""
    return readable(bytes_of(file))


def readable(size: float) -> str:
    """Return a number of bytes for people to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def progress_bar(console: Console) -> Progress:
    """Return a bar with a count, a note and the time left. Each task needs a field `note`."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}", markup=False)
    return Progress(*columns, note, TimeRemainingColumn(), console=console)


@contextlib.contextmanager
def training_bar(console: Console) -> Iterator[Callable[["Step"], None]]:
    """Show a bar while training, and yield the function to call after each step."""
    with progress_bar(console) as progress:
        task = progress.add_task("Training", total=None, note="", visible=False)  # a finished run has no step left
        losses: list[tuple[float, float]] = []

        def show(step: "Step") -> None:
            if step.index == 1:  # a bar may show several runs, one after the other
                losses.clear()
            losses.append((step.target_loss, step.prior_loss))
            recent = losses[-SMOOTHED_STEPS:]
            target, prior = (sum(values) / len(recent) for values in zip(*recent, strict=True))
            regularization = f", regularization {prior:.3f}" if prior else ""
            note = f"loss {target:.3f}{regularization}  {step.pictures_per_second:.1f} pictures/s"
            if step.utilization is not None:
                note += f"  MFU {step.utilization:.0%}"
            progress.update(task, total=step.steps, completed=step.index, note=note, visible=True)

        yield show
