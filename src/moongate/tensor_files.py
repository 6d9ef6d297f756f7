"""Safetensors files as tensors of PyTorch; `tensor_bytes` reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from moongate.errors import ConceptFileError
from moongate.files import is_file
from moongate.limits import MAX_HEADER_BYTES
from moongate.tensor_bytes import CHECKSUM, Stored, header_bytes, read_stored, stored_checksum

__all__ = ["CHECKSUM", "check_finite", "checksum", "read_tensors", "read_texts", "safetensors_bytes"]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file completely into memory.

    Args:
        path: The file.

    Returns:
        The tensors by name, in the file's order, and the texts of its header.

    Raises:
        ConceptFileError: The file cannot be read, is damaged, has more than `MAX_TENSORS` tensors, or holds numbers of
            a type that is not read.
    """
    stored = read_stored(path)
    return {name: _tensor(tensor) for name, tensor in stored.tensors.items()}, dict(stored.texts)


def read_texts(path: Path) -> dict[str, str]:
    """Read the texts in the header of a safetensors file, and nothing of its tensors.

    Raises:
        ConceptFileError: The file cannot be read, is damaged, or is shorter than its header says.
    """
    if not is_file(path):  # opening a pipe would wait for its writer
        raise ConceptFileError(f"{path} is not a file.")
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
    """Check that all numbers of the tensors that were read from `path`, and of the products of factors, are finite.

    Raises:
        ConceptFileError: A number is infinite or not a number, or so large that a product may be.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ConceptFileError(
                f"{name!r} in {path} holds numbers that are not finite, which would spoil every picture. Train the "
                "concept again."
            )
    for name, up in tensors.items():
        down = tensors.get(f"{name.removesuffix('.up')}.down") if name.endswith(".up") else None
        if down is not None and _bound(up, down) > torch.finfo(torch.float32).max:
            raise ConceptFileError(
                f"{name!r} in {path} and its other factor hold numbers so large that their product is not finite, "
                "which would spoil every picture. Train the concept again."
            )


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in whatever order, and of a text."""
    return stored_checksum({name: _stored(tensor) for name, tensor in tensors.items()}, text)


def safetensors_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file of float32 tensors; equal content gives equal bytes."""
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    last = {tensor.untyped_storage().data_ptr(): name for name, tensor in plain.items()}
    for name, tensor in plain.items():
        if last[tensor.untyped_storage().data_ptr()] != name:  # safetensors refuses tensors that share memory
            plain[name] = tensor.clone()
    return _canonical(save(plain, metadata=dict(header)))


def _canonical(serialized: bytes) -> bytes:
    """Return the file with its texts sorted, so that equal content gives equal bytes."""
    length = int.from_bytes(serialized[:8], "little")
    entries = json.loads(serialized[8 : 8 + length])
    texts = entries.pop("__metadata__")
    return header_bytes(entries, texts) + serialized[8 + length :]


def _bound(up: Tensor, down: Tensor) -> float:
    """Return a bound of the numbers in the product of two factors; 0 for tensors that are none."""
    if not (up.ndim == 2 and down.ndim == 2 and up.numel() and down.numel()):
        return 0.0
    return len(down) * float(up.double().abs().max()) * float(down.double().abs().max())


def _tensor(stored: Stored) -> Tensor:
    dtype = getattr(torch, stored.dtype)
    if not stored.data:
        return torch.empty(stored.shape, dtype=dtype)
    flat = torch.frombuffer(stored.data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).reshape(stored.shape)


def _stored(tensor: Tensor) -> Stored:
    tensor = tensor.detach().cpu().contiguous()
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return Stored(
        dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), data=memoryview(content).cast("B")
    )
