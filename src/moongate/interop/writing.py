"""Write a concept in any format: one file, or a folder of files that belong together."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from moongate.concept import Concept
from moongate.errors import OptionError, listed
from moongate.files import check_folder, check_writable, write_atomically
from moongate.interop.content import SUFFIXES
from moongate.interop.formats import named_format
from moongate.interop.formats.contract import WriteOptions

__all__ = ["Written", "check_destination", "is_one_file", "write"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files that were written."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    """What the files do not hold, as sentences for the user."""


def check_destination(out: str | Path, *, to: str, overwrite: bool) -> None:
    """Check that a concept can be written to `out`, before any work is done.

    Args:
        out: The file, or for formats of several files the folder, to write.
        to: The name of the format.
        overwrite: Whether existing files may be replaced.

    Raises:
        OptionError: There is no such format; `out` is a file where a folder is needed, or the reverse; it exists
            and may not be replaced; or its folder cannot be written.
    """
    out, form = Path(out), named_format(to)
    if not form.is_folder or is_one_file(out, to=to):
        check_writable(out, overwrite=overwrite)
    elif out.suffix.lower() in SUFFIXES:
        folder = out.with_suffix("")
        raise OptionError(f"{to!r} is written into a folder, but {out} is the name of a file. Give --out {folder}.")
    elif out.is_file():
        raise OptionError(f"{to!r} is written into a folder, but {out} is a file. Give another --out.")
    elif out.is_dir() and not overwrite and any(not path.name.startswith(".") for path in out.iterdir()):
        raise OptionError(f"The folder {out} is not empty. Choose another, or allow overwriting (--overwrite).")
    else:
        check_folder(out)


def is_one_file(out: str | Path, *, to: str) -> bool:
    """Return whether a format is written as one file because `out` is the name of one and the format can be."""
    return named_format(to).fits_one_file and Path(out).suffix.lower() == ".safetensors"


def write(
    concept: Concept, out: str | Path, *, to: str, options: WriteOptions | None = None, overwrite: bool = False
) -> Written:
    """Write a concept in another format. Each file is written whole or not at all.

    Args:
        concept: The concept.
        out: The file, or for formats of several files the folder, to write. `kohya` is one file where `out` ends in
            .safetensors.
        to: The name of the format, a key of `FORMATS`.
        options: The base model and the rank; the name is taken from `out`.
        overwrite: Whether existing files may be replaced.

    Raises:
        OptionError: `out` cannot be written, the format stores full weights and there is no base, or the concept holds
            nothing that the format can store.
        BaseMismatchError: The concept was made for another base than the one in the options.
    """
    out, form = Path(out), named_format(to)
    check_destination(out, to=to, overwrite=overwrite)
    one_file = is_one_file(out, to=to)
    options = replace(options or WriteOptions(), name=out.resolve().name or "concept", one_file=one_file)
    if options.base is not None:
        concept.check_base(options.base)
    rendered = form.render(concept, options)
    files = {out / name if name else out: content for name, content in rendered.files.items()}
    for path, content in files.items():
        write_atomically(path, content)
    notes = rendered.notes + (_other_weights(out, files) if form.is_folder and not one_file else ())
    return Written(files=tuple(files), notes=notes)


def _other_weights(folder: Path, written: Container[Path]) -> tuple[str, ...]:
    """Return a note about other weights in the folder, because readers take them for parts of the concept."""
    others = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file not in written)
    note = f"{folder} also holds {listed(others)}, which is not of this concept but is read with it. Remove it."
    return (note,) if others else ()
