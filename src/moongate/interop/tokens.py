"""The rows of tokens in other programs' files: their names, their shapes, and the names of their files."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from moongate.errors import ConceptFileError

__all__ = ["BUNDLED", "ENCODERS", "bracketed", "bundled_rows", "file_stems", "free_stem", "named_rows", "rows_of"]

ENCODERS = ("clip_l", "clip_g")
"""What embedding files call the two text encoders of SDXL, in Moongate's order."""
BUNDLED = "bundle_emb."
"""The beginning of the keys of embeddings that are stored inside a LoRA file."""


def named_rows(token: str, vectors: Sequence[Any]) -> dict[str, tuple[Float[Tensor, " _width"], ...]]:
    """Return the rows of a token by name: "<bear>", and "<bear-2>", ... for further vectors.

    Args:
        token: The token, in angle brackets.
        vectors: For each text encoder a tensor of one row, or of several rows.

    Raises:
        ConceptFileError: A vector is no tensor of rows, or the text encoders have different numbers of rows.
    """
    matrices = [rows_of(vector) for vector in vectors]
    if len({len(matrix) for matrix in matrices}) != 1:
        raise ConceptFileError(f"The embedding {token!r} has no vector, or not as many for each text encoder.")
    names = [token, *(f"{token[:-1]}-{number}>" for number in range(2, len(matrices[0]) + 1))]
    return {name: tuple(matrix[index] for matrix in matrices) for index, name in enumerate(names)}


def bundled_rows(values: Mapping[str, Any]) -> dict[str, tuple[Float[Tensor, " _width"], ...]]:
    """Return the rows of the tokens that are stored inside a LoRA file, by name.

    Args:
        values: The values of the file whose keys begin with `BUNDLED`.

    Raises:
        ConceptFileError: A value is no tensor of rows.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, _, encoder = key.removeprefix(BUNDLED).partition(".")
        by_name.setdefault(name, {})[encoder] = value
    rows: dict[str, tuple[Tensor, ...]] = {}
    for name, vectors in by_name.items():
        ordered = [vectors[encoder] for encoder in ENCODERS if encoder in vectors]
        rows |= named_rows(name, ordered or [*vectors.values()])
    return rows


def rows_of(vector: Any) -> Float[Tensor, "n width"]:
    """Return one row, or several, as a matrix in float32.

    Raises:
        ConceptFileError: The value is no tensor of one or two dimensions.
    """
    if not (isinstance(vector, Tensor) and vector.is_floating_point() and vector.ndim in (1, 2) and vector.numel()):
        what = f"of the shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else f"a {type(vector).__name__}"
        raise ConceptFileError(f"The row of a token is {what}; it must be one vector, or several of one width.")
    matrix = vector.detach().float().clone()
    return matrix[None] if matrix.ndim == 1 else matrix


def bracketed(name: str) -> str:
    """Return a name as Moongate writes tokens: "<bear>"."""
    inner = re.sub(r"[<>\s]+", "-", name).strip("-")
    return f"<{inner or 'new1'}>"


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """Return a file name without suffix for each name. No two are equal, also on systems that ignore capitals.

    Characters that are not allowed in file names are replaced, so that no name leads out of the folder; a name whose
    file name is taken gets a number.
    """
    stems: dict[str, str] = {}
    for name in names:
        stem = re.sub(r'[/\\:*?"|\s]+', "-", name).lstrip(".") or "token"
        stems[name] = free_stem(stem, stems.values())
    return stems


def free_stem(stem: str, taken: Iterable[str]) -> str:
    """Return the file name, or the first of "stem-2", "stem-3", ... that is not taken; capitals do not count."""
    lowered = {name.lower() for name in taken}
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in candidates if name.lower() not in lowered)
