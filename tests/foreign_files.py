"""Write concepts as other programs do, from the documented layouts, with torch, safetensors and pickle alone.

Nothing of Moongate is used, so that its reader is not tested by its writer. The names are those of a denoiser with
two levels of one block each, as the tiny models have.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
COMPVIS = {
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
}
ENDS = ("attn2.to_k", "attn2.to_v")


def changes(before: Tensors, *, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of rank 2 for the keys and values among a denoiser's parameters, by name without ".weight"."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module.endswith(ENDS):
            up, down = (
                torch.randn(len(weight), 2, generator=generator),
                torch.randn(2, weight.shape[1], generator=generator),
            )
            factors[module] = 0.01 * up, down
    return factors


def compvis(module: str) -> str:
    for ours, theirs in COMPVIS.items():
        module = module.replace(ours, theirs)
    return f"model.diffusion_model.{module}"


def row(width: int, *, seed: int = 9) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def trained(before: Tensors) -> Tensors:
    """Full weights as training leaves them: no leaves, with gradients asked for."""
    return {
        f"{module}.weight": (before[f"{module}.weight"] + up @ down).requires_grad_() * 1
        for module, (up, down) in changes(before).items()
    }


def adobe(path: Path, before: Tensors, tokens: dict[str, object], **more: object) -> Path:
    torch.save({"unet": trained(before), "modifier_token": tokens, **more}, path)
    return path


def adobe_compressed(path: Path, before: Tensors, tokens: dict[str, object]) -> Path:
    unet = {f"{module}.weight": {"u": up, "v": down} for module, (up, down) in changes(before).items()}
    torch.save({"unet": unet, "modifier_token": tokens}, path)
    return path


def compvis_checkpoint(path: Path, before: Tensors, embed: Tensor | None, *, compressed: bool = False) -> Path:
    state: dict[str, object] = {}
    for module, (up, down) in changes(before).items():
        whole = before[f"{module}.weight"] + up @ down
        state[f"{compvis(module)}.weight"] = {"u": up, "v": down} if compressed else whole
    if embed is not None:
        state["embed"] = embed
    torch.save({"state_dict": state}, path)
    return path


def diffusers_folder(folder: Path, before: Tensors, token: str, vector: Tensor, *, suffix: str) -> Path:
    folder.mkdir()
    weights: dict[str, object] = {}
    for name, weight in trained(before).items():
        layer, _, kind = name.removesuffix(".weight").rpartition(".to_")
        weights[f"{layer}.processor.to_{kind}_custom_diffusion.weight"] = weight.detach()
    if suffix == "safetensors":
        save_file(weights, folder / f"pytorch_custom_diffusion_weights.{suffix}", metadata={"format": "pt"})
        save_file({token: vector.clone()}, folder / f"{token}.{suffix}")
        return folder
    empty = {name.replace("attn2.to_k.weight", "attn1.processor"): {} for name in trained(before) if "to_k" in name}
    torch.save({**weights, **empty}, folder / f"pytorch_custom_diffusion_weights.{suffix}")
    table = torch.cat([torch.zeros(500, len(vector)), vector[None]])
    torch.save({token: table[-1]}, folder / f"{token}.{suffix}")  # a view, which brings its whole table along
    return folder


def lora(path: Path, before: Tensors, *, style: str, alpha: float | None = None, **others: Tensor) -> Path:
    """A LoRA whose product with its scale is the change; `others` are entries beside, written as they are."""
    tensors: Tensors = {}
    for module, (up, down) in changes(before).items():
        scale = 1.0 if alpha is None else alpha / 2
        if style == "peft":
            names = f"unet.{module}.lora_A.weight", f"unet.{module}.lora_B.weight"
        elif style == "old":
            names = tuple(
                f"unet.{module.replace('attn2.', 'attn2.processor.')}_lora.{end}.weight" for end in ("down", "up")
            )
        else:
            key = compvis(module).removeprefix("model.diffusion_model.") if style == "kohya-compvis" else module
            key = "lora_unet_" + key.replace(".", "_")
            names = f"{key}.lora_down.weight", f"{key}.lora_up.weight"
            if alpha is not None:
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
        tensors |= {names[0]: down, names[1]: up / scale}
    save_file(tensors | {key: tensor.clone() for key, tensor in others.items()}, path)
    return path


def a1111(path: Path, vectors: Tensor, *, name: str = "bear") -> Path:
    facts = {
        "string_to_token": {"*": 265},
        "name": name,
        "step": 500,
        "sd_checkpoint": "ab12",
        "sd_checkpoint_name": "v1",
    }
    torch.save({**facts, "string_to_param": {"*": vectors.clone().requires_grad_()}}, path)
    return path


class Malice:
    """A pickle of it makes a file when it is opened by anything that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)
