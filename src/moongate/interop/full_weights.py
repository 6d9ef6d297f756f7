"""Custom Diffusion's own formats: full weights W, or factors of W - W0, and the rows of the tokens.

`adobe` is the `delta.bin` of the paper's diffusers code, `compvis` the `delta_epoch=….ckpt` of its first code, each
plain or compressed, and `diffusers` the folder that diffusers' example writes. None of them says which base it is for.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept, LowRank, safetensors_bytes
from moongate.errors import ConceptFileError, OptionError, listed
from moongate.interop.content import Content, flat_tensors, mapping_in, to_pickle
from moongate.interop.format import Parts, Rendered, WriteOptions, header_of, provenance_in
from moongate.interop.layers import COMPVIS_PREFIX, blocks_per_level, from_compvis, to_compvis, unambiguous_levels
from moongate.interop.products import products
from moongate.interop.tokens import diffusers_token_files, numbered_rows, rows_of

__all__ = [
    "TEXT_PREFIX",
    "is_adobe",
    "is_adobe_compressed",
    "is_compvis",
    "is_compvis_compressed",
    "is_diffusers",
    "parse_adobe",
    "parse_compvis",
    "parse_diffusers",
    "render_adobe",
    "render_adobe_compressed",
    "render_compvis",
    "render_compvis_compressed",
    "render_diffusers",
]

WEIGHTS_STEM = "pytorch_custom_diffusion_weights"
_PROCESSOR = re.compile(r"\.processor\.to_(k|v|q|out)_custom_diffusion\.")
FACTORS = {"u", "v"}
TEXT_PREFIX = "text_model."
"""Before every name of a text encoder as transformers wrote it until version 5."""


# --- delta.bin --------------------------------------------------------------------------------------------------------


def is_adobe(content: Content) -> bool:
    """Tell whether a file is a plain `delta.bin`."""
    return _is_attention(content.values.get("unet")) and not _has_factors(content.values["unet"])


def is_adobe_compressed(content: Content) -> bool:
    """Tell whether a file is a compressed `delta.bin`."""
    return _is_attention(content.values.get("unet")) and _has_factors(content.values["unet"])


def parse_adobe(content: Content) -> Parts:
    """Read a `delta.bin`, plain or compressed, with what it may hold of trained text encoders."""
    values = content.values
    weights, changes = _split({f"unet.{key}": value for key, value in values["unet"].items()})
    known = {"unet", "modifier_token", "text_encoder", "text_encoder_2"}
    for encoder in ("text_encoder", "text_encoder_2"):
        state = mapping_in(values, encoder)
        state = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}
        weights |= {f"{encoder}.{k.removeprefix(TEXT_PREFIX)}": v for k, v in flat_tensors(state).items()}
    tokens = {}
    for token, value in mapping_in(values, "modifier_token").items():
        encoders = value if isinstance(value, list | tuple) and value else [value]
        tokens[token] = tuple(rows_of(row).flatten() for row in encoders)
    left = tuple(str(key) for key in values if key not in known)
    return Parts(weights=weights, changes=changes, tokens=tokens, left_out=left)


def render_adobe(concept: Concept, options: WriteOptions) -> Rendered:
    """Write a `delta.bin`; a trained text encoder goes in as a whole."""
    weights, left = _full(concept, options)
    base = _base(options)
    file: dict[str, Any] = {"unet": _without_prefix(weights), "modifier_token": _adobe_tokens(concept)}
    for part in {name.partition(".")[0] for name in left if name.startswith("text_encoder")}:
        state = {}
        for name, weight in getattr(base, part).named_parameters():
            change = concept.deltas.get(f"{part}.{name}")
            whole = weight.detach().float().cpu() + (0 if change is None else change.full())
            state[TEXT_PREFIX + name.removeprefix(TEXT_PREFIX)] = whole
        file[part] = state
    left = [name for name in left if not name.startswith("text_encoder")]
    return Rendered(files={"": to_pickle(file)}, notes=_left_out(left))


def render_adobe_compressed(concept: Concept, options: WriteOptions) -> Rendered:
    """Write a compressed `delta.bin`."""
    factors, notes = _factors(concept, options)
    file = {"unet": _without_prefix(factors), "modifier_token": _adobe_tokens(concept)}
    return Rendered(files={"": to_pickle(file)}, notes=notes)


def _adobe_tokens(concept: Concept) -> dict[str, Any]:
    rows = {token: list(concept.rows(token)) for token in concept.tokens}
    return {token: row if len(row) > 1 else row[0] for token, row in rows.items()}


# --- delta_epoch=….ckpt -----------------------------------------------------------------------------------------------


def is_compvis(content: Content) -> bool:
    """Tell whether a file is a plain `delta_epoch=….ckpt`; a whole model's checkpoint is none."""
    return _is_delta_checkpoint(content) and not _has_factors(content.values["state_dict"])


