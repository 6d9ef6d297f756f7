"""`delta_epoch=….ckpt`, the pickle of the paper's first code. The compressed variant is read, and no longer written."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.concept import Concept
from moongate.errors import ConceptFileError, OptionError
from moongate.interop.content import Content, to_pickle
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions
from moongate.interop.full_weights import left_out_note, split_compressed, whole_weights
from moongate.interop.layers import (
    COMPVIS_PREFIX,
    blocks_per_level,
    from_compvis,
    inferred_blocks_per_level,
    renamed,
    to_compvis,
)
from moongate.interop.tokens import rows_of

__all__ = ["COMPVIS"]

ROWS = "embed"
"""The key of the tokens' rows, which have no names."""


def _recognizes(content: Content) -> bool:
    """Tell a file of cross-attention weights from the checkpoint of a whole model."""
    state = content.values.get("state_dict")
    if not isinstance(state, Mapping):
        return False
    names = [str(key) for key in state if key != ROWS]
    return bool(names) and all(name.startswith(COMPVIS_PREFIX) and ".attn2." in name for name in names)


def _parse(content: Content) -> Parts:
    state = dict(content.values["state_dict"])
    rows = state.pop(ROWS, None)
    per_level = inferred_blocks_per_level(state)
    weights, changes = split_compressed(renamed(state, lambda key: from_compvis(key, per_level)))
    if rows is None:
        return Parts(weights=weights, changes=changes)
    tokens = _numbered(content, rows, _text_width(state))
    names = ", ".join(tokens)
    note = f"The file does not name its tokens; they are called {names}. `moongate convert --token` names them."
    return Parts(weights=weights, changes=changes, tokens=tokens, notes=(note,))


def _numbered(content: Content, rows: Any, width: int) -> dict[str, tuple[Float[Tensor, " width"]]]:
    """Return nameless rows as "<new1>", "<new2>", ...

    The public converter writes the rows of several tokens as one vector, so the width of a row is taken from what the
    keys and values read.
    """
    is_flat = isinstance(rows, Tensor) and rows.ndim == 1 and width and rows.numel() % width == 0
    if not (is_flat or (isinstance(rows, Tensor) and rows.ndim == 2 and rows.shape[1] == width)):
        raise ConceptFileError(
            f"{content.path}: {ROWS!r} does not hold rows of {width} numbers, the width of the text that its keys and "
            "values read. Download it again."
        )
    return {f"<new{number}>": (row,) for number, row in enumerate(rows_of(rows.reshape(-1, width)), start=1)}


def _text_width(state: Mapping[str, Any]) -> int:
    """Return the width of the text features that keys and values read; 0 when the file holds none of them."""
    for key, value in state.items():
        tensor = value.get("v") if isinstance(value, Mapping) else value
        if key.endswith(("to_k.weight", "to_v.weight")) and isinstance(tensor, Tensor) and tensor.ndim == 2:
            return tensor.shape[1]
    return 0


def _render(concept: Concept, options: WriteOptions) -> Rendered:
    if len(concept.token_widths) > 1:
        raise OptionError("A CompVis checkpoint has one text encoder, SDXL has two. Choose another format.")
    weights, left_out = whole_weights(concept, options.base)
    per_level = blocks_per_level(weights)
    state = {to_compvis(name, per_level): weight for name, weight in weights.items()}
    notes = left_out_note(left_out)
    if concept.tokens:
        state[ROWS] = torch.stack([*concept.tokens.values()])
        names = ", ".join(concept.tokens)
        notes += (f"A CompVis checkpoint does not name its tokens. In the order of its rows they are: {names}.",)
    return Rendered(files={"": to_pickle({"state_dict": state})}, notes=notes)


COMPVIS = Format(
    name="compvis",
    title="`delta_epoch=….ckpt` of the paper's first code",
    layout="pickle: `state_dict` with full weights in CompVis' names and `embed`, rows without names; "
    "files with factors `u`, `v` in place of weights (compressed) are read too",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    needs_base=True,
    keeps_changes="rounded",
    keeps_names=False,
)
