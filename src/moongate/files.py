"""Writing files: atomically, never over a file that must stay, under names that every file system accepts.

All files of the package are written here, and those of strangers are read through `read_regular`. The module knows
nothing of what they hold.
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from moongate.errors import OptionError

__all__ = [
    "append_lines",
    "check_folder",
    "check_writable",
    "digest",
    "exclusive",
    "exists",
    "file_name",
    "free_path",
    "free_stem",
    "is_file",
    "is_held",
    "leads_out",
    "locked",
    "read_regular",
    "remedy",
    "replace_folder",
    "try_lock",
    "write_atomically",
]

NAME_BYTES = 120
"""Longest name that `file_name` gives: file systems allow 255 bytes, and callers add endings and numbers to it."""
LOOK_S = 0.5
"""How long `exclusive` waits for a lock, because `is_held` takes it for a moment."""


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
            f"{remedy(error)}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to the end of a text file that several processes may write, and create it if there is none.

    All lines go to the system in one piece. A process that is killed has added all of them or none; where the machine
    itself stops, a last line may be cut, and the next lines begin on a line of their own behind it.

    Args:
        path: The file.
        lines: Lines without their ends.

    Raises:
        OptionError: The file cannot be written.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    with locked(path):
        try:
            with path.open("ab+", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    content = content if file.read(1) == b"\n" else b"\n" + content
                file.write(content)
                os.fsync(file.fileno())
        except OSError as error:
            raise OptionError(f"{path} could not be written ({error.strerror or error}). {remedy(error)}") from error


def replace_folder(new: Path, path: Path) -> None:
    """Rename a finished folder to `path`; an earlier folder of that name stays until the new one stands, then goes.

    Linux exchanges both names at once. Elsewhere the earlier folder has another name for a moment, and gets its own
    back when the new one cannot be renamed.

    Args:
        new: The folder, on the same file system as `path`.
        path: Its final name.

    Raises:
        OSError: The folder cannot be renamed; an earlier one is unchanged.
    """
    earlier = path.with_name(f".moongate-{secrets.token_hex(8)}.earlier")
    for _ in range(10):
        try:
            if _exchanged(new, path):
                new.rename(earlier)
                break
            with contextlib.suppress(FileNotFoundError):
                path.rename(earlier)
            try:
                new.rename(path)
                break
            except OSError:
                if earlier.exists() and not path.exists():
                    earlier.rename(path)
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not new.exists():
                raise
            shutil.rmtree(earlier, ignore_errors=True)  # another process wrote the folder in the meantime
    else:
        raise OptionError(f"{path} is written by other processes again and again. Give each its own folder.")
    shutil.rmtree(earlier, ignore_errors=True)


def _exchanged(new: Path, path: Path) -> bool:
    """Exchange the names of two folders at once; False where the system cannot, or there is no folder `path`."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2
    return rename is not None and rename(here, os.fsencode(new), here, os.fsencode(path), exchange) == 0


def remedy(error: OSError) -> str:
    """Return what helps against an error of the file system, as a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some disk space, or choose another path."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Choose a path that you may read and write."
    if error.errno == errno.ENAMETOOLONG:
        return "Choose a shorter name."
    return "Check the path."


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written, before the work whose result it will hold.

    Args:
        path: The file to be written.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OptionError: `path` is a folder, exists and may not be replaced, or its folder cannot be written.
    """
    with _refusal_explained(path):
        if path.is_dir():
            raise OptionError(f"{path} is a folder. Give the name of a file, such as {path / 'concept.safetensors'}.")
        if path.exists() and not overwrite:
            raise OptionError(f"{path} exists already. Choose another name or allow overwriting (--overwrite).")
        _check_place(path, path.absolute().parents)


def check_folder(path: Path) -> None:
    """Check that files may be written into a folder, which may not exist yet, before the work that makes them.

    Raises:
        OptionError: `path` is a file, or its folder cannot be written.
    """
    with _refusal_explained(path):
        if path.is_file():
            raise OptionError(f"{path} is a file. Give the name of a folder.")
        _check_place(path, [path.absolute(), *path.absolute().parents])


def free_path(path: Path) -> Path:
    """Return a path that names no file: `path` itself, or with a number, such as `bear-2.png` for `bear.png`."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def free_stem(stem: str, taken: Iterable[str]) -> str:
    """Return a file's name without its ending that is not taken: the name itself, or with a number, as `bear-2`.

    Names that differ only in capitals are the same, as on some systems.
    """
    lowered = {name.lower() for name in taken}
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name.lower() not in lowered)


def _check_place(path: Path, parents: Iterable[Path]) -> None:
    """Make a file in the nearest folder that exists, and remove it: rights alone do not say that this can be done."""
    place = next(parent for parent in parents if parent.exists())
    refused = f"{path} cannot be written, because {place} is not a folder that you may write into."
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise OptionError(f"{refused} Choose another path.")
    probe = place / f".moongate-{secrets.token_hex(8)}.partial"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OptionError(f"{refused} {remedy(error)}") from error


@contextlib.contextmanager
def _refusal_explained(path: Path) -> Iterator[None]:
    """Raise OptionError where the system does not even let one look whether something is there."""
    try:
        yield
    except PermissionError as error:
        raise OptionError(
            f"{path} cannot be written, because you may not look into the folder of {error.filename or path}. "
            f"{remedy(error)}"
        ) from error
    except OSError as error:
        raise OptionError(f"{path} cannot be written ({error.strerror or error}). {remedy(error)}") from error


def read_regular(path: Path, *, at_most: int) -> bytes:
    """Return the content of a regular file; devices and pipes may have no end.

    Args:
        path: The file.
        at_most: Largest number of bytes.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is not a regular file, or too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > at_most:
        raise ValueError(f"it has {status.st_size / 1e6:.0f} MB; at most {at_most / 1e6:.0f} are read")
    return path.read_bytes()


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; not so for a name that none can have, where `Path.exists` raises."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether a path names a file; not so for a name longer than any can be, where `Path.is_file` raises."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def leads_out(path: Path) -> bool:
    """Return whether a path is a link that leads out of its folder, for example to a private file of the reader."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(path.parent.resolve())


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


def try_lock(path: Path, *, wait_s: float = 0.0) -> FileLock | None:
    """Take a lock if it is free. The system frees it when the process ends, however that happens.

    Args:
        path: The lock file; its folder is created if there is none.
        wait_s: How long to wait until it is free.

    Returns:
        The lock, to be released with `release()`; None while another process holds it.

    Raises:
        OptionError: The lock file cannot be created, or the file system has no locks.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        return None
    except OSError as error:
        raise OptionError(f"{path} could not be locked ({error.strerror or error}). {remedy(error)}") from error
    return lock


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder that only one process may write; it is created if there is none.

    Args:
        folder: The folder. The lock is the file `.lock` in it, and `.lock-holder` says who holds it.

    Raises:
        OptionError: Another process holds the folder (the message names it), or the lock cannot be created.
    """
    lock, holder = try_lock(folder / ".lock", wait_s=LOOK_S), folder / ".lock-holder"
    if lock is None:
        name = "another process"
        with contextlib.suppress(OSError):
            name = holder.read_text(encoding="utf-8", errors="replace")[:200].strip() or name
        raise OptionError(f"{folder} is in use by {name}. Wait until it has finished, or choose another folder.")
    try:
        with contextlib.suppress(OSError):
            holder.write_text(f"process {os.getpid()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder by `exclusive`; nothing is written into a folder that none ever held."""
    if not (folder / ".lock").exists():
        return False
    if (lock := try_lock(folder / ".lock")) is None:
        return True
    lock.release()
    return False