def is_compvis_compressed(content: Content) -> bool:
    """Tell whether a file is a compressed `delta_epoch=….ckpt`."""
    return _is_delta_checkpoint(content) and _has_factors(content.values["state_dict"])


def parse_compvis(content: Content) -> Parts:
    """Read a `delta_epoch=….ckpt`, plain or compressed; its tokens have no names and are numbered."""
    state = dict(content.values["state_dict"])
    rows = state.pop("embed", None)
    per_level = unambiguous_levels(state)
    weights, changes = _split({from_compvis(key, per_level): value for key, value in state.items()})
    if rows is None:
        return Parts(weights=weights, changes=changes)
    read_text = {n: each.shape for n, each in (weights | changes).items() if n.endswith(("to_k.weight", "to_v.weight"))}
    width = next((shape[1] for shape in read_text.values() if len(shape) == 2), 0)
    if not isinstance(rows, Tensor) or not width or rows.numel() % width:
        raise ConceptFileError(f"{content.path}: 'embed' is no multiple of the {width} numbers of a token's row.")
    tokens = dict(numbered_rows(rows_of(rows.reshape(-1, width))))
    called = ", ".join(tokens)
    note = f"The file does not name its tokens; they are called {called}. `moongate convert --token` names them."
    return Parts(weights=weights, changes=changes, tokens=tokens, notes=(note,))


def render_compvis(concept: Concept, options: WriteOptions) -> Rendered:
    """Write a `delta_epoch=….ckpt`."""
    weights, left = _full(concept, options)
    return Rendered(files={"": _checkpoint(concept, weights)}, notes=_left_out(left) + _unnamed(concept))


def render_compvis_compressed(concept: Concept, options: WriteOptions) -> Rendered:
    """Write a compressed `delta_epoch=….ckpt`."""
    factors, notes = _factors(concept, options)
    return Rendered(files={"": _checkpoint(concept, factors)}, notes=notes + _unnamed(concept))


def _checkpoint(concept: Concept, entries: Mapping[str, Any]) -> bytes:
    if len(concept.token_widths) > 1:
        raise OptionError("A CompVis checkpoint has one text encoder, SDXL has two. Choose another format.")
    per_level = blocks_per_level(entries)
    state: dict[str, Any] = {to_compvis(name, per_level): value for name, value in entries.items()}
    if concept.tokens:
        state["embed"] = torch.stack([*concept.tokens.values()])
    return to_pickle({"state_dict": state})


def _unnamed(concept: Concept) -> tuple[str, ...]:
    names = ", ".join(concept.tokens)
    note = f"A CompVis checkpoint does not name its tokens. In the order of its rows they are: {names}."
    return (note,) if names else ()


def _is_delta_checkpoint(content: Content) -> bool:
    state = content.values.get("state_dict", {})
    return _is_attention(state) and all(
        str(key) == "embed" or (str(key).startswith(COMPVIS_PREFIX) and "attn2" in str(key)) for key in state
    )


# --- the folder of diffusers ------------------------------------------------------------------------------------------


def is_diffusers(content: Content) -> bool:
    """Tell whether a file holds the attention processors of diffusers' example."""
    return any(isinstance(key, str) and _PROCESSOR.search(key) for key in content.values)


def parse_diffusers(content: Content) -> Parts:
    """Read `pytorch_custom_diffusion_weights`; the empty entries of self-attention say nothing."""
    told = {key: value for key, value in content.values.items() if not (isinstance(value, Mapping) and not value)}
    ours = {key: value for key, value in told.items() if isinstance(key, str) and _PROCESSOR.search(key)}
    weights = flat_tensors({"unet." + _PROCESSOR.sub(r".to_\1.", key): value for key, value in ours.items()})
    left = tuple(str(key) for key in told if key not in ours)
    return Parts(weights=weights, left_out=left, provenance=provenance_in(content))


