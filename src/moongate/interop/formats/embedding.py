"""Textual-inversion embeddings: the rows of tokens, without changed weights.

A file holds tokens under their own names (diffusers), or one as `emb_params` (kohya), as `string_to_param` (A1111), or
as `clip_l` and `clip_g` for two text encoders (SDXL). A token without a name in the file is named after the file.
diffusers' example for SDXL writes a file for each text encoder.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from moongate.concept import Concept
from moongate.errors import OptionError, listed
from moongate.interop.content import Content, mapping_in
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions
from moongate.interop.tokens import BUNDLED, ENCODERS, FIELDS, OUTPUT, Words, bundled_words, file_stems, read_words
from moongate.tensor_files import safetensors_bytes

__all__ = ["EMBEDDING", "embedding_files", "renamed_note", "stems_of"]

PLAIN_KEY = "emb_params"
A1111_KEY = "string_to_param"


def embedding_files(concept: Concept) -> dict[str, bytes]:
    """Return an embedding file for each token, by file name.

    A file is named after its token without the brackets, because A1111 and ComfyUI call an embedding by its file name.
    """
    files = {}
    for token, stem in stems_of(concept.tokens).items():
        rows = concept.rows(token)
        keys = ENCODERS if len(rows) > 1 else (PLAIN_KEY,)
        vectors = {key: row[None] for key, row in zip(keys, rows, strict=True)}
        files[f"{stem}.safetensors"] = safetensors_bytes(vectors, {"name": token})
    return files


def renamed_note(concept: Concept) -> tuple[str, ...]:
    """Return a note about tokens whose file has another name, because theirs is taken or not allowed."""
    renamed = [
        f"{token} is in {stem}.safetensors"
        for token, stem in stems_of(concept.tokens).items()
        if token.strip("<>") != stem
    ]
    return (f"An embedding is called by its file name: {listed(renamed)}.",) if renamed else ()


def stems_of(tokens: Iterable[str]) -> dict[str, str]:
    """Return the name by which other programs call each token's embedding: that of its file, without brackets."""
    tokens = list(tokens)
    stems = file_stems(token.strip("<>") for token in tokens)
    return {token: stems[token.strip("<>")] for token in tokens}


def _recognizes(content: Content) -> bool:
    values = content.values
    if A1111_KEY in values:
        return True
    tensors = {key: value for key, value in values.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(values):
        return False
    if all(key.startswith(BUNDLED) for key in tensors):
        return True
    if all(key in FIELDS or key.endswith(OUTPUT) for key in tensors):
        return any(key in FIELDS for key in tensors)
    are_words = len(tensors) == 1 or all(key.startswith("<") and key.endswith(">") for key in tensors)
    return are_words and all(tensor.ndim in (1, 2) and not key.endswith(".weight") for key, tensor in tensors.items())


def _parse(content: Content) -> Parts:
    """Read the rows of words. A key that is not a field of a trainer's layout is a word itself (diffusers)."""
    values, name = content.values, content.header.get("name") or content.path.stem
    if all(str(key).startswith(BUNDLED) for key in values):
        return _of_words(bundled_words({str(key): value for key, value in values.items()}))
    named: list[tuple[str, Mapping[str, Any]]]
    if A1111_KEY in values:
        name = values["name"] if isinstance(values.get("name"), str) and values["name"] else name
        named = _by_placeholder(name, mapping_in(values, A1111_KEY))
    elif any(key in FIELDS for key in values):
        named = [(name, values)]
    else:
        named = [(word, {PLAIN_KEY: rows}) for word, rows in values.items()]
    return _of_words(read_words(named))


def _of_words(words: Words) -> Parts:
    return Parts(tokens=words.rows, further=words.further, left_out=words.left_out, notes=words.notes)


def _by_placeholder(name: str, rows: Mapping[Any, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the words of `string_to_param`: one of any placeholder, called by the file's name, or several words."""
    if len(rows) == 1:
        return [(name, {PLAIN_KEY: vector}) for vector in rows.values()]
    return [(name if key == "*" else str(key), {PLAIN_KEY: vector}) for key, vector in rows.items()]


def _render(concept: Concept, _options: WriteOptions) -> Rendered:
    if not concept.tokens:
        raise OptionError("The concept has no token, so that there is no embedding to write. Write a LoRA (--to lora).")
    note = f"The changes of {len(concept.deltas)} weights are left out: an embedding holds only tokens."
    notes = renamed_note(concept) + ((note,) if concept.deltas else ())
    return Rendered(files=embedding_files(concept), notes=notes)


EMBEDDING = Format(
    name="embedding",
    title="textual-inversion embeddings (A1111, ComfyUI, diffusers)",
    layout="folder: for each token `emb_params`, or `clip_l` and `clip_g`; "
    "`.pt` and the keys of other trainers are read too",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    is_folder=True,
    keeps_changes="no",
)
