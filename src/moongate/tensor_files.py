"""Safetensors files: read completely into memory, with a checksum over what they hold.

The tensors of a file that is mapped into memory change when the file is overwritten, and reading them ends the program
when it is cut short. So files are read once, and nothing of them stays mapped. The module knows nothing of concepts.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moongate.errors import ConceptFileError
from moongate.limits import MAX_HEADER_BYTES, MAX_TENSORS

__all__ = ["CHECKSUM", "check_finite", "checksum", "read_tensors", "read_texts"]

CHECKSUM = "checksum"
"""The entry of a safetensors header that holds the checksum."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of numbers that are read, by their names in the header."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors by name, in the file's order, and the texts of its header.

    Raises:
        ConceptFileError: The file cannot be read, is damaged, has more than `MAX_TENSORS` tensors, or holds numbers of
            a type that is not read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ConceptFileError(
                    f"{path} is damaged or not a safetensors file: its header would have {length} bytes, and at most "
                    f"{MAX_HEADER_BYTES} are read. Copy or download it again."
                )
            with safe_open(path, framework="pt"):  # checks the header; nothing is read of the tensors
                pass
            header = json.loads(file.read(length))
            content = bytearray(file.read())
        texts = header.pop("__metadata__", None) or {}
        if len(header) > MAX_TENSORS:
            raise ConceptFileError(f"{path} holds {len(header)} tensors; at most {MAX_TENSORS} are read.")
        return {name: _tensor(content, entry, name, path) for name, entry in header.items()}, texts
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConceptFileError(
            f"{path} is damaged or not a safetensors file ({error}). Copy or download it again."
        ) from error


def read_texts(path: Path) -> dict[str, str]:
    """Read the texts in the header of a safetensors file, and nothing of its tensors.

    Raises:
        ConceptFileError: The file cannot be read, is damaged, or is shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ConceptFileError(f"{path} is damaged or not a safetensors file. Copy or download it again.")
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ConceptFileError(
            f"{path} is damaged or not a safetensors file ({error}). Copy or download it again."
        ) from error


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that all numbers of the tensors that were read from `path` are finite.

    Raises:
        ConceptFileError: A number is infinite or not a number.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ConceptFileError(
                f"{name!r} in {path} holds numbers that are not finite, which would spoil every picture. Train the "
                "concept again."
            )


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in whatever order, and of a text."""
    content = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return content.hexdigest()


def _tensor(content: bytearray, entry: Mapping[str, Any], name: str, path: Path) -> Tensor:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ConceptFileError(
            f"{name!r} in {path} holds numbers of the type {entry['dtype']}, which are not read. Save them as float16 "
            "or float32."
        )
    begin, end = entry["data_offsets"]
    if end > len(content):  # it was cut short after its header was checked
        raise ValueError("it is shorter than its header says")
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    flat = torch.frombuffer(content, dtype=torch.uint8, count=end - begin, offset=begin)
    if begin % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).reshape(entry["shape"])
