"""Compute the memory and the time of training Stable Diffusion on a GPU, without a GPU and without weights.

    python benchmarks/memory.py [--teraflops 12] [--model "SDXL, 1024 px"] [--peak]

Memory is what `moongate train` computes before it begins (`moongate.training.memory`), for models of full size whose
weights have no values. It does not count what kernels take and what CUDA's allocator wastes, about 1 GB.
Minutes are those of 250 steps at a sustained speed, by default about half of what an RTX 3060 does in half precision:
the operations of the denoiser's forward and backward pass are counted on PyTorch's meta device.

With --peak, one step of Stable Diffusion 1.5 with random weights is computed on the CPU in float32, with and without
--recompute, each in a separate process (on Linux). The computed memory is compared with the peak of the live tensors
and with that of the process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from full_size import AUTOENCODER, SCHEDULE, TEXT, UNET, full_size_backbone, tokenizer
from processes import in_child, memory_now, memory_peak
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from moongate.backbone import Backbone
from moongate.data import Subject
from moongate.training import Plan, TrainOptions, train
from moongate.training.memory import Setting, _Live, needed
from moongate.training.method import METHODS

SDXL = {
    **UNET,
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_TEXT = {
    **TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
"""The second text encoder of SDXL."""
STEPS = 250
GB = 1e9
MODELS = {"SD 1.5, 512 px": UNET, "SDXL, 1024 px": SDXL}


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the training is run."""

    options: str
    pictures: int
    """Target and regularization pictures of a step."""
    dtype: torch.dtype
    recompute: bool = False
    optimizer: str = "adamw"
    method: str = "custom-diffusion"
    scale: float = 1.0
    """Side of the pictures, relative to the model's own."""


RUNS = (
    Run(options="(none)", pictures=8, dtype=torch.float32),
    Run(options="--dtype bfloat16", pictures=8, dtype=torch.bfloat16),
    Run(options="--dtype bfloat16 --recompute", pictures=8, dtype=torch.bfloat16, recompute=True),
    Run(options="--dtype bfloat16 --recompute --batch 1", pictures=2, dtype=torch.bfloat16, recompute=True),
    Run(
        options="the same with --optimizer adamw8bit",
        pictures=2,
        dtype=torch.bfloat16,
        recompute=True,
        optimizer="adamw8bit",
    ),
    Run(
        options="--method textual-inversion at half the side",
        pictures=2,
        dtype=torch.bfloat16,
        recompute=True,
        method="textual-inversion",
        scale=0.5,
    ),
)


def placed(kind: Any, *arguments: Any, **named: Any) -> nn.Module:
    """Return a network whose weights have a place in memory that nothing is written to, so that they take none."""
    with torch.device("meta"):
        network: nn.Module = kind(*arguments, **named)
    return network.to_empty(device="cpu")


def backbone_of(unet: Mapping[str, Any]) -> Backbone:
    """Return the model of a denoiser's configuration, without values in its weights."""
    parts: dict[str, Any] = {
        "unet": placed(UNet2DConditionModel, **unet),
        "vae": placed(AutoencoderKL, **AUTOENCODER),
        "text_encoder": placed(CLIPTextModel, CLIPTextConfig(**TEXT)),
        "tokenizer": tokenizer(),
        "scheduler": DDPMScheduler(**SCHEDULE, clip_sample=False),
    }
    if "addition_embed_type" in unet:
        second = placed(CLIPTextModelWithProjection, CLIPTextConfig(**SDXL_TEXT))
        pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer())
    else:
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **unused)
    return Backbone(name="full-size", pipeline=pipeline)


def planned(backbone: Backbone, method: str) -> Plan:
    """Return the training of one subject, whose regularization pictures do not matter."""
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    subject = Subject(pictures=(picture,), captions=("photo of a <bear> bear",), category="bear", token="<bear>")
    return Plan.of(backbone, [subject], None, METHODS[method], options=TrainOptions(batch=4))


