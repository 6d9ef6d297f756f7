"""Rows of tokens in other programs' files: textual-inversion embeddings, alone or beside weights.

A file holds one token: under the token's own name (diffusers), as `emb_params` (kohya), as `string_to_param` (A1111),
or with two text encoders as `clip_l` and `clip_g` (SDXL). Where it has no name, the file's name is taken.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from moongate.concept import Concept, safetensors_bytes
from moongate.errors import ConceptFileError, OptionError
from moongate.interop.content import Content, mapping_in
from moongate.interop.format import Parts, Rendered, WriteOptions

__all__ = [
    "ENCODERS",
    "bracketed",
    "diffusers_token_files",
    "embedding_files",
    "file_stem",
    "is_embedding",
    "named_rows",
    "numbered_rows",
    "parse_embedding",
    "render_embedding",
    "rows_of",
]

ENCODERS = ("clip_l", "clip_g")
"""SDXL's text encoders as embeddings name them, in Moongate's order."""
PLAIN_KEY = "emb_params"


def is_embedding(content: Content) -> bool:
    """Tell whether a file holds the rows of one token and nothing else."""
    values = content.values
    if "string_to_param" in values or set(values) == set(ENCODERS):
        return True
    return len(values) == 1 and all(
        isinstance(key, str) and isinstance(value, Tensor) and value.ndim in (1, 2) and not key.endswith(".weight")
        for key, value in values.items()
    )


def parse_embedding(content: Content) -> Parts:
    """Read a token's rows; of several vectors each becomes a token of its own."""
    values, name = content.values, content.header.get("name") or content.path.stem
    if "string_to_param" in values:
        vectors: list[Any] = list(mapping_in(values, "string_to_param").values())
        given = values.get("name")
        name = given if isinstance(given, str) and given else name
    elif set(values) == set(ENCODERS):
        vectors = [values[encoder] for encoder in ENCODERS]
    else:
        (key,) = values
        vectors = [values[key]]
        name = name if key == PLAIN_KEY else key
    tokens = named_rows(bracketed(name), vectors)
    several = f"The embedding has {len(tokens)} vectors; write {' '.join(tokens)!r} for it in prompts."
    return Parts(tokens=tokens, notes=(several,) if len(tokens) > 1 else ())


def render_embedding(concept: Concept, _options: WriteOptions) -> Rendered:
    """Write one file for each token, named after it without the brackets, as A1111 and ComfyUI want it."""
    if not concept.tokens:
        raise OptionError("The concept has no token, so that there is no embedding to write. Write a LoRA (--to lora).")
    notes = [f"The changes of {len(concept.deltas)} weights are left out: an embedding holds tokens alone."]
    return Rendered(files=embedding_files(concept), notes=tuple(notes if concept.deltas else ()))


def embedding_files(concept: Concept) -> dict[str, bytes]:
    """Return an embedding file for each token, by name."""
    files = {}
    for token in concept.tokens:
        vectors = {key: row[None] for key, row in zip(_keys(concept), concept.rows(token), strict=True)}
        files[f"{file_stem(token.strip('<>'))}.safetensors"] = safetensors_bytes(vectors, {"name": token})
    return files


def diffusers_token_files(concept: Concept) -> dict[str, bytes]:
    """Return for each token the file that diffusers' example writes: the token's row under its name.

    With two text encoders, for which the example has no layout, the rows stand under the encoders' names.
    """
    files = {}
    for token in concept.tokens:
        rows = concept.rows(token)
        by_key = {token: rows[0]} if len(rows) == 1 else dict(zip(_keys(concept), rows, strict=True))
        files[f"{file_stem(token)}.safetensors"] = safetensors_bytes(by_key, {"name": token})
    return files


def named_rows(token: str, vectors: Sequence[Any]) -> dict[str, tuple[Float[Tensor, " width"], ...]]:
    """Return the rows of a token, and of "<token-2>", ... where it has several vectors, over the text encoders."""
    matrices = [rows_of(vector) for vector in vectors]
    if len({len(matrix) for matrix in matrices}) != 1:
        raise ConceptFileError(f"The embedding {token!r} has no vector, or not as many for each text encoder.")
    names = [token, *(f"{token[:-1]}-{number}>" for number in range(2, len(matrices[0]) + 1))]
    return {name: tuple(matrix[index] for matrix in matrices) for index, name in enumerate(names)}


def numbered_rows(rows: Float[Tensor, "n width"]) -> Iterator[tuple[str, tuple[Float[Tensor, " width"]]]]:
    """Yield nameless rows as "<new1>", "<new2>", ..."""
    for number, row in enumerate(rows, start=1):
        yield f"<new{number}>", (row,)


def rows_of(vector: Any) -> Float[Tensor, "n width"]:
    """Return one or several rows in float32. Raises ConceptFileError for anything but one or two dimensions."""
    if not (isinstance(vector, Tensor) and vector.is_floating_point() and vector.ndim in (1, 2) and vector.numel()):
        what = f"of the shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else f"a {type(vector).__name__}"
        raise ConceptFileError(f"The row of a token is {what}; it must be one vector, or several of one width.")
    matrix = vector.detach().float().clone()
    return matrix[None] if matrix.ndim == 1 else matrix


def bracketed(name: str) -> str:
    """Return a name as Moongate writes tokens: "<bear>"."""
    inner = re.sub(r"[<>\s]+", "-", name).strip("-")
    return f"<{inner or 'new1'}>"


def file_stem(name: str) -> str:
    """Return the name of a token's file, without its ending."""
    return re.sub(r'[/\\:*?"|\s]+', "-", name).lstrip(".") or "token"


def _keys(concept: Concept) -> Sequence[str]:
    return ENCODERS if len(concept.token_widths) > 1 else (PLAIN_KEY,)
