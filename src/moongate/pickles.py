"""Pickles of tensors, read without running code, and without the memory or time that a few bytes can ask for.

PyTorch's `weights_only=True` builds tensors and plain containers and refuses all else. Before it sees a file, the file
is checked for packed parts and for tuples of tuples; afterwards its tensors are checked for storage of their own.
"""

import io
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.nn import ParameterDict

from moongate.limits import MAX_DEPTH, MAX_TENSORS, MAX_TUPLE_DEPTH, MAX_WEIGHTS_BYTES
from moongate.tensor_bytes import is_vast

__all__ = ["UNREADABLE", "read_pickle"]

UNREADABLE = (
    *(
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OSError,
        ArithmeticError,
        MemoryError,
    ),
    *(AssertionError, struct.error, zipfile.BadZipFile),
)
"""What `torch.load` and `zipfile` raise for files that are no pickle."""
ZIP = b"PK\x03\x04"
"""How a file begins that PyTorch takes for a zip file, whatever else zip files may begin with."""
LEGACY_PICKLES = 5
"""Number of pickles at the beginning of a file that PyTorch before 1.6 wrote."""

MAX_SHARING = 8
"""Files whose tensors together are this many times larger than the file are refused. Tied weights are stored once for
two or three tensors, and code that goes on with them makes copies of each."""


def read_pickle(path: Path) -> Any:
    """Return what a pickle holds.

    Raises:
        UnpicklingError: It would run code.
        ValueError: It asks for more memory or time than it has bytes.
        Exception: One of `UNREADABLE`: it is damaged.
    """
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ValueError(f"it has more than {MAX_WEIGHTS_BYTES // 10**9} GB")
    with path.open("rb") as file, warnings.catch_warnings():
        if file.read(len(ZIP)) == ZIP:
            _check_parts(file, size)
        else:
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_tuples(file)
        file.seek(0)
        warnings.simplefilter("ignore", UserWarning)  # about newer pickles, which are then read or refused
        with torch.serialization.safe_globals([ParameterDict]):  # a container of the first textual inversions
            values = torch.load(file, map_location="cpu", weights_only=True)
    _check_tensors(values, size)
    return values


def _check_parts(file: IO[bytes], size: int) -> None:
    """Refuse a zip file with packed parts: PyTorch never packs them, and a few bytes unpack to any size."""
    with zipfile.ZipFile(file) as zipped:
        parts = zipped.infolist()
        is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if is_packed or sum(part.file_size for part in parts) > size:
            raise ValueError("its parts are packed to less than their size, as PyTorch never does")
        for part in parts:
            if part.filename.lower().endswith("data.pkl"):  # PyTorch ignores capitals
                _check_tuples(io.BytesIO(zipped.read(part)))


def _check_tuples(file: IO[bytes]) -> None:
    """Refuse a pickle whose tuples are nested too deep.

    A tuple may hold one tuple twice, and that again. Nothing is stored twice, but as the key of a mapping the tuple is
    walked through 2^depth times. So the depth of each value on the stack of the pickle is followed.
    """
    stack: list[int | None] = []  # the depth of each value; None is a mark
    memo: dict[Any, int | None] = {}
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if code.name == "MEMOIZE" else argument] = stack[-1]
            elif code.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif code.name == "DUP":
                stack.append(stack[-1])
            else:
                taken = _taken(stack, code)
                depth = 1 + max((value or 0 for value in taken), default=0) if "TUPLE" in code.name else 0
                if depth > MAX_TUPLE_DEPTH:
                    raise _TooDeep(
                        f"it holds tuples nested more than {MAX_TUPLE_DEPTH} deep, as no file of tensors does"
                    )
                stack += [None if code.name == "MARK" else depth for _ in code.stack_after]
    except _TooDeep:
        raise
    except (ValueError, LookupError, EOFError, OverflowError, MemoryError):
        return  # a broken pickle: PyTorch stops there too


class _TooDeep(ValueError):
    """Tuples are nested too deep."""


def _taken(stack: list[int | None], code: pickletools.OpcodeInfo) -> list[int | None]:
    """Remove from the stack what an opcode takes, and return it."""
    taken: list[int | None] = []
    for kind in reversed(code.stack_before):
        if kind is pickletools.stackslice:
            while stack[-1] is not None:
                taken.append(stack.pop())
        else:
            taken.append(stack.pop())
    return taken


def _check_tensors(values: Any, size: int) -> None:
    """Refuse tensors that would take more memory than is stored for them, and those of unusual layouts and numbers.

    Args:
        values: What the file holds.
        size: The file's number of bytes.
    """
    level, count, taken = [values], 0, 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Tensor):
                if not _is_stored(value):
                    raise ValueError("it holds a tensor that is not stored in full")
                count += 1
                taken += value.numel() * value.element_size()
            elif isinstance(value, Mapping):
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        if count > MAX_TENSORS or len(below) > 10 * MAX_TENSORS:
            raise ValueError(f"it holds more than {MAX_TENSORS} tensors")
        if taken > MAX_SHARING * size:
            raise ValueError("its tensors share their numbers, and copies of them would take many times its size")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _is_stored(tensor: Tensor) -> bool:
    """Return whether a tensor is of plain numbers, each of which is in its storage."""
    is_plain = tensor.device.type == "cpu" and tensor.layout == torch.strided
    is_plain = is_plain and not (tensor.is_nested or tensor.is_complex() or tensor.is_quantized)
    is_stored = is_plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    return is_stored and not is_vast(tuple(tensor.shape))
