"""`delta.bin`, the pickle of the paper's diffusers code. The compressed variant is read, and no longer written."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moongate.backbone.text_only import TEXT_PREFIX
from moongate.concept import Concept
from moongate.interop.content import Content, flat_tensors, mapping_in, to_pickle
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions
from moongate.interop.full_weights import float32_base, left_out_note, split_compressed, whole_weights
from moongate.interop.layers import renamed, unwrapped
from moongate.interop.tokens import fields_of, read_words

__all__ = ["ADOBE"]

TOKENS = "modifier_token"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def _recognizes(content: Content) -> bool:
    unet = content.values.get("unet")
    has_layers = isinstance(unet, Mapping) and any(isinstance(key, str) and ".attn2." in key for key in unet)
    return has_layers or isinstance(content.values.get(TOKENS), Mapping)


def _parse(content: Content) -> Parts:
    values = content.values
    weights, changes = split_compressed(renamed(mapping_in(values, "unet"), lambda key: f"unet.{unwrapped(key)}"))
    for encoder in TEXT_ENCODERS:
        state = mapping_in(values, encoder)
        state = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}
        named = renamed(flat_tensors(state), lambda key: unwrapped(key).removeprefix(TEXT_PREFIX))
        weights |= {f"{encoder}.{name}": value for name, value in named.items()}
    rows = {str(token): value for token, value in mapping_in(values, TOKENS).items()}
    words = read_words(
        (token, fields_of(token, value if isinstance(value, list | tuple) else [value]))
        for token, value in rows.items()
    )
    known = {"unet", TOKENS, *TEXT_ENCODERS}
    left_out = tuple(str(key) for key in values if key not in known)
    return Parts(
        weights=weights, changes=changes, tokens=words.rows, further=words.further, left_out=left_out, notes=words.notes
    )


def _render(concept: Concept, options: WriteOptions) -> Rendered:
    weights, others = whole_weights(concept, options.base)
    content: dict[str, Any] = {
        "unet": {name.removeprefix("unet."): weight for name, weight in weights.items()},
        TOKENS: {token: _rows(concept, token) for token in concept.tokens},
    }
    for encoder in {name.partition(".")[0] for name in others} & set(TEXT_ENCODERS):
        content[encoder] = _text_encoder(concept, encoder, options)
    left_out = [name for name in others if not name.startswith("text_encoder")]
    return Rendered(files={"": to_pickle(content)}, notes=left_out_note(left_out))


def _rows(concept: Concept, token: str) -> Tensor | list[Tensor]:
    """Return a token's row, or for SDXL the list of its two rows."""
    rows = list(concept.rows(token))
    return rows if len(rows) > 1 else rows[0]


def _text_encoder(concept: Concept, encoder: str, options: WriteOptions) -> dict[str, Tensor]:
    """Return all weights of a text encoder that the concept changes."""
    state = {}
    for name, weight in getattr(float32_base(options.base), encoder).named_parameters():
        change = concept.deltas.get(f"{encoder}.{name}")
        before = weight.detach().float().cpu()
        state[TEXT_PREFIX + name.removeprefix(TEXT_PREFIX)] = before if change is None else before + change.full()
    return state


ADOBE = Format(
    name="adobe",
    title="`delta.bin` of the paper's diffusers code",
    layout="pickle: `unet` (full weights), `modifier_token` (lists for SDXL), perhaps `text_encoder`; "
    "files with factors `u`, `v` in place of weights (compressed) are read too",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    needs_base=True,
    keeps_changes="rounded",
)
