"""LoRA files: products that are added to weights, in the keys of diffusers and PEFT or in kohya's.

Anybody's LoRA is read, but of it the keys and values of cross-attention alone, because nothing else reads the text and
can be merged in closed form. What is written are a concept's own products, with a scale of exactly 1.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from moongate.concept import Concept, Dense, LowRank, safetensors_bytes
from moongate.errors import ConceptFileError, OptionError, listed
from moongate.interop.content import Content, flat_tensors, read_json
from moongate.interop.format import Parts, Rendered, WriteOptions, header_of, provenance_in
from moongate.interop.layers import KOHYA_PREFIX, blocks_per_level, kohya_name, kv_layer, unambiguous_levels
from moongate.interop.products import products
from moongate.interop.tokens import ENCODERS, diffusers_token_files, embedding_files, named_rows

__all__ = ["is_kohya", "is_lora", "kinds", "parse_lora", "render_kohya", "render_lora"]

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_HEADER = "lora_adapter_metadata"
BUNDLED = "bundle_emb."
_PART = re.compile(
    r"(?:[._]lora[._](?P<factor>A|B|down|up)(?:\.default)?\.weight|(?:_lora)?\.(?P<other>alpha|diff)"
    r"|\.(?:dora_scale|lora_magnitude_vector)(?:\.default)?(?:\.weight)?)$"
)
DORA = "DoRA"
"""Of a layer that is also scaled by its norm, so that it is no product."""
FACTORS: Mapping[str | None, str] = {"A": "down", "down": "down", "B": "up", "up": "up"}
KINDS = (
    ("layers with DoRA", DORA),
    ("layers of LyCORIS' LoHa and LoKr", r"\.(?:hada|lokr)_"),
    ("the text encoder", r"^lora_te|text_encoder|text_model|bundle_emb"),
    ("self-attention (attn1)", r"attn1"),
    ("queries (attn2.to_q)", r"attn2.*to[._]q"),
    ("outputs of cross-attention (attn2.to_out)", r"attn2.*to[._]out"),
    ("feed-forward layers", r"ff[._]net|[._]ff[._]"),
    ("projections around attention", r"proj[._](?:in|out)"),
    ("convolutions and time embeddings", r"resnets|conv|samplers|time[._]emb|in_layers|out_layers|emb_layers"),
)


def is_kohya(content: Content) -> bool:
    """Tell whether a file is a LoRA in kohya's keys."""
    return any(isinstance(key, str) and key.startswith((KOHYA_PREFIX, "lora_te")) for key in content.values)


def is_lora(content: Content) -> bool:
    """Tell whether a file is a LoRA in the keys of diffusers or PEFT."""
    return not is_kohya(content) and any(isinstance(key, str) and _PART.search(key) for key in content.values)


def parse_lora(content: Content) -> Parts:
    """Read the keys and values of a LoRA, and tokens that are bundled with it."""
    per_level = unambiguous_levels(map(str, content.values))
    layers: dict[str, dict[str, Any]] = {}
    bundled: dict[str, dict[str, Any]] = {}
    modules: dict[str, str] = {}
    left = []
    for key, value in ((str(key), value) for key, value in content.values.items()):
        layer, part = kv_layer(key, per_level), _PART.search(key)
        if layer and part:
            layers.setdefault(layer, {})[FACTORS.get(part["factor"], part["other"] or DORA)] = value
            modules[layer] = key[: part.start()]
        elif key.startswith(BUNDLED):
            name, _, encoder = key.removeprefix(BUNDLED).partition(".")
            bundled.setdefault(name, {})[encoder] = value
        else:
            left.append(key)
    changes = {
        layer: _change(layer, found, _alpha(content, modules[layer]))
        for layer, found in layers.items()
        if DORA not in found
    }
    left += [f"{layer} ({DORA})" for layer in layers if layer not in changes]
    tokens: dict[str, tuple[Tensor, ...]] = {}
    for name, found in bundled.items():
        tokens |= named_rows(name, [found[key] for key in ENCODERS if key in found] or [*found.values()])
    return Parts(changes=changes, tokens=tokens, left_out=tuple(left), provenance=provenance_in(content))


def render_lora(concept: Concept, options: WriteOptions) -> Rendered:
    """Write `pytorch_lora_weights.safetensors`, as `load_lora_weights` reads it, and a file for each token."""
    factors, notes = _factors(concept, options)
    tensors: dict[str, Tensor] = {}
    for name, change in factors.items():
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": change.down, f"{module}.lora_B.weight": change.up}
    files = {LORA_FILE: safetensors_bytes(tensors, header_of(concept)), **diffusers_token_files(concept)}
    return Rendered(files=files, notes=notes)


