"""Write a concept in any format: one file, or a folder of files that belong together."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from moongate.concept import Concept
from moongate.errors import OptionError, listed
from moongate.files import check_writable, write_atomically
from moongate.interop.content import SUFFIXES
from moongate.interop.format import WriteOptions
from moongate.interop.formats import named_format

__all__ = ["Written", "check_place", "write"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files, and what the user should know of what they do not hold."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def check_place(out: str | Path, *, to: str, overwrite: bool) -> None:
    """Raise OptionError for an unknown format, and unless `out` is free for a file or a folder as it needs one."""
    out = Path(out)
    if not named_format(to).is_folder:
        check_writable(out, overwrite=overwrite)
    elif out.is_file():
        raise OptionError(f"{to!r} is written into a folder, but {out} is a file. Give another --out.")
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OptionError(f"The folder {out} is not empty. Choose another, or allow overwriting (--overwrite).")


def write(
    concept: Concept, out: str | Path, *, to: str, options: WriteOptions | None = None, overwrite: bool = False
) -> Written:
    """Write the concept in the format named `to` into the file or folder `out`, each file whole or not at all.

    Raises OptionError when the place is taken, when the format stores full weights and no base is given, and when the
    concept holds nothing that the format can.
    """
    out, given = Path(out), named_format(to)
    check_place(out, to=to, overwrite=overwrite)
    options = replace(options or WriteOptions(), name=out.name)
    if given.needs_base and options.base is None:
        raise OptionError(f"{to!r} stores full weights, for which the base is needed. Name it with --base.")
    if options.base is not None:
        concept.check_base(options.base)
    rendered = given.render(concept, options)
    files = {out / name if name else out: content for name, content in rendered.files.items()}
    for path, content in files.items():
        write_atomically(path, content)
    return Written(files=tuple(files), notes=rendered.notes + (_others(out, files) if given.is_folder else ()))


def _others(folder: Path, written: Container[Path]) -> tuple[str, ...]:
    """Return a note on weights that lay in the folder before, which readers would take for parts of the concept."""
    others = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES and file not in written)
    note = f"{folder} also holds {listed(others)}, which is not of this concept but is read with it. Remove it."
    return (note,) if others else ()
