"""What is in a file before anybody knows which format it is, read without running any code of it.

A `.safetensors` file is told from a pickle by its bytes. Pickles are read by PyTorch with `weights_only=True`, which
builds tensors and plain containers and refuses everything else.
"""

import io
import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import ParameterDict

from moongate.errors import ConceptFileError, listed

__all__ = ["SUFFIXES", "Content", "flat_tensors", "mapping_in", "open_content", "read_json", "to_pickle"]

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
"""Of the files that are looked at in a folder; of two with one stem the first kind is read."""
NOT_READ = (
    *(RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError),
    *(struct.error, SafetensorError),
)
"""What PyTorch's reader ends in when a file is no pickle; it goes by the name, and tries some as safetensors."""
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file with the scale of an adapter, beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """The values of one file by key, nested as they are in a pickle, and the texts of a safetensors header."""

    path: Path
    values: Mapping[Any, Any]
    header: Mapping[str, str] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """What PEFT's `adapter_config.json` beside the file says."""


def open_content(path: str | Path) -> list[Content]:
    """Read a file, or each weight file that lies directly in a folder.

    Raises ConceptFileError when there is nothing to read, and for a file that is damaged or holds code.
    """
    path = Path(path)
    if path.is_dir():
        stems: dict[str, Path] = {}
        for suffix in SUFFIXES:
            for file in sorted(path.glob(f"*{suffix}")):
                stems.setdefault(file.stem, file)
        if not stems:
            raise ConceptFileError(f"The folder {path} holds no file of weights ({', '.join(SUFFIXES)}).")
        return [_open(file) for file in stems.values()]
    if not path.is_file():
        raise ConceptFileError(f"There is no concept file {path}. Check the path.")
    return [_open(path)]


def flat_tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a mapping, plain and in float32. Raises ConceptFileError for anything else in it."""
    odd = [f"{key!r} ({type(value).__name__})" for key, value in values.items() if not _is_tensor(key, value)]
    if odd:
        raise ConceptFileError(f"Where tensors by name are expected, the file holds {listed(odd)}.")
    return {key: value.detach().float().contiguous() for key, value in values.items()}


def mapping_in(values: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    """Return the values by name under `key`, none where it is missing. Raises ConceptFileError for anything else."""
    found = values.get(key)
    found = getattr(found, "_parameters", found)  # of a module, as the first embeddings were saved
    if not isinstance(found, Mapping | None):
        raise ConceptFileError(f"Where values by name are expected, {key!r} of the file is a {type(found).__name__}.")
    return found or {}


def to_pickle(value: Any) -> bytes:
    """Return what `torch.save` writes; tensors are copied first, so that no view brings its whole table along."""
    buffer = io.BytesIO()
    torch.save(_copied(value), buffer)
    return buffer.getvalue()


def read_json(text: str | bytes, path: Path) -> dict[str, Any]:
    """Return the object that a text in JSON holds. Raises ConceptFileError for anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConceptFileError(f"{path} holds broken JSON ({error}). Copy or download it again.") from error
    if not isinstance(value, dict):
        raise ConceptFileError(f"{path} holds a {type(value).__name__} where an object in JSON is expected.")
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().float().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _is_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.is_floating_point()


def _open(path: Path) -> Content:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # after eight bytes of length
    beside = path.with_name(ADAPTER_CONFIG)
    adapter = read_json(beside.read_bytes(), beside) if beside.is_file() else {}
    if not is_safetensors:
        return Content(path=path, values=_unpickled(path), adapter=adapter)
    try:
        with safe_open(path, framework="pt") as opened:
            values = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return Content(path=path, values=values, header=opened.metadata() or {}, adapter=adapter)
    except (SafetensorError, OSError) as error:
        raise ConceptFileError(f"{path} is damaged ({error}). Copy or download it again.") from error


def _unpickled(path: Path) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it remarks on newer pickles, and then reads or refuses them
            with torch.serialization.safe_globals([ParameterDict]):  # a container, of the first embeddings
                values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConceptFileError(
            f"{path} is refused: it is no plain file of tensors, but a pickle that would run code when opened, or "
            f"something else ({_reason(error)}). Ask its author for a safetensors file."
        ) from error
    except NOT_READ as error:
        raise ConceptFileError(
            f"{path} is neither a safetensors file nor a whole pickle of tensors ({_reason(error)}). Copy or download "
            "it again."
        ) from error
    if not isinstance(values, Mapping):
        raise ConceptFileError(f"{path} holds a {type(values).__name__}, not weights by name.")
    return values


def _reason(error: Exception) -> str:
    """Return what PyTorch says first of the object it refused, without its advice to load it all the same."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "Trying to" in line]
    return (telling or lines or [type(error).__name__])[0].split(". ")[0].rstrip(".")
