"""Files that Moongate writes, loaded by plain diffusers: the pictures are Moongate's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file

from making import make_concept
from moongate import interop, pocket
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.interop import WriteOptions
from moongate.sampling import SampleOptions, sample

STEPS = 4
GUIDANCE = 6.0
PROMPT = "photo of a <bear> bear"
Load = Callable[[Any, Path, Concept], None]


def load_embedding(pipeline: Any, folder: Path, name: str, **options: object) -> None:
    """Load a token's file, into both text encoders where there are two."""
    if not hasattr(pipeline, "text_encoder_2"):
        pipeline.load_textual_inversion(folder, weight_name=name, **options)
        return
    rows = load_file(folder / name)
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        parts = {part: getattr(pipeline, part + end) for part in ("text_encoder", "tokenizer")}
        pipeline.load_textual_inversion(rows[key], token="<bear>", **parts)


def lora(pipeline: Any, folder: Path, _concept: Concept) -> None:
    pipeline.load_lora_weights(folder)
    load_embedding(pipeline, folder, "<bear>.safetensors")


def kohya(pipeline: Any, folder: Path, _concept: Concept) -> None:
    pipeline.load_lora_weights(folder, weight_name=f"{folder.name}.safetensors")
    load_embedding(pipeline, folder, "bear.safetensors", token="<bear>")


def diffusers_bin(pipeline: Any, folder: Path, _concept: Concept) -> None:
    """By diffusers' own loader, which does nothing without `_pipeline`."""
    pipeline.unet.load_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.bin", _pipeline=pipeline)
    load_embedding(pipeline, folder, "<bear>.safetensors")


def diffusers_safetensors(pipeline: Any, folder: Path, _concept: Concept) -> None:
    """By the documented keys, because diffusers' loader cannot read this file."""
    content = load_file(folder / "pytorch_custom_diffusion_weights.safetensors")
    for name in ("to_k", "to_v"):
        for key in (key for key in content if f"{name}_custom" in key):
            attention = pipeline.unet.get_submodule(key.split(".processor")[0])
            getattr(attention, name).weight.data = content[key]
    load_embedding(pipeline, folder, "<bear>.safetensors")


def adobe(pipeline: Any, path: Path, _concept: Concept) -> None:
    """As the paper's code loads its file: each parameter by name, each token's row into the table."""
    content = torch.load(path, weights_only=True)
    for name, weight in pipeline.unet.named_parameters():
        if name in content["unet"]:
            weight.data.copy_(content["unet"][name])
    add_rows(pipeline, content["modifier_token"])


def compvis(pipeline: Any, path: Path, concept: Concept) -> None:
    """By the published numbering of blocks, of which these models have two in a level."""
    state = torch.load(path, weights_only=True)["state_dict"]
    add_rows(pipeline, dict(zip(concept.tokens, state.pop("embed"), strict=True)))
    for key, content in state.items():
        side, number, third, rest = key.removeprefix("model.diffusion_model.").split(".", 3)
        if side == "middle_block":
            block, rest = "mid_block.attentions.0", f"{third}.{rest}"
        else:
            level, attention = divmod(int(number) - (side == "input_blocks"), 2)
            block = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}.attentions.{attention}"
        weight = pipeline.unet.get_parameter(f"{block}.{rest}")
        weight.data = content


def add_rows(pipeline: Any, tokens: dict[str, Any]) -> None:
    for token, content in tokens.items():
        rows = content if isinstance(content, list) else [content]
        for row, end in zip(rows, ("", "_2"), strict=False):
            tokenizer, encoder = getattr(pipeline, f"tokenizer{end}"), getattr(pipeline, f"text_encoder{end}")
            tokenizer.add_tokens(token)
            encoder.resize_token_embeddings(len(tokenizer))
            encoder.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(token)] = row


LOADERS: dict[str, tuple[str, Load]] = {
    "lora": ("lora", lora),
    "kohya": ("kohya", kohya),
    "diffusers, .bin": ("diffusers", diffusers_bin),
    "diffusers, .safetensors": ("diffusers", diffusers_safetensors),
    "adobe": ("adobe", adobe),
    "compvis": ("compvis", compvis),
}


def plain(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)  # as for pixels
    if hasattr(pipeline, "text_encoder_2"):  # whose pooled vector it would take at a new token, the highest id
        for module in pipeline.text_encoder_2.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = pipeline.tokenizer_2.eos_token_id
    return pipeline


def drawn_by_diffusers(pipeline: Any, backbone: Backbone, prompt: str) -> np.ndarray:
    channels, side = backbone.unet.config.in_channels, backbone.unet.config.sample_size
    latents = torch.randn(channels, side, side, generator=torch.Generator().manual_seed(3))[None]
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": latents, "output_type": "np"}
    return (pipeline(prompt, **options).images[0] * 255).round().astype(int)


def drawn_by_moongate(backbone: Backbone, prompt: str) -> np.ndarray:
    options = SampleOptions(steps=STEPS, scheduler="ddim", guidance=GUIDANCE)
    (picture,) = sample(backbone, [prompt], seeds=[3], options=options)
    return picture.image.astype(int)


def assert_same_pictures(backbone: Backbone, folder: Path, concept: Concept, out: Path, how: str) -> None:
    name, load = LOADERS[how]
    interop.write(concept, out, to=name, options=WriteOptions(base=backbone))
    with concept.applied(backbone):
        ours = drawn_by_moongate(backbone, PROMPT)
    pipeline = plain(folder)
    base = drawn_by_diffusers(pipeline, backbone, "photo of a bear")
    load(pipeline, out, concept)
    theirs = drawn_by_diffusers(pipeline, backbone, PROMPT)
    assert abs(ours - theirs).max() <= 1
    assert abs(theirs - base).mean() > 1


@pytest.mark.parametrize("how", LOADERS)
def test_plain_diffusers_draws_the_same_pictures(each: Backbone, family_folder: Path, tmp_path: Path, how: str) -> None:
    if how.startswith("compvis") and len(each.token_widths) > 1:
        return  # has no such files
    assert_same_pictures(each, family_folder, make_concept(each), tmp_path / "out", how)


@pytest.mark.parametrize("how", LOADERS)
def test_plain_diffusers_draws_the_same_pictures_with_pocket(tmp_path: Path, how: str) -> None:
    backbone = Backbone.load("pocket", device="cpu")
    assert_same_pictures(backbone, pocket.weights_folder(), make_concept(backbone), tmp_path / "out", how)


def test_diffusers_own_loader_still_does_nothing_as_documented(
    tiny: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    """When this fails, docs/formats.md and the model card can drop `_pipeline`."""
    interop.write(make_concept(tiny), tmp_path / "out", to="diffusers", options=WriteOptions(base=tiny))
    pipeline = plain(tiny_folder)
    before = drawn_by_diffusers(pipeline, tiny, "a bear")
    pipeline.unet.load_attn_procs(tmp_path / "out", weight_name="pytorch_custom_diffusion_weights.bin")
    assert (drawn_by_diffusers(pipeline, tiny, "a bear") == before).all()
