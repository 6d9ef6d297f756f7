"""Writing files: atomically, never over a file that must stay, under names that every file system accepts.

All files of the package are written here. The module knows nothing of what they hold.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from moongate.errors import OptionError

__all__ = ["check_writable", "digest", "file_name", "locked", "write_atomically"]

NAME_BYTES = 120
"""Longest name that `file_name` gives: file systems allow 255 bytes, and callers add endings and numbers to it."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, and create its folder if there is none.

    The content goes into a temporary file of a unique name in the same folder, which is then renamed. A reader sees the
    old file or the new one, never a part. When several processes write one file at once, all of them succeed and one
    of the contents remains.

    Args:
        path: The file to write; an earlier file of that name is replaced.
        content: All bytes of the file.

    Raises:
        OptionError: The file cannot be written; an earlier file is untouched.
    """
    temporary = path.with_name(f".moongate-{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OptionError(
            f"{path} could not be written ({error.strerror or error}); an earlier file of that name is unchanged. "
            "Free some disk space or choose another path."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written, before the work whose result it will hold.

    Args:
        path: The file to be written.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OptionError: `path` is a folder, or exists and may not be replaced.
    """
    if path.is_dir():
        raise OptionError(f"{path} is a folder. Give the name of a file, such as {path / 'concept.safetensors'}.")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists already. Choose another name or allow overwriting (--overwrite).")


def digest(*parts: bytes | str, length: int = 12) -> str:
    """Return the SHA-256 digest of the parts, which are joined without a separator.

    Args:
        parts: Bytes, or text that is encoded as UTF-8.
        length: Number of hexadecimal digits to keep, from 1 to 64.
    """
    content = hashlib.sha256()
    for part in parts:
        content.update(part.encode() if isinstance(part, str) else part)
    return content.hexdigest()[:length]


def file_name(words: str) -> str:
    """Return a file name without an ending for a user's words: `"<bear> teddy bear"` becomes `"bear-teddy-bear"`.

    Letters and digits of all scripts stay; all other characters become hyphens. Words without a letter or digit give
    `"unnamed"`. The name has at most `NAME_BYTES` bytes.
    """
    name = re.sub(r"\W+", "-", words).strip("-")
    return name.encode()[:NAME_BYTES].decode(errors="ignore") or "unnamed"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a cache that several processes share; wait while another process holds it.

    Args:
        path: The file or folder to lock. The lock itself is the file `<path>.lock` in the same folder.

    Raises:
        OptionError: The lock file cannot be created.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise OptionError(
            f"{path} could not be locked ({error.strerror or error}). Check that you may write into {path.parent}."
        ) from error
    try:
        yield
    finally:
        lock.release()
