"""Which precision, layout and attention suit the processor of a model; measured by `benchmarks/one_concept.py`.

On a CPU with matrix units for bfloat16 (Intel AMX), products in bfloat16 take a third of their time in float32. Other
CPUs list instructions for bfloat16 too and are slower with them than in float32.
"""

import re
from pathlib import Path
from typing import Any

import torch

__all__ = ["faster_attention", "faster_layout", "precision_of", "usual_dtype"]

SMALL_LATENTS = 32 * 32
"""Most latent cells of a model for which the scores of self-attention are kept; beyond, they would fill the memory."""

NARROW = 640
"""Most channels of a denoiser whose convolutions are faster with channels last."""


def usual_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """Return the precision of the frozen weights that commands use unless the user names one.

    Args:
        device: Where the model computes; None is CUDA if there is any.
    """
    is_cpu = not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
    return torch.bfloat16 if is_cpu and _has_matrix_units() else torch.float32


def precision_of(name: str, device: str | torch.device | None = None) -> torch.dtype:
    """Return the precision of a name, and let a GPU round products in float32 to TF32 unless float32 was named.

    Args:
        name: `auto`, which is the usual precision of the device, or `float32`, `bfloat16` or `float16`.
        device: Where the model computes; None is CUDA if there is any.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "float32"
    dtype: torch.dtype = usual_dtype(device) if name == "auto" else getattr(torch, name)
    return dtype


def faster_layout(denoiser: Any) -> Any:
    """Return a denoiser, whose convolutions now keep channels last on a CPU with AVX2 alone, if it is a narrow one.

    There a step of pocket takes a tenth less time; convolutions of 1280 channels on few cells take a third more.
    """
    is_plain_cpu = denoiser.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    if is_plain_cpu and denoiser.dtype == torch.float32 and max(denoiser.config.block_out_channels) <= NARROW:
        return denoiser.to(memory_format=torch.channels_last)
    return denoiser


def faster_attention(denoiser: Any) -> Any:
    """Return a denoiser, which in bfloat16 on a CPU now multiplies matrices for its attention.

    The backward pass of torch's fused attention in bfloat16 takes there three times as long as in float32; products
    and a softmax take half as long as either.
    """
    if denoiser.device.type != "cpu" or denoiser.dtype != torch.bfloat16:
        return denoiser
    from diffusers.models.attention_processor import AttnProcessor

    cells = int(denoiser.config.sample_size) ** 2
    for name, module in denoiser.named_modules():
        if name.endswith(".attn2") or (name.endswith(".attn1") and cells <= SMALL_LATENTS):
            module.set_processor(AttnProcessor())
    return denoiser


def _has_matrix_units() -> bool:
    listed = Path("/proc/cpuinfo")
    return listed.exists() and re.search(r"\bamx_bf16\b", listed.read_text()) is not None