def render_diffusers(concept: Concept, options: WriteOptions) -> Rendered:
    """Write the weights as `.safetensors`, and as the `.bin` that diffusers' loader takes, and a file for each token.

    The loader wants an entry for every attention layer, which safetensors cannot hold for those without weights.
    """
    weights, left = _full(concept, options)
    custom = {}
    for name, weight in weights.items():
        layer, _, part = name.removeprefix("unet.").rpartition(".attn2.to_")
        kind, _, rest = part.partition(".")
        custom[f"{layer}.attn2.processor.to_{kind}_custom_diffusion.{rest}"] = weight
    changed = {key.split(".to_")[0] for key in custom}
    empty: dict[str, Any] = {name: {} for name in _base(options).unet.attn_processors if name not in changed}
    files = {
        f"{WEIGHTS_STEM}.safetensors": safetensors_bytes(custom, header_of(concept)),
        f"{WEIGHTS_STEM}.bin": to_pickle(custom | empty),
        **diffusers_token_files(concept),
    }
    return Rendered(files=files, notes=_left_out(left))


# --- what they share --------------------------------------------------------------------------------------------------


def _is_attention(values: Any) -> bool:
    return isinstance(values, Mapping) and any(isinstance(key, str) and ".attn2." in key for key in values)


def _has_factors(values: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Mapping) and set(value) == FACTORS for value in values.values())


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, LowRank]]:
    """Return full weights and products; a product of rank 0 changes nothing and is passed over."""
    pairs = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    weights = flat_tensors({name: value for name, value in values.items() if name not in pairs})
    changes = {}
    for name, pair in pairs.items():
        factors = flat_tensors(pair)
        u, v = factors.get("u"), factors.get("v")
        if u is None or v is None or u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0]:
            shapes = {key: tuple(factor.shape) for key, factor in factors.items()}
            raise ConceptFileError(f"The factors of {name!r} do not fit together: {shapes}.")
        if u.shape[1]:
            changes[name] = LowRank(up=u, down=v)
    return weights, changes


def _base(options: WriteOptions) -> Backbone:
    if options.base is None:
        raise OptionError("This format stores full weights, for which the base is needed. Name it with --base.")
    if options.base.dtype != torch.float32:
        raise OptionError(f"Full weights are made in float32, but the base is loaded in {options.base.dtype}.")
    return options.base


def _full(concept: Concept, options: WriteOptions) -> tuple[dict[str, Tensor], list[str]]:
    """Return W0 + change of all cross-attention weights of the kinds concerned, and the names of other changes."""
    base = _base(options)
    concept.check_base(base)
    whole = base.weights("cross-attention")
    wanted = base.weights("cross-attention-kv")
    if any(name in whole and name not in wanted for name in concept.deltas):
        wanted = whole
    weights = {}
    for name, weight in wanted.items():
        change = concept.deltas.get(name)
        before = weight.detach().float().cpu()
        weights[name] = before if change is None else before + change.full()
    return weights, [name for name in concept.deltas if name not in weights]


def _factors(concept: Concept, options: WriteOptions) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return `{"u", "v"}` for each key and value; with a base also, as readers want it, for those that stay."""
    changes = {n: c for n, c in concept.deltas.items() if n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))}
    if not changes:
        raise OptionError("The concept changes no keys or values, so that there is nothing to compress.")
    made, notes = products(changes, options.rank)
    factors = {name: {"u": change.up, "v": change.down} for name, change in made.items()}
    if options.base is not None:
        concept.check_base(options.base)
        for name, weight in options.base.weights("cross-attention-kv").items():
            rows, columns = weight.shape
            factors.setdefault(name, {"u": torch.zeros(rows, 0), "v": torch.zeros(0, columns)})
    return factors, (*notes, *_left_out([name for name in concept.deltas if name not in changes]))


def _left_out(names: list[str]) -> tuple[str, ...]:
    return (f"The format cannot hold the changes of {listed(names)}; they are left out.",) if names else ()


def _without_prefix(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("unet."): value for name, value in entries.items()}
