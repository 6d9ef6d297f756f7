"""The formats by name, and the table of the documentation that is made of them.

`python -m moongate.interop` writes that table into docs/formats.md.
"""

from collections.abc import Mapping

from moongate.concept import FORMAT, Concept
from moongate.errors import OptionError
from moongate.interop import full_weights, lora, tokens
from moongate.interop.content import Content
from moongate.interop.format import Format, Parts, Rendered, WriteOptions

__all__ = ["FORMATS", "named_format", "table"]


def _is_ours(content: Content) -> bool:
    return content.header.get("format") == FORMAT


def _parse_ours(content: Content) -> Parts:
    concept = Concept.load(content.path)
    rows = {token: concept.rows(token) for token in concept.tokens}
    return Parts(changes=concept.deltas, tokens=rows, provenance=concept.provenance())


def _render_ours(concept: Concept, _options: WriteOptions) -> Rendered:
    return Rendered(files={"": concept.file_bytes})


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format(
            name="moongate",
            title="Moongate's own concept file",
            layout="one `.safetensors`; changes dense or as products, tokens, provenance",
            recognizes=_is_ours,
            parse=_parse_ours,
            render=_render_ours,
            keeps_changes="exactly",
            keeps_provenance=True,
        ),
        Format(
            name="adobe",
            title="`delta.bin` of the paper's diffusers code",
            layout="pickle: `unet` (full weights), `modifier_token` (lists for SDXL), perhaps `text_encoder`",
            recognizes=full_weights.is_adobe,
            parse=full_weights.parse_adobe,
            render=full_weights.render_adobe,
            needs_base=True,
            keeps_changes="rounded",
        ),
        Format(
            name="adobe-compressed",
            title="compressed `delta.bin`",
            layout="pickle: `unet` with factors `u`, `v` of each change, `modifier_token`",
            recognizes=full_weights.is_adobe_compressed,
            parse=full_weights.parse_adobe,
            render=full_weights.render_adobe_compressed,
            keeps_changes="products",
        ),
        Format(
            name="compvis",
            title="`delta_epoch=….ckpt` of the paper's first code",
            layout="pickle: `state_dict` with full weights in CompVis' names and `embed`, rows without names",
            recognizes=full_weights.is_compvis,
            parse=full_weights.parse_compvis,
            render=full_weights.render_compvis,
            needs_base=True,
            keeps_changes="rounded",
            keeps_names=False,
        ),
        Format(
            name="compvis-compressed",
            title="compressed `delta_epoch=….ckpt`",
            layout="pickle: `state_dict` with factors `u`, `v` in CompVis' names and `embed`",
            recognizes=full_weights.is_compvis_compressed,
            parse=full_weights.parse_compvis,
            render=full_weights.render_compvis_compressed,
            keeps_changes="products",
            keeps_names=False,
        ),
        Format(
            name="diffusers",
            title="folder of diffusers' Custom Diffusion example",
            layout="`pytorch_custom_diffusion_weights.{bin,safetensors}` (full weights), a file for each token",
            recognizes=full_weights.is_diffusers,
            parse=full_weights.parse_diffusers,
            render=full_weights.render_diffusers,
            is_folder=True,
            needs_base=True,
            keeps_changes="rounded",
            keeps_provenance=True,
            usage='pipeline.unet.load_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.bin", '
            "_pipeline=pipeline)  # without _pipeline, diffusers 0.29 to 0.42 read the file and change nothing",
        ),
        Format(
            name="lora",
            title="LoRA in the keys of diffusers and PEFT",
            layout="folder: `pytorch_lora_weights.safetensors`, a file for each token",
            recognizes=lora.is_lora,
            parse=lora.parse_lora,
            render=lora.render_lora,
            is_folder=True,
            keeps_changes="products",
            keeps_provenance=True,
            usage="pipeline.load_lora_weights(folder)",
        ),
        Format(
            name="kohya",
            title="LoRA in kohya's keys, for ComfyUI and A1111",
            layout="folder: the LoRA, an embedding for each token",
            recognizes=lora.is_kohya,
            parse=lora.parse_lora,
            render=lora.render_kohya,
            is_folder=True,
            keeps_changes="products",
            keeps_provenance=True,
        ),
        Format(
            name="embedding",
            title="textual-inversion embeddings (A1111, ComfyUI, diffusers)",
            layout="folder: for each token `emb_params`, or `clip_l` and `clip_g`; `.pt` is read too",
            recognizes=tokens.is_embedding,
            parse=tokens.parse_embedding,
            render=tokens.render_embedding,
            is_folder=True,
            keeps_changes="no",
        ),
    )
}

WEIGHTS_ARE = {
    "exactly": "the same bits",
    "products": "products: the same bits; dense changes are cut to `--rank`, and the error is said",
    "rounded": "dense, each number within float32 rounding of the full weight",
    "no": "none",
}


def named_format(name: str) -> Format:
    """Return a format. Raises OptionError when there is none of that name."""
    if name not in FORMATS:
        raise OptionError(f"There is no format {name!r}. Known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def table() -> str:
    """Return what each format is and what it keeps, as a table in Markdown."""
    head = ("`--to`", "what it is", "what it holds", "base", "changes after reading it again", "tokens", "the rest")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for each in FORMATS.values():
        names = "the same bits" if each.keeps_names else "rows the same bits, names lost"
        rest = "kept" if each.keeps_provenance else "lost"
        base = "needed" if each.needs_base else "not needed"
        cells = (f"`{each.name}`", each.title, each.layout, base, WEIGHTS_ARE[each.keeps_changes], names, rest)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
