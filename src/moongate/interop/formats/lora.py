"""LoRA in the keys of diffusers and PEFT: `unet.<module>.lora_A.weight` and `.lora_B.weight`, without alphas.

PEFT keeps its alphas elsewhere: in `adapter_config.json`, or as the same object in the header of the file.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from moongate.concept import Concept, LowRank
from moongate.errors import ConceptFileError
from moongate.interop.adapters import ADAPTER_KEY, Adapter, factors_of, padded, read_adapter, unscaled
from moongate.interop.content import Content, read_json
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions, header_of, provenance_in
from moongate.interop.formats.diffusers import token_files
from moongate.interop.formats.kohya import KOHYA
from moongate.interop.initialization import INITIALIZATIONS
from moongate.interop.layers import USUAL_BLOCKS_PER_LEVEL, kv_layer
from moongate.interop.tokens import bundled_words
from moongate.tensor_files import safetensors_bytes

__all__ = ["LORA"]

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers' `load_lora_weights` looks for."""
PEFT_HEADER = "lora_adapter_metadata"
"""The entry of a safetensors header that holds PEFT's settings in files written by diffusers."""
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` with which PEFT changes the base's weights when it loads a LoRA."""
OTHER_LAYERS = ("use_qalora", "use_bdlora", "kasa_config", "arrow_config", "alora_invocation_tokens")
"""Settings of PEFT with which layers of the same keys mean something else than the product of their factors."""
PEFT_DEFAULT = 8
"""The alpha and the rank of an adapter of PEFT whose settings leave them out."""
PATTERN = re.compile(r"\^?[\w.]+")
"""The patterns of `alpha_pattern` that are read. PEFT takes any regular expression, which may run without end."""


def _recognizes(content: Content) -> bool:
    is_adapter = any(isinstance(key, str) and ADAPTER_KEY.search(key) for key in content.values)
    return is_adapter and not KOHYA.recognizes(content)


def _parse(content: Content) -> Parts:
    if other := next((key for key in OTHER_LAYERS if _settings(content).get(key)), None):
        raise ConceptFileError(
            f"{content.path} was trained with PEFT's {other}: its layers are not those of a plain LoRA, and are not "
            "read. Give a plain LoRA."
        )
    scale_of = _scales(content)
    adapter = read_adapter(content.values, scale_of=scale_of)
    words = bundled_words(adapter.bundled)
    return Parts(
        changes=adapter.changes,
        subtracted=_subtracted(content, adapter, scale_of),
        tokens=words.rows,
        further=words.further,
        left_out=adapter.left_out + words.left_out,
        notes=words.notes,
        provenance=provenance_in(content),
    )


def _render(concept: Concept, options: WriteOptions) -> Rendered:
    factors, notes = factors_of(concept, options.rank)
    tensors: dict[str, Tensor] = {}
    for name, change in padded(factors)[0].items():
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": change.down, f"{module}.lora_B.weight": change.up}
    files = {LORA_FILE: safetensors_bytes(tensors, header_of(concept)), **token_files(concept)}
    return Rendered(files=files, notes=notes)


def _scales(content: Content) -> Callable[[str, int | None], float]:
    """Return the function from our name of a weight and its rank to its scale, by PEFT's settings of a file.

    The scale is alpha / rank, or alpha / sqrt(rank) with `use_rslora`; a pattern may give a module its own alpha. A
    rank that the file does not show (None) is taken from the settings.

    Raises:
        ConceptFileError: A setting is odd.
    """
    settings = _settings(content)
    key = "alpha" if settings.get("peft_type") in ("LOHA", "LOKR") else "lora_alpha"
    if settings.get("peft_type"):
        settings = {key: PEFT_DEFAULT, "r": PEFT_DEFAULT} | settings
    if settings.get(key) is None:
        return unscaled
    root = bool(settings.get("use_rslora"))
    alpha_of = _by_pattern(content, settings, key, "alpha_pattern")
    rank_of = _by_pattern(content, settings, "r", "rank_pattern")

    def scale(name: str, rank: int | None) -> float:
        module = name.removeprefix("unet.").removesuffix(".weight")
        divisor = rank_of(module) if rank is None else rank
        return alpha_of(module) / (math.sqrt(divisor) if root else divisor) if divisor > 0 else 1.0

    return scale


def _subtracted(
    content: Content, adapter: Adapter, scale_of: Callable[[str, int | None], float]
) -> dict[str, Callable[[Tensor], LowRank]]:
    """Return what PEFT subtracts from the base when it loads the adapter, as functions of the base's weights.

    Raises:
        ConceptFileError: The adapter changes the base in a way that cannot be repeated.
    """
    start = _settings(content).get("init_lora_weights")
    if not (isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE)):
        return {}
    part = INITIALIZATIONS.get(start.lower())
    if part is None:
        raise ConceptFileError(
            f"{content.path} was started with init_lora_weights={start!r}, which also changes the base model's "
            "weights. Convert it into a plain LoRA with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )
    ranks = {
        name: value.shape[0]
        for key, value in content.values.items()
        if (name := kv_layer(str(key), USUAL_BLOCKS_PER_LEVEL))
        and (match := ADAPTER_KEY.search(str(key)))
        and match["factor"] in ("A", "down")
    }
    return {
        name: functools.partial(part, rank=ranks[name], scale=scale_of(name, ranks[name]))
        for name in adapter.changes
        if name in ranks  # a change that is stored whole began at the base
    }


def _by_pattern(content: Content, settings: Mapping[str, Any], key: str, patterns_key: str) -> Callable[[str], float]:
    """Return the function from a module to its number: that of the first pattern that fits, or else the default."""
    try:
        default = float(settings.get(key) or 0)
        numbers = {str(pattern): float(number) for pattern, number in (settings.get(patterns_key) or {}).items()}
        if odd := [number for number in (default, *numbers.values()) if not math.isfinite(number)]:
            raise ValueError(f"{odd[0]} is not finite")
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConceptFileError(f"The configuration of the LoRA {content.path} has an odd {key} ({error}).") from error
    for pattern in numbers:
        if not PATTERN.fullmatch(pattern):
            raise ConceptFileError(
                f"The {patterns_key} {pattern!r} of the LoRA {content.path} is a regular expression that Moongate does "
                "not evaluate. Only names of modules, with dots and perhaps a leading ^, are read."
            )
    return lambda module: next((number for pattern, number in numbers.items() if _matches(pattern, module)), default)


def _settings(content: Content) -> dict[str, Any]:
    """Return PEFT's settings from the header of a file, or else from `adapter_config.json` in its folder."""
    text = content.header.get(PEFT_HEADER, "{}")
    header = {} if text == "null" else read_json(text, content.path)
    return {key.removeprefix("unet."): value for key, value in header.items()} or dict(content.adapter)


def _matches(pattern: str, module: str) -> bool:
    """Return whether a pattern is the module's name, or its end after a dot; ^ stands for the start of the name."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


LORA = Format(
    name="lora",
    title="LoRA in the keys of diffusers and PEFT",
    layout="folder: `pytorch_lora_weights.safetensors`, a file for each token",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    is_folder=True,
    keeps_changes="factors",
    keeps_provenance=True,
    usage="pipeline.load_lora_weights(folder)",
)
