"""What all commands share: loading a model, printing, and progress bars."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..training import Step

__all__ = ["load", "progress_bar", "readable", "say", "size_of", "training_bar"]


def load(model: str, device: str | None, dtype: str, config: Path | None) -> "Backbone":
    """Load a model in the precision of that name; `config` is for a single file."""
    import torch

    from ..backbone import Backbone

    return Backbone.load(model, config=config, device=device, dtype=getattr(torch, dtype))


def size_of(file: Path) -> str:
    """Return a file's size for people to read."""
    return readable(file.stat().st_size)


def readable(size: float) -> str:
    """Return a number of bytes for people to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print plain text as it is: paths in one piece, brackets and angle brackets untouched."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """Return a bar with a note and the time left; tasks give `note`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console)


@contextlib.contextmanager
def training_bar(console: Console) -> Iterator[Callable[["Step"], None]]:
    """Yield what `train` may call after each step."""
    with progress_bar(console) as progress:
        task = progress.add_task("Training", total=None, note="")
        smooth: list[float] = []

        def show(step: "Step") -> None:
            if step.index == 1:  # a bar may show several runs, one after the other
                smooth.clear()
            smooth.append(step.loss)
            recent = smooth[-25:]
            note = f"loss {sum(recent) / len(recent):.3f}  {step.pictures_per_second:.1f} pictures/s"
            progress.update(task, total=step.steps, completed=step.index, note=note)

        yield show
