"""Further inputs of some denoisers: the scale of guidance, and the sizes of pictures (SDXL).

A denoiser that was distilled with guidance (latent consistency models) has `time_cond_proj_dim` in its configuration
and returns in one evaluation what others need two for.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["guidance_embedding", "picture_sizes"]

SCALED_BY = 1000.0
"""Factor on the scale before its sinusoids, so that scales of about 10 cover the range of timesteps."""
LONGEST = 10_000.0
"""Ratio of the longest wavelength to the shortest."""


def guidance_embedding(guidance: float, width: int) -> Float[Tensor, "1 {width}"]:
    """Return the sinusoids of a guidance scale (Luo et al. 2023, Latent Consistency Models, App. G; as in diffusers).

    Args:
        guidance: The scale as users give it. What is embedded is w = scale - 1, in which classifier-free guidance is
            (1 + w) times the conditional prediction minus w times the unconditional one.
        width: The denoiser's `time_cond_proj_dim`. If it is odd, the last number is 0.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(LONGEST) / (half - 1)))
    angles = (guidance - 1) * SCALED_BY * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


def picture_sizes(height_px: int, width_px: int, device: torch.device) -> Float[Tensor, "1 6"]:
    """Return what SDXL is told of a picture: its size, where it was cropped (nowhere), and its size again.

    The numbers are filled in on the device, so that no step waits for a copy.
    """
    sizes = torch.zeros(1, 6, device=device)
    sizes[:, 0::4] = height_px
    sizes[:, 1::4] = width_px
    return sizes
