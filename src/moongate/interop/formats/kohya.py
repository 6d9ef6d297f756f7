"""LoRA in kohya's keys, for ComfyUI and A1111: `lora_unet_<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`.

All layers are padded with zeros to one rank, and every alpha is equal to that rank, so that the scale is exactly 1.

The embeddings are files of their own, or inside the LoRA (`bundle_emb.<word>.<field>`, as OneTrainer writes them).
A1111 reads them there. ComfyUI's node for LoRAs passes over them, but the same file is an embedding to it in the folder
of embeddings, with the vectors of all words in a row. Forge passes over them, and refuses a file with more than twelve
keys that it does not know. diffusers refuses every such file.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.files import free_stem
from moongate.interop.adapters import factors_of, padded, read_adapter
from moongate.interop.content import Content
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions, header_of, provenance_in
from moongate.interop.formats.embedding import embedding_files, renamed_note, stems_of
from moongate.interop.layers import KOHYA_PREFIX, USUAL_BLOCKS_PER_LEVEL, blocks_per_level, kohya_name, kv_layer
from moongate.interop.tokens import bundled, bundled_words
from moongate.tensor_files import safetensors_bytes

__all__ = ["KOHYA", "bundled_names"]

SD1_WIDTH, SD2_WIDTH, SDXL_WIDTHS = 768, 1024, (768, 1280)
"""The widths of the text encoders of Stable Diffusion 1, 2 and SDXL."""


def _recognizes(content: Content) -> bool:
    return any(isinstance(key, str) and key.startswith((KOHYA_PREFIX, "lora_te")) for key in content.values)


def _parse(content: Content) -> Parts:
    adapter = read_adapter(content.values)
    words = bundled_words(adapter.bundled)
    provenance = provenance_in(content)
    own = bundled_names(provenance.get("tokens", ()))
    rows = {token: words.rows[f"<{name}>"] for token, name in own.items() if f"<{name}>" in words.rows}
    rows |= {token: row for token, row in words.rows.items() if token.strip("<>") not in own.values()}
    return Parts(
        changes=adapter.changes,
        tokens=rows,
        further=words.further,
        left_out=adapter.left_out + words.left_out,
        notes=words.notes,
        provenance=provenance,
    )


def _render(concept: Concept, options: WriteOptions) -> Rendered:
    """Write the LoRA with an embedding for each token, inside it for one file and else beside it.

    For SDXL the layers have CompVis' names, as kohya's scripts write them.
    """
    factors, notes = factors_of(concept, options.rank)
    per_level = _blocks_per_level(concept, options.base) if _is_sdxl(concept) else None
    factors, rank = padded(factors)
    tensors: dict[str, Tensor] = {}
    for name, change in factors.items():
        module = kohya_name(name, per_level)
        tensors |= {
            f"{module}.lora_down.weight": change.down,
            f"{module}.lora_up.weight": change.up,
            f"{module}.alpha": torch.tensor(float(rank)),
        }
    header = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    header |= header_of(concept) | _family(concept, options)
    if options.one_file:
        for token, name in bundled_names(concept.tokens).items():
            tensors |= bundled(name, concept.rows(token))
        return Rendered(files={"": safetensors_bytes(tensors, header)}, notes=notes)
    lora = safetensors_bytes(tensors, header)
    embeddings = embedding_files(concept)
    return Rendered(
        files={_lora_file(options.name, embeddings): lora, **embeddings}, notes=notes + renamed_note(concept)
    )


def bundled_names(tokens: Iterable[str]) -> dict[str, str]:
    """Return what each token is called inside a LoRA: as its file would be, without dots, where A1111 ends a name."""
    names: dict[str, str] = {}
    for token, name in stems_of(tokens).items():
        names[token] = free_stem(name.replace(".", "-"), names.values())
    return names


def _lora_file(name: str, embeddings: Iterable[str]) -> str:
    """Return the name of the LoRA's file, with "-lora" when an embedding, called by its file name, has that name."""
    taken = [file.removesuffix(".safetensors") for file in embeddings]
    return free_stem(name if free_stem(name, taken) == name else f"{name}-lora", taken) + ".safetensors"


def _family(concept: Concept, options: WriteOptions) -> dict[str, str]:
    """Return the entries of the header that say which family of models a LoRA is for, in kohya's words.

    A1111 takes a LoRA without them for one of SD 1.x, and hides it while a model of another family is loaded. The
    family is that of the base, or else it is recognized by the width of the text features.
    """
    if _is_sdxl(concept):
        name, architecture, is_v2 = "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "False"
    elif _text_width(concept) == SD2_WIDTH:
        predicts_v = options.base is not None and options.base.schedule.config.prediction_type == "v_prediction"
        architecture = "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512"
        name, is_v2 = "sd_v2", "True"
    elif _text_width(concept) == SD1_WIDTH:
        name, architecture, is_v2 = "sd_v1", "stable-diffusion-v1", "False"
    else:
        return {}
    modelspec = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": f"{architecture}/lora"}
    return {"ss_base_model_version": name, "ss_v2": is_v2, **modelspec}


def _is_sdxl(concept: Concept) -> bool:
    return len(concept.token_widths) > 1 or _text_width(concept) == sum(SDXL_WIDTHS)


def _text_width(concept: Concept) -> int | None:
    """Return the width of the text features that the keys and values read; None when the concept changes none."""
    shapes = [change.shape for name, change in concept.deltas.items() if kv_layer(name, USUAL_BLOCKS_PER_LEVEL)]
    shapes = [shape for shape in shapes if len(shape) == 2]
    return shapes[0][1] if shapes else sum(concept.token_widths) or None


def _blocks_per_level(concept: Concept, base: Backbone | None) -> int:
    """Return the number of blocks in a level of the denoiser.

    A concept may change some levels only, so that its names do not show the number. Every published SDXL has three.
    """
    if base is not None:
        layers = base.unet.config.layers_per_block
        return 1 + (layers if isinstance(layers, int) else max(layers))
    if _text_width(concept) == sum(SDXL_WIDTHS):
        return USUAL_BLOCKS_PER_LEVEL
    return blocks_per_level(concept.deltas)


KOHYA = Format(
    name="kohya",
    title="LoRA in kohya's keys, for ComfyUI and A1111",
    layout="folder: the LoRA, an embedding for each token; or one `.safetensors` with the embeddings inside",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    is_folder=True,
    fits_one_file=True,
    keeps_changes="factors",
    keeps_provenance=True,
)
