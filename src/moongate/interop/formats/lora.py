"""LoRA in the keys of diffusers and PEFT: `unet.<module>.lora_A.weight` and `.lora_B.weight`, without alphas.

PEFT keeps its alphas elsewhere: in `adapter_config.json`, or as the same object in the header of the file.
"""

import math
import re
from collections.abc import Callable

from torch import Tensor

from moongate.concept import Concept, safetensors_bytes
from moongate.errors import ConceptFileError
from moongate.interop.adapters import ADAPTER_KEY, factors_of, read_adapter, unscaled
from moongate.interop.content import Content, read_json
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions, header_of, provenance_in
from moongate.interop.formats.diffusers import token_files
from moongate.interop.formats.kohya import KOHYA
from moongate.interop.tokens import bundled_rows

__all__ = ["LORA"]

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers' `load_lora_weights` looks for."""
PEFT_HEADER = "lora_adapter_metadata"
"""The entry of a safetensors header that holds PEFT's settings in files written by diffusers."""


def _recognizes(content: Content) -> bool:
    is_adapter = any(isinstance(key, str) and ADAPTER_KEY.search(key) for key in content.values)
    return is_adapter and not KOHYA.recognizes(content)


def _parse(content: Content) -> Parts:
    adapter = read_adapter(content.values, scale_of=_scales(content))
    return Parts(
        changes=adapter.changes,
        tokens=bundled_rows(adapter.bundled),
        left_out=adapter.left_out,
        provenance=provenance_in(content),
    )


def _render(concept: Concept, options: WriteOptions) -> Rendered:
    factors, notes = factors_of(concept, options.rank)
    tensors: dict[str, Tensor] = {}
    for name, change in factors.items():
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": change.down, f"{module}.lora_B.weight": change.up}
    files = {LORA_FILE: safetensors_bytes(tensors, header_of(concept)), **token_files(concept)}
    return Rendered(files=files, notes=notes)


def _scales(content: Content) -> Callable[[str, int], float]:
    """Return the function from a module and its rank to its scale, by PEFT's settings of a file.

    The scale is alpha / rank, or alpha / sqrt(rank) with `use_rslora`; a pattern may give a module its own alpha.
    """
    header = read_json(content.header.get(PEFT_HEADER, "{}"), content.path)
    settings = {key.removeprefix("unet."): value for key, value in header.items()} or dict(content.adapter)
    if "lora_alpha" not in settings:
        return unscaled

    def scale(module: str, rank: int) -> float:
        try:
            alpha = float(settings["lora_alpha"])
            for pattern, value in (settings.get("alpha_pattern") or {}).items():
                if re.search(rf"(?:^|\.){pattern.lstrip('^')}$", module):
                    alpha = float(value)
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise ConceptFileError(
                f"The configuration of the LoRA {content.path} has an odd alpha ({error})."
            ) from error
        rank = max(rank, 1)
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    return scale


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
