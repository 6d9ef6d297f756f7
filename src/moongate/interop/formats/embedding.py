"""Textual-inversion embeddings: the rows of one token, without changed weights.

A file holds one token: under the token's own name (diffusers), as `emb_params` (kohya), as `string_to_param` (A1111),
or as `clip_l` and `clip_g` for two text encoders (SDXL). A token without a name in the file is named after the file.
"""

from typing import Any

from torch import Tensor

from moongate.concept import Concept, safetensors_bytes
from moongate.errors import OptionError, listed
from moongate.interop.content import Content, mapping_in
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions
from moongate.interop.tokens import ENCODERS, bracketed, file_stems, named_rows

__all__ = ["EMBEDDING", "embedding_files", "renamed_note"]

PLAIN_KEY = "emb_params"
A1111_KEY = "string_to_param"


def embedding_files(concept: Concept) -> dict[str, bytes]:
    """Return an embedding file for each token, by file name.

    A file is named after its token without the brackets, because A1111 and ComfyUI call an embedding by its file name.
    """
    files = {}
    for token, stem in _stems(concept).items():
        rows = concept.rows(token)
        keys = ENCODERS if len(rows) > 1 else (PLAIN_KEY,)
        vectors = {key: row[None] for key, row in zip(keys, rows, strict=True)}
        files[f"{stem}.safetensors"] = safetensors_bytes(vectors, {"name": token})
    return files


def renamed_note(concept: Concept) -> tuple[str, ...]:
    """Return a note about tokens whose file has another name, because theirs is taken or not allowed."""
    renamed = [
        f"{token} is in {stem}.safetensors" for token, stem in _stems(concept).items() if token.strip("<>") != stem
    ]
    return (f"An embedding is called by its file name: {listed(renamed)}.",) if renamed else ()


def _stems(concept: Concept) -> dict[str, str]:
    stems = file_stems(token.strip("<>") for token in concept.tokens)
    return {token: stems[token.strip("<>")] for token in concept.tokens}


def _recognizes(content: Content) -> bool:
    values = content.values
    if A1111_KEY in values or set(values) == set(ENCODERS):
        return True
    return len(values) == 1 and all(
        isinstance(key, str) and isinstance(value, Tensor) and value.ndim in (1, 2) and not key.endswith(".weight")
        for key, value in values.items()
    )


def _parse(content: Content) -> Parts:
    """Read a token's rows; each vector of a token of several vectors becomes a token of its own."""
    values, name = content.values, content.header.get("name") or content.path.stem
    if A1111_KEY in values:
        vectors: list[Any] = list(mapping_in(values, A1111_KEY).values())
        name = values["name"] if isinstance(values.get("name"), str) and values["name"] else name
    elif set(values) == set(ENCODERS):
        vectors = [values[encoder] for encoder in ENCODERS]
    else:
        (key,) = values
        vectors = [values[key]]
        name = name if key == PLAIN_KEY else key
    tokens = named_rows(bracketed(name), vectors)
    note = f"The embedding has {len(tokens)} vectors; write {' '.join(tokens)!r} for it in prompts."
    return Parts(tokens=tokens, notes=(note,) if len(tokens) > 1 else ())


def _render(concept: Concept, _options: WriteOptions) -> Rendered:
    if not concept.tokens:
        raise OptionError("The concept has no token, so that there is no embedding to write. Write a LoRA (--to lora).")
    note = f"The changes of {len(concept.deltas)} weights are left out: an embedding holds tokens alone."
    notes = renamed_note(concept) + ((note,) if concept.deltas else ())
    return Rendered(files=embedding_files(concept), notes=notes)


EMBEDDING = Format(
    name="embedding",
    title="textual-inversion embeddings (A1111, ComfyUI, diffusers)",
    layout="folder: for each token `emb_params`, or `clip_l` and `clip_g`; `.pt` is read too",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    is_folder=True,
    keeps_changes="no",
)