def memory(plan: Plan, run: Run) -> int:
    """Return the bytes that a run takes, by the same computation as `moongate train`."""
    setting = Setting(
        targets_per_step=run.pictures // 2 if plan.method.prior_weight else run.pictures,
        pictures_per_step=run.pictures,
        resolution_px=int(plan.resolution_px * run.scale),
        dtype=run.dtype,
        optimizer=run.optimizer,
        recompute=run.recompute,
    )
    return needed(plan, setting).tensors


def operations(unet: Mapping[str, Any], run: Run) -> float:
    """Return the floating-point operations of the denoiser in a step."""
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**unet).requires_grad_(False)
    for name, weight in denoiser.named_parameters():
        weight.requires_grad_(
            run.method != "textual-inversion" and name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        )
    if run.recompute:
        denoiser.enable_gradient_checkpointing()
    side, count = int(unet["sample_size"] * run.scale), run.pictures
    latents = torch.empty(count, 4, side, side, device="meta")
    text = torch.empty(count, 77, unet["cross_attention_dim"], device="meta", requires_grad=True)
    added = {"text_embeds": torch.empty(count, 1280, device="meta"), "time_ids": torch.empty(count, 6, device="meta")}
    timesteps = torch.zeros(count, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        denoiser(latents, timesteps, text, added_cond_kwargs=added).sample.square().mean().backward()
    return float(counter.get_total_flops())


def compare_peaks(side_px: int) -> None:
    """Print what a step adds to the model at its peak, and what was computed, with and without `--recompute`."""
    for recompute in (False, True):
        computed, tensors, real = (number / GB for number in in_child(peak, side_px, recompute))
        name = "--recompute" if recompute else "(none)"
        print(f"{name:12s}computed {computed:.2f} GB, tensors {tensors:.2f} GB, process {real:.2f} GB", flush=True)


def peak(side_px: int, recompute: bool) -> tuple[int, int, int]:
    """Take one step of two pictures; return the bytes that it adds: as computed, of tensors, and of the process."""
    torch.set_num_threads(1)
    backbone = full_size_backbone(side_px=side_px)
    picture = np.zeros((side_px, side_px, 3), dtype=np.uint8)
    subject = Subject(pictures=(picture,), captions=("photo of a <bear> bear",), category="bear", token="<bear>")
    method = METHODS["custom-diffusion-without-regularization"]
    options = TrainOptions(steps=1, batch=2, recompute=recompute)
    need = needed(Plan.of(backbone, [subject], [], method, options=options))
    modules = (backbone.unet, backbone.vae, backbone.text_encoder)
    model = sum(weight.nbytes for module in modules for weight in module.parameters())
    held = memory_now()
    with _Live() as live:
        train(backbone, [subject], [], method, options=options)
    return need.tensors - model, live.peak, memory_peak() - held


def main(*, teraflops: float = 12.0, model: str | None = None, peak: bool = False, side_px: int = 256) -> None:
    """Derive and print.

    Args:
        teraflops: Sustained speed of the GPU in half precision, in 10^12 floating-point operations per second. In
            float32 half of it is assumed.
        model: One of the models; both by default.
        peak: Compare what is computed with the real peak of a step on the CPU, and do nothing else.
        side_px: Side of the pictures of that step.
    """
    if peak:
        compare_peaks(side_px)
        return
    print(f"{'':18s}{'options':46s}{'GB':>6}{'minutes':>9}")
    for name, unet in MODELS.items():
        if model not in (None, name):
            continue
        backbone = backbone_of(unet)
        plans = {method: planned(backbone, method) for method in {run.method for run in RUNS}}
        counted: dict[Any, float] = {}
        for run in RUNS:
            key = replace(run, options="", dtype=torch.float32, optimizer="")
            if key not in counted:
                counted[key] = operations(unet, run)
            speed = teraflops * (0.5 if run.dtype == torch.float32 else 1)
            minutes = STEPS * counted[key] / (speed * 1e12) / 60
            print(f"{name:18s}{run.options:46s}{memory(plans[run.method], run) / GB:6.1f}{minutes:9.0f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
