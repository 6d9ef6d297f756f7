"""The rows of tokens in other programs' files: their names, their shapes, and the names of their files."""

import itertools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from moongate.errors import ConceptFileError, listed
from moongate.files import file_name, free_stem
from moongate.limits import MAX_TOKEN_CHARACTERS, MAX_TOKENS

__all__ = [
    "BUNDLED",
    "ENCODERS",
    "FIELDS",
    "OUTPUT",
    "Words",
    "bracketed",
    "bundled",
    "bundled_words",
    "check_number",
    "fields_of",
    "file_stems",
    "names_of_vectors",
    "read_words",
    "rows_of",
]

ENCODERS = ("clip_l", "clip_g")
"""What embedding files call the two text encoders of SDXL, in Moongate's order."""
FIELDS = {
    "clip_l": 0,
    "clip_g": 1,  # SDXL: kohya, OneTrainer, ComfyUI, diffusers' pivotal tuning
    "text_encoders_0": 0,
    "text_encoders_1": 1,  # earlier versions of diffusers' pivotal tuning
    "emb_params": 0,
    "clip_h": 0,
    "string_to_param.*": 0,
    "*": 0,
    "embedding": 0,
    "embeddings": 0,  # one encoder
}
"""The keys under which trainers store the rows of a word, with the index of the text encoder that they are for."""
OUTPUT = "_out"
"""The end of the keys of OneTrainer's embeddings for the output of a text encoder, which a concept cannot hold."""
BUNDLED = "bundle_emb."
"""The beginning of the keys of embeddings that are stored inside a LoRA file."""
_BUNDLED_KEY = re.compile(r"bundle_emb\.(?P<name>.+?)(?:\.(?P<field>string_to_param\.\*|[^.]*))?")


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """The words that a file holds embeddings of. A word of several vectors is as many tokens."""

    rows: Mapping[str, tuple[Float[Tensor, " _width"], ...]]
    """The rows of each token, one for each text encoder."""
    further: Mapping[str, tuple[str, ...]]
    """The further tokens of words of several vectors, by their first token."""
    left_out: tuple[str, ...]
    """Keys that a concept cannot hold."""
    notes: tuple[str, ...]


def read_words(words: Iterable[tuple[str, Mapping[str, Any]]]) -> Words:
    """Return the tokens of words: "<bear>", and "<bear-2>", ... for further vectors.

    Names that would be alike get a number, with a note.

    Args:
        words: Pairs of a word's name and its values by key; the keys are those of `FIELDS`.

    Raises:
        ConceptFileError: A key is not known, a value is not a tensor of rows, or the text encoders have different
            numbers of rows.
    """
    rows: dict[str, tuple[Tensor, ...]] = {}
    further: dict[str, tuple[str, ...]] = {}
    left_out, notes = [], []
    for name, values in words:
        outputs = [key for key in values if key.endswith(OUTPUT)]
        left_out += [f"{BUNDLED}{name}.{key}" for key in outputs]
        matrices = _matrices(name, {key: value for key, value in values.items() if key not in outputs})
        tokens = _free_tokens(bracketed(name), len(matrices[0]), rows)
        rows |= {token: tuple(matrix[index] for matrix in matrices) for index, token in enumerate(tokens)}
        check_number(len(rows))
        if tokens[0] != bracketed(name):
            notes.append(f"There are two words {bracketed(name)}; that of {name!r} is read as {tokens[0]}.")
        if len(tokens) > 1:
            further[tokens[0]] = tuple(tokens[1:])
            notes.append(f"The embedding has {len(tokens)} vectors; write {' '.join(tokens)!r} for it in prompts.")
    return Words(rows=rows, further=further, left_out=tuple(left_out), notes=tuple(notes))


def fields_of(name: str, vectors: Sequence[Any]) -> dict[str, Any]:
    """Return the rows of a word for each text encoder by the names of `FIELDS`.

    Raises:
        ConceptFileError: There are more than two.
    """
    if len(vectors) > len(ENCODERS):
        raise ConceptFileError(f"The embedding {name!r} holds {len(vectors)} tensors; there are two text encoders.")
    return dict(zip(ENCODERS, vectors, strict=False))


