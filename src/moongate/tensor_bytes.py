"""Safetensors files as bytes: their header, the bytes of each tensor, and a checksum. It needs no PyTorch.

The tensors of a file that is mapped into memory change when the file is overwritten, and reading them ends the program
when it is cut short. So files are read once, and nothing of them stays mapped. The module knows nothing of concepts.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from moongate.errors import ConceptFileError
from moongate.files import is_file
from moongate.limits import MAX_HEADER_BYTES, MAX_TENSORS, MAX_WEIGHT_NUMBERS, MAX_WEIGHTS_BYTES

__all__ = [
    "CHECKSUM",
    "Stored",
    "StoredFile",
    "header_bytes",
    "is_vast",
    "read_header",
    "read_stored",
    "stored_checksum",
]

CHECKSUM = "checksum"
"""The entry of a safetensors header that holds the checksum."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types of numbers that are read: PyTorch's names by those in the header."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A tensor as it is stored."""

    dtype: str
    """PyTorch's name of its type, such as "float32"."""
    shape: tuple[int, ...]
    data: memoryview
    """Its bytes, row by row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredFile:
    """The content of a file."""

    tensors: Mapping[str, Stored]
    """By name, in the file's order."""
    texts: Mapping[str, str]
    """The texts of the header."""
    entries: Mapping[str, Any]
    """What the header says of each tensor."""
    content: bytearray
    """Everything after the header."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: an entry for each tensor, and `__metadata__`; empty for other files."""
    if not is_file(path):  # opening a pipe would wait for its writer
        return {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def read_stored(path: Path) -> StoredFile:
    """Read a safetensors file.

    Raises:
        ConceptFileError: The file cannot be read, is damaged, has more than `MAX_TENSORS` tensors or
            `MAX_WEIGHTS_BYTES`, or holds numbers of a type that is not read.
    """
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise ConceptFileError(f"{path} has more than {MAX_WEIGHTS_BYTES // 10**9} GB, which are not read.")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ConceptFileError(
                    f"{path} is damaged or not a safetensors file: its header would have {length} bytes, and at most "
                    f"{MAX_HEADER_BYTES} are read. Copy or download it again."
                )
            with safe_open(path, framework="np"):  # checks the header; nothing is read of the tensors
                pass
            entries = json.loads(file.read(length))
            content = bytearray(file.read())
        texts = entries.pop("__metadata__", None) or {}
        if len(entries) > MAX_TENSORS:
            raise ConceptFileError(f"{path} holds {len(entries)} tensors; at most {MAX_TENSORS} are read.")
        view = memoryview(content)
        tensors = {name: _stored(view, entry, name, path) for name, entry in entries.items()}
        return StoredFile(tensors=tensors, texts=texts, entries=entries, content=content)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConceptFileError(
            f"{path} is damaged or not a safetensors file ({error}). Copy or download it again."
        ) from error


def stored_checksum(tensors: Mapping[str, Stored], text: str = "") -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in whatever order, and of a text."""
    content = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        content.update(f"\n{name} torch.{tensor.dtype} {tensor.shape}\n".encode())
        content.update(tensor.data)
    return content.hexdigest()


def is_vast(shape: Sequence[int]) -> bool:
    """Return whether a shape without numbers has other sides that code could still ask memory for."""
    return 0 in shape and math.prod(max(side, 1) for side in shape) > MAX_WEIGHT_NUMBERS


def header_bytes(entries: Mapping[str, Any], texts: Mapping[str, str]) -> bytes:
    """Return the beginning of a file, with sorted texts: safetensors itself orders them differently from run to run."""
    text = json.dumps({"__metadata__": dict(sorted(texts.items())), **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stored(content: memoryview, entry: Mapping[str, Any], name: str, path: Path) -> Stored:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ConceptFileError(
            f"{name!r} in {path} holds numbers of the type {entry['dtype']}, which are not read. Save them as float16 "
            "or float32."
        )
    begin, end = entry["data_offsets"]
    if end > len(content):  # it was cut short after its header was checked
        raise ValueError("it is shorter than its header says")
    if is_vast(entry["shape"]):
        raise ValueError(f"{name!r} has the shape {entry['shape']}")
    return Stored(dtype=dtype, shape=tuple(entry["shape"]), data=content[begin:end])
