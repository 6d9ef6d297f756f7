"""The folder of diffusers' Custom Diffusion example: full weights by attention processor, and a file for each token."""

import re
from collections.abc import Mapping
from typing import Any

from moongate.concept import Concept
from moongate.interop.content import Content, flat_tensors, to_pickle
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions, header_of, provenance_in
from moongate.interop.full_weights import float32_base, left_out_note, whole_weights
from moongate.interop.layers import renamed, unwrapped
from moongate.interop.tokens import ENCODERS, file_stems
from moongate.tensor_files import safetensors_bytes

__all__ = ["DIFFUSERS", "token_files"]

WEIGHTS_STEM = "pytorch_custom_diffusion_weights"
_PROCESSOR = re.compile(r"\.processor\.to_(k|v|q|out)_custom_diffusion\.")


def token_files(concept: Concept) -> dict[str, bytes]:
    """Return for each token the file that the example writes, by file name: the token's row under its name.

    The example has no layout for two text encoders; there the rows stand under the names of `ENCODERS`.
    """
    files = {}
    for token, stem in file_stems(concept.tokens).items():
        rows = concept.rows(token)
        by_key = {token: rows[0]} if len(rows) == 1 else dict(zip(ENCODERS, rows, strict=True))
        files[f"{stem}.safetensors"] = safetensors_bytes(by_key, {"name": token})
    return files


def _recognizes(content: Content) -> bool:
    return any(isinstance(key, str) and _PROCESSOR.search(key) for key in content.values)


def _parse(content: Content) -> Parts:
    # Self-attention has entries too, which are empty.
    values = {key: value for key, value in content.values.items() if not (isinstance(value, Mapping) and not value)}
    processors = {key: value for key, value in values.items() if isinstance(key, str) and _PROCESSOR.search(key)}
    weights = flat_tensors(renamed(processors, lambda key: "unet." + _PROCESSOR.sub(r".to_\1.", unwrapped(key))))
    left_out = tuple(str(key) for key in values if key not in processors)
    return Parts(weights=weights, left_out=left_out, provenance=provenance_in(content))


def _render(concept: Concept, options: WriteOptions) -> Rendered:
    """Write the weights twice: as `.safetensors`, and as the `.bin` that diffusers' loader needs.

    The loader expects an entry for every attention layer, and safetensors cannot hold the empty ones.
    """
    weights, left_out = whole_weights(concept, options.base)
    processors = {}
    for name, weight in weights.items():
        layer, _, part = name.removeprefix("unet.").rpartition(".attn2.to_")
        kind, _, rest = part.partition(".")
        processors[f"{layer}.attn2.processor.to_{kind}_custom_diffusion.{rest}"] = weight
    changed = {key.split(".to_")[0] for key in processors}
    attention = float32_base(options.base).unet.attn_processors
    empty: dict[str, Any] = {name: {} for name in attention if name not in changed}
    files = {
        f"{WEIGHTS_STEM}.safetensors": safetensors_bytes(processors, header_of(concept)),
        f"{WEIGHTS_STEM}.bin": to_pickle(processors | empty),
        **token_files(concept),
    }
    return Rendered(files=files, notes=left_out_note(left_out))


DIFFUSERS = Format(
    name="diffusers",
    title="folder of diffusers' Custom Diffusion example",
    layout="`pytorch_custom_diffusion_weights.{bin,safetensors}` (full weights), a file for each token",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    is_folder=True,
    needs_base=True,
    keeps_changes="rounded",
    keeps_provenance=True,
    usage='pipeline.unet.load_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.bin", '
    "_pipeline=pipeline)  # without _pipeline, diffusers 0.29 to 0.42 read the file and change nothing",
)
