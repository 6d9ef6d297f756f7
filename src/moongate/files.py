"""Writing files: whole or not at all, and never over a file that must stay."""

import contextlib
import os
from pathlib import Path

from moongate.errors import OptionError

__all__ = ["check_writable", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name and rename it, so that an earlier file survives a failure."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OptionError(
            f"{path} could not be written ({error.strerror or error}); an earlier file of that name is untouched. "
            "Free some space or choose another place."
        ) from error


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise OptionError when `path` exists and may not be replaced, or is a folder."""
    if path.is_dir():
        raise OptionError(f"{path} is a folder. Give the name of a file, such as {path / 'concept.safetensors'}.")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists already. Choose another name or allow overwriting (--overwrite).")