def render_kohya(concept: Concept, options: WriteOptions) -> Rendered:
    """Write a LoRA that ComfyUI and A1111 load, and an embedding for each token.

    All products are filled up with zeros to the largest rank: diffusers minds the alpha of such a file only where it is
    the same everywhere. For two text encoders (SDXL) the layers have CompVis' names, as kohya's scripts write them.
    """
    factors, notes = _factors(concept, options)
    per_level = blocks_per_level(factors) if len(concept.token_widths) > 1 else None
    rank = max(change.rank for change in factors.values())
    tensors: dict[str, Tensor] = {}
    for name, change in factors.items():
        module, missing = kohya_name(name, per_level), rank - change.rank
        tensors |= {
            f"{module}.lora_down.weight": pad(change.down, (0, 0, 0, missing)),
            f"{module}.lora_up.weight": pad(change.up, (0, missing)),
            f"{module}.alpha": torch.tensor(float(rank)),
        }
    header = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    file = safetensors_bytes(tensors, header_of(concept) | header)
    return Rendered(files={f"{options.name}.safetensors": file, **embedding_files(concept)}, notes=notes)


def kinds(keys: tuple[str, ...]) -> list[str]:
    """Return what keys of a file are about, with their number, for people."""
    counts: dict[str, int] = {}
    for key in keys:
        kind = next((name for name, pattern in KINDS if re.search(pattern, key)), f"{key!r}")
        counts[kind] = counts.get(kind, 0) + 1
    return [f"{kind} ({count} tensors)" if count > 1 else kind for kind, count in counts.items()]


def _factors(concept: Concept, options: WriteOptions) -> tuple[dict[str, LowRank], tuple[str, ...]]:
    matrices = {n: c for n, c in concept.deltas.items() if n.startswith("unet.") and len(c.shape) == 2}
    if not any(change.rank != 0 for change in matrices.values()):
        raise OptionError("The concept changes no weights, so that there is no LoRA to write. Write --to embedding.")
    factors, notes = products(matrices, options.rank)
    left = [name for name in concept.deltas if name not in matrices]
    if left:
        notes.append(f"A LoRA cannot hold the changes of {listed(left)}; they are left out.")
    return {name: change for name, change in factors.items() if change.rank}, tuple(notes)


def _change(layer: str, found: Mapping[str, Any], alpha: Any) -> Dense | LowRank:
    """Return one layer's change, its scale multiplied in."""
    tensors = flat_tensors({kind: value for kind, value in found.items() if kind != "alpha"})
    if "diff" in tensors:
        return Dense(delta=tensors["diff"])
    up, down = tensors.get("up"), tensors.get("down")
    if up is None or down is None:
        raise ConceptFileError(f"The file holds {' and '.join(sorted(found))} of {layer!r}, but not both factors.")
    up, down = (factor[:, :, 0, 0] if factor.shape[2:] == (1, 1) else factor for factor in (up, down))
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise ConceptFileError(f"The factors of {layer!r} have the shapes {shapes}, which do not fit together.")
    rank = up.shape[1]
    if "alpha" in found:
        if not isinstance(found["alpha"], Tensor) or found["alpha"].numel() != 1:
            raise ConceptFileError(f"The alpha of {layer!r} is not one number.")
        alpha = float(found["alpha"])
    over = math.sqrt(rank) if isinstance(alpha, _Root) else rank
    scale = alpha / over if alpha is not None and rank else 1.0
    used = (up.any(0) & down.any(1)).nonzero()
    rank = int(used[-1]) + 1 if len(used) else 0  # what fills up the end changes nothing
    up, down = up[:, :rank], down[:rank]
    return LowRank(up=up if scale == 1 else scale * up, down=down)


class _Root(float):
    """An alpha that is divided by the root of the rank (PEFT's `use_rslora`)."""


def _alpha(content: Content, module: str) -> float | None:
    """Return the alpha of a module by PEFT's configuration, from the header or beside the file; None without one."""
    header = read_json(content.header.get(PEFT_HEADER, "{}"), content.path)
    config = {key.removeprefix("unet."): value for key, value in header.items()} or dict(content.adapter)
    if "lora_alpha" not in config:
        return None
    try:
        alpha = float(config["lora_alpha"])
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.search(rf"(?:^|\.){pattern.lstrip('^')}$", module):
                alpha = float(value)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise ConceptFileError(f"The configuration of the LoRA {content.path} has an odd alpha ({error}).") from error
    return _Root(alpha) if config.get("use_rslora") else alpha
