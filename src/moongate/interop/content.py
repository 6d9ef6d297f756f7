"""What a file holds before its format is known. Reading runs no code from the file.

A `.safetensors` file is recognized by its bytes, not by its name. Everything else is read as a pickle of tensors
(`moongate.pickles`). Pickles are written only for formats whose own layout is a pickle, and hold tensors and plain
containers.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moongate.errors import ConceptFileError, listed
from moongate.files import exists, is_file, read_regular
from moongate.limits import MAX_TEXT_BYTES
from moongate.pickles import UNREADABLE, read_pickle
from moongate.tensor_files import read_tensors
from moongate.texts import parse_json

__all__ = ["SUFFIXES", "Content", "flat_tensors", "mapping_in", "open_content", "read_json", "to_pickle"]

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
"""The suffixes of files that are read in a folder."""
COPY, ORIGINAL = ".bin", ".safetensors"
"""A file of the first suffix is passed over beside one of the second: diffusers writes the same weights twice."""
NO_WEIGHTS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull`",
    b"<!doctype": "a web page. Download the file itself, by the page's download button",
    b"<html": "a web page. Download the file itself, by the page's download button",
}
"""How files begin that a download leaves in place of weights, and what they are."""
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file with the settings of an adapter, in the folder of its weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """The content of one file."""

    path: Path
    values: Mapping[Any, Any]
    """The values by key, nested as they are in a pickle."""
    header: Mapping[str, str] = field(default_factory=dict)
    """The texts of a safetensors header."""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """The object in PEFT's `adapter_config.json` in the file's folder."""


def open_content(path: str | Path) -> tuple[list[Content], list[ConceptFileError]]:
    """Read a file, or each weight file that lies directly in a folder.

    Returns:
        What could be read; and an error for each file of a folder that is damaged or holds code. Trainers put such
        files, like the state of an optimizer, into one folder with their weights.

    Raises:
        ConceptFileError: There is nothing to read, or a single file is damaged or holds code.
    """
    path = Path(path)
    if exists(path) and path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        originals = {file.stem for file in found if file.suffix.lower() == ORIGINAL}
        files = [file for file in found if not (file.suffix.lower() == COPY and file.stem in originals)]
        if not files:
            raise ConceptFileError(f"The folder {path} holds no file of weights ({', '.join(SUFFIXES)}).")
        contents, errors = [], []
        for file in files:
            try:
                contents.append(_open(file))
            except ConceptFileError as error:
                errors.append(error)
        return contents, errors
    if not is_file(path):
        raise ConceptFileError(f"There is no concept file {path}. Check the path.")
    return [_open(path)], []


def flat_tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a mapping in float32, without gradients.

    Raises:
        ConceptFileError: The mapping holds anything but floating-point tensors by name.
    """
    odd = [f"{key!r} ({_kind(value)})" for key, value in values.items() if not _is_tensor(key, value)]
    if odd:
        raise ConceptFileError(f"Where floating-point tensors by name are expected, the file holds {listed(odd)}.")
    return {key: value.detach().float().contiguous() for key, value in values.items()}


def mapping_in(values: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    """Return the mapping stored under `key`, or an empty one when the key is missing.

    Raises:
        ConceptFileError: Something else is stored there.
    """
    mapping = values.get(key)
    mapping = getattr(mapping, "_parameters", mapping)  # of a module: the first textual inversions were saved so
    if not isinstance(mapping, Mapping | None):
        raise ConceptFileError(f"Where values by name are expected, {key!r} of the file is a {type(mapping).__name__}.")
    return mapping or {}


def to_pickle(value: Any) -> bytes:
    """Return the bytes that `torch.save` writes.

    Tensors are copied first, because the pickle of a view holds the whole tensor that it is a view of.
    """
    buffer = io.BytesIO()
    torch.save(_copied(value), buffer)
    return buffer.getvalue()


def read_json(text: str | bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `text`; `path` is named in errors.

    Raises:
        ConceptFileError: The text is not JSON, or JSON of something else than an object.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ConceptFileError(f"{path} holds broken JSON ({error}). Copy or download it again.") from error
    if not isinstance(value, dict):
        raise ConceptFileError(f"{path} holds a {type(value).__name__} where an object in JSON is expected.")
    return value


def _adapter(config: Path) -> dict[str, Any]:
    try:
        return read_json(read_regular(config, at_most=MAX_TEXT_BYTES), config)
    except (OSError, ValueError) as error:
        raise ConceptFileError(f"{config} cannot be read ({error}). Copy or download it again.") from error


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().float().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _is_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.is_floating_point()


def _open(path: Path) -> Content:
    with path.open("rb") as file:
        start = file.read(64)
    is_safetensors = start[8:9] == b"{"  # after eight bytes of length
    for beginning, what in NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(beginning):
            raise ConceptFileError(f"{path} is {what}.")
    config = path.with_name(ADAPTER_CONFIG)
    adapter = _adapter(config) if config.is_file() else {}
    if not is_safetensors:
        return Content(path=path, values=_unpickled(path), adapter=adapter)
    values, header = read_tensors(path)
    return Content(path=path, values=values, header=header, adapter=adapter)


def _unpickled(path: Path) -> Mapping[Any, Any]:
    try:
        values = read_pickle(path)
    except pickle.UnpicklingError as error:
        raise ConceptFileError(
            f"{path} is refused: it is not a plain file of tensors, but a pickle that would run code when opened, or "
            f"something else ({_reason(error)}). Ask its author for a safetensors file."
        ) from error
    except UNREADABLE as error:
        raise ConceptFileError(
            f"{path} is neither a safetensors file nor a whole pickle of tensors ({_reason(error)}). Copy or download "
            "it again, or ask its author for a safetensors file."
        ) from error
    if not isinstance(values, Mapping):
        raise ConceptFileError(f"{path} holds a {type(values).__name__}, not weights by name.")
    return values


def _reason(error: BaseException) -> str:
    """Return PyTorch's reason for refusing a file, without its advice to load the file all the same."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "Unsupported" in line or "Trying to" in line]
    return (reasons or lines or [type(error).__name__])[0].split(". ")[0].rstrip(".")[:300]
