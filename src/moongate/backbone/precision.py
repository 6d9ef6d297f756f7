"""Which precision, layout and attention suit the device of a model; measured by `benchmarks/one_concept.py`.

On a CPU with matrix units for bfloat16 (Intel AMX), products in bfloat16 take a third of their time in float32. CPUs
that have only vector instructions for it take half the time (AMD Zen 5), or more time than in float32; on these a few
products are timed.
"""

import re
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["faster_attention", "faster_layout", "set_precision", "usual_dtype"]

SMALL_LATENTS = 32 * 32
"""Most latent cells of a model for which the scores of self-attention are kept; beyond, they would fill the memory."""

NARROW = 640
"""Most channels of a denoiser whose convolutions are faster with channels last."""

WORTHWHILE = 0.7
"""Largest time of a product in bfloat16, as a share of that in float32, that makes bfloat16 the usual precision."""


def usual_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """Return the precision of the frozen weights that commands use unless the user names one.

    Args:
        device: Where the model computes; None is CUDA if there is any.
    """
    is_cpu = not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
    return torch.bfloat16 if is_cpu and _gains_by_bfloat16() else torch.float32


def set_precision(name: str, device: str | torch.device | None = None) -> torch.dtype:
    """Let GPUs in this process round products in float32 to TF32, unless float32 is named; return the precision.

    Args:
        name: `auto`, which is the usual precision of the device, or `float32`, `bfloat16` or `float16`.
        device: Where the model computes; None is CUDA if there is any.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "float32"
    dtype: torch.dtype = usual_dtype(device) if name == "auto" else getattr(torch, name)
    return dtype


def faster_layout(denoiser: Any) -> Any:
    """Let the convolutions of a narrow denoiser keep channels last on a CPU that has only AVX2; return the denoiser.

    There a step of pocket takes a tenth less time; convolutions of 1280 channels on few cells take a third more.
    """
    is_plain_cpu = denoiser.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    if is_plain_cpu and denoiser.dtype == torch.float32 and max(denoiser.config.block_out_channels) <= NARROW:
        return denoiser.to(memory_format=torch.channels_last)
    return denoiser


def faster_attention(denoiser: Any, text_encoders: Iterable[Any]) -> None:
    """Let the attention of a model multiply matrices in place of torch's fused operation, in bfloat16 on a CPU.

    There the backward pass of the fused one takes three times as long as in float32; products and a softmax take half
    as long as either.
    """
    if denoiser.device.type != "cpu" or denoiser.dtype != torch.bfloat16:
        return
    from diffusers.models.attention_processor import AttnProcessor

    cells = int(denoiser.config.sample_size) ** 2
    for name, module in denoiser.named_modules():
        if name.endswith(".attn2") or (name.endswith(".attn1") and cells <= SMALL_LATENTS):
            module.set_processor(AttnProcessor())
    for encoder in text_encoders:
        encoder.set_attn_implementation("eager")


@cache
def _gains_by_bfloat16() -> bool:
    """Say whether this CPU multiplies faster in bfloat16. One process always gives the same answer."""
    listed = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\b(?:amx|avx512)_bf16\b", listed.read_text())) if listed.exists() else set()
    if flags != {"avx512_bf16"}:
        return "amx_bf16" in flags
    return _product_s(torch.bfloat16) < WORTHWHILE * _product_s(torch.float32)


def _product_s(dtype: torch.dtype) -> float:
    """Return the seconds of a product of matrices as large as a layer's, the least of several."""
    pixels, weight = torch.ones(512, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        pixels @ weight
        times.append(time.perf_counter() - began)
    return min(times)