def bundled_words(values: Mapping[str, Any]) -> Words:
    """Return the words whose embeddings are stored inside a LoRA file; see `read_words`.

    Args:
        values: The values of the file whose keys begin with `BUNDLED`, such as `bundle_emb.bear.clip_l`. A name may
            hold dots and spaces, so the field is what follows the last dot.
    """
    words: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        match = _BUNDLED_KEY.fullmatch(key)
        name, field = (match["name"], match["field"] or "emb_params") if match else (key.removeprefix(BUNDLED), key)
        words.setdefault(name, {})[field] = value
    return read_words(words.items())


def bundled(name: str, rows: Sequence[Float[Tensor, " _width"]]) -> dict[str, Tensor]:
    """Return the entries of a LoRA file that hold a word's embedding, as A1111 and ComfyUI read them.

    Args:
        name: The word, without a dot: A1111 ends it there.
        rows: Its row for each text encoder.
    """
    fields = ENCODERS if len(rows) > 1 else ("string_to_param.*",)
    return {f"{BUNDLED}{name}.{field}": row[None] for field, row in zip(fields, rows, strict=True)}


def _matrices(name: str, values: Mapping[str, Any]) -> list[Float[Tensor, "n _width"]]:
    """Return the rows of a word for each text encoder, in order."""
    unknown = [key for key in values if key not in FIELDS]
    if unknown or not values:
        held = listed([repr(key) for key in unknown]) or "nothing that the text encoder reads"
        raise ConceptFileError(f"The embedding {name!r} holds {held}. Known keys: {', '.join(FIELDS)}.")
    ordered = sorted(values, key=lambda key: FIELDS[key])
    if len({FIELDS[key] for key in ordered}) < len(ordered):
        raise ConceptFileError(f"The embedding {name!r} holds {' and '.join(ordered)} for one text encoder.")
    matrices = [rows_of(values[key]) for key in ordered]
    if len({len(matrix) for matrix in matrices}) != 1:
        raise ConceptFileError(f"The embedding {name!r} has not as many vectors for each text encoder.")
    return matrices


def _free_tokens(token: str, count: int, taken: Container[str]) -> list[str]:
    """Return names for `count` vectors of a word, of which none is taken."""
    for number in itertools.count(1):
        first = token if number == 1 else f"{token[:-1]}_{number}>"
        names = names_of_vectors(first, count)
        if not any(name in taken for name in names):
            return names
    raise AssertionError("unreachable")


def names_of_vectors(token: str, count: int) -> list[str]:
    """Return the names of the vectors of a word: "<bear>", "<bear-2>", ..."""
    return [token, *(f"{token[:-1]}-{number}>" for number in range(2, count + 1))]


def rows_of(vector: Any) -> Float[Tensor, "n width"]:
    """Return one row, or several, as a matrix in float32.

    Raises:
        ConceptFileError: The value is not a tensor of one or two dimensions.
    """
    if not (isinstance(vector, Tensor) and vector.is_floating_point() and vector.ndim in (1, 2) and vector.numel()):
        is_tensor = isinstance(vector, Tensor)
        what = f"{vector.dtype} of the shape {tuple(vector.shape)}" if is_tensor else f"a {type(vector).__name__}"
        raise ConceptFileError(
            f"The row of a token is {what}; it must be one floating-point vector, or several of one width."
        )
    if vector.ndim == 2:
        check_number(len(vector))
    matrix = vector.detach().float().clone()
    return matrix[None] if matrix.ndim == 1 else matrix


def check_number(tokens: int) -> None:
    """Raise ConceptFileError if a file holds more tokens, or vectors of words, than are read."""
    if tokens > MAX_TOKENS:
        raise ConceptFileError(f"The file holds {tokens} or more vectors of words; at most {MAX_TOKENS} are read.")


def bracketed(name: str) -> str:
    """Return a name as Moongate writes tokens: "<bear>"; names longer than anyone types are cut."""
    printable = "".join(character if character.isprintable() else " " for character in name)
    inner = re.sub(r"[<>\s]+", "-", printable).strip("-")[:MAX_TOKEN_CHARACTERS].strip("-")
    return f"<{inner or 'new1'}>"


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """Return a file name without suffix for each name. No two are equal, also on systems that ignore capitals.

    Angle brackets around a name stay, because diffusers' example writes `<new1>.bin`. A name whose file name is taken
    gets a number.
    """
    stems: dict[str, str] = {}
    for name in names:
        is_token = name.startswith("<") and name.endswith(">")
        stem = f"<{file_name(name)}>" if is_token else file_name(name)
        stems[name] = free_stem(stem, stems.values())
    return stems
