"""Write a tiny model as a single file in the original layout, from the published names of its layers.

Stable Diffusion 1 keeps CLIP's own names under `cond_stage_model.transformer`, Stable Diffusion 2 OpenCLIP's under
`cond_stage_model.model`, SDXL one of each under `conditioner.embedders`.
"""

import re
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]
RESNET = (
    (r"norm1\.", "in_layers.0."),
    (r"conv1\.", "in_layers.2."),
    (r"time_emb_proj\.", "emb_layers.1."),
    (r"norm2\.", "out_layers.0."),
    (r"conv2\.", "out_layers.3."),
    (r"conv_shortcut\.", "skip_connection."),
)
UNET_ENDS = (
    (r"time_embedding\.linear_1", "time_embed.0"),
    (r"time_embedding\.linear_2", "time_embed.2"),
    (r"add_embedding\.linear_1", "label_emb.0.0"),
    (r"add_embedding\.linear_2", "label_emb.0.2"),
    (r"conv_in", "input_blocks.0.0"),
    (r"conv_norm_out", "out.0"),
    (r"conv_out", "out.2"),
)
VAE_NAMES = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_(\w)\.", r"mid.attn_1.\1."),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)
OPEN_CLIP = (
    (r"^embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def unet_name(name: str, layers: int) -> str:
    """Return a name of the denoiser, whose blocks are numbered through in the original layout."""
    if not name.startswith(("down_blocks", "mid_block", "up_blocks")):
        return renamed(name, UNET_ENDS)
    if name.startswith("mid_block"):
        kind, index, rest = re.match(r"mid_block\.(\w+)\.(\d)\.(.*)", name).groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}." + (renamed(rest, RESNET) if kind == "resnets" else rest)
    side, block, kind, index, rest = re.match(r"(\w+)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name).groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.2.{rest}"
    place = f"input_blocks.{first + 1 + int(index)}" if side == "down" else f"output_blocks.{first + int(index)}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{renamed(rest, RESNET)}"


def vae_name(name: str) -> str:
    name = renamed(name, VAE_NAMES)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    up = {"resnets": "block", "upsamplers": "upsample"}

    def turned(match: re.Match[str]) -> str:  # the original counts up from the smallest level
        rest = f".{match[3]}" if match[2] == "resnets" else ""
        return f"up.{3 - int(match[1])}.{up[match[2]]}{rest}"

    return re.sub(r"up_blocks\.(\d)\.(\w+)\.(\d)", turned, name)


def open_clip(weights: Weights) -> Weights:
    """Rename a text model as OpenCLIP does, and put queries, keys and values into one matrix."""
    original: Weights = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            original["text_projection"] = tensor.T.contiguous()
        elif ".q_proj." in name:
            parts = [weights[key.replace("q_proj", kind)] for key in [*weights] if key.endswith(name)
                     for kind in ("q_proj", "k_proj", "v_proj")]  # fmt: skip
            place, kind = renamed(name, OPEN_CLIP).split(".self_attn.q_proj.")
            original[f"{place}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", name):
            original[renamed(name, OPEN_CLIP)] = tensor
    return original


def original_weights(folder: Path) -> Weights:
    """Return the weights of a diffusers folder under their original names."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    layers = pipeline.unet.config.layers_per_block
    original = {f"model.diffusion_model.{unet_name(n, layers)}": t for n, t in pipeline.unet.state_dict().items()}
    for name, tensor in pipeline.vae.state_dict().items():
        is_attention = "attentions" in name and tensor.ndim == 2  # a convolution over single pixels there
        original[f"first_stage_model.{vae_name(name)}"] = tensor[:, :, None, None] if is_attention else tensor
    text = pipeline.text_encoder.state_dict()
    if hasattr(pipeline, "text_encoder_2"):
        original |= {f"conditioner.embedders.0.transformer.text_model.{name}": t for name, t in text.items()}
        second = open_clip(pipeline.text_encoder_2.state_dict())
        original |= {f"conditioner.embedders.1.model.{name}": t for name, t in second.items()}
    elif pipeline.unet.config.use_linear_projection:
        second = open_clip(text) | {"text_projection": torch.eye(text["final_layer_norm.weight"].shape[0])}
        original |= {f"cond_stage_model.model.{name}": t for name, t in second.items()}
    else:
        original |= {f"cond_stage_model.transformer.text_model.{name}": t for name, t in text.items()}
    return {name: tensor.contiguous() for name, tensor in original.items()}


def write_single_file(folder: Path, file: Path) -> Path:
    """Write a diffusers folder's weights into one file, as .safetensors or, by its suffix, pickled."""
    weights = original_weights(folder)
    if file.suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save({"state_dict": weights}, file)
    return file


def write_configuration(folder: Path, target: Path) -> Path:
    """Copy everything of a diffusers folder but its weights."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target
