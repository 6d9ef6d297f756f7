"""What all commands share: loading a model, printing, and progress bars."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.interop import Recognized
    from moongate.training import Step

__all__ = [
    "lines_of",
    "load",
    "open_concept",
    "open_concepts",
    "progress_bar",
    "readable",
    "say",
    "size_of",
    "training_bar",
]


def load(model: str, device: str | None, dtype: str, config: Path | None) -> "Backbone":
    """Load a model in the precision of that name; `config` is for a single file."""
    import torch

    from moongate.backbone import Backbone

    return Backbone.load(model, config=config, device=device, dtype=getattr(torch, dtype))


def open_concepts(
    files: Sequence[Path],
    model: str | None,
    config: Path | None,
    device: str | None,
    dtype: str,
    console: Console,
) -> "tuple[Backbone, list[Concept]]":
    """Read concepts of any format and load their model: the one named, or the first that a file names.

    What of a file could not be taken is printed.
    """
    from moongate.interop import recognize

    found = [recognize(file) for file in files]
    name = model or next((each.base for each in found if each.base), "" if found else "pocket")
    if not name:
        raise OptionError(f"{files[0]} does not say which model it belongs to. Name it with --model.")
    backbone = load(name, device, dtype, config)
    return backbone, [_taken(each, backbone, console) for each in found]


def open_concept(file: Path, model: str | None, config: Path | None, device: str | None, console: Console) -> "Concept":
    """Read a concept of any format; its model is only loaded, to tell what full weights change, when it is named."""
    from moongate.interop import recognize

    found = recognize(file)
    return _taken(found, load(model, device, "float32", config) if model else None, console)


def _taken(found: "Recognized", backbone: "Backbone | None", console: Console) -> "Concept":
    """Return the concept of a file, and print what of the file is not in it."""
    imported = found.concept(base=backbone)
    for note in imported.notes:
        say(console, f"{found.path}: {note}")
    return imported.concept


def lines_of(file: Path, what: str) -> list[str]:
    """Return the lines of a text file that hold something. Raises OptionError when it is missing or no UTF-8."""
    if not file.is_file():
        raise OptionError(f"There is no file of {what} {file}. Check the path.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise OptionError(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}). Save it so.") from error
    return [line.strip() for line in lines if line.strip()]


def size_of(file: Path) -> str:
    """Return the size of a file, or of the files in a folder, for people to read."""
    return readable(sum(each.stat().st_size for each in (file.iterdir() if file.is_dir() else [file])))


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
