"""The scale of guidance as an input of the denoiser, for models distilled with it (latent consistency models).

Such a denoiser has `time_cond_proj_dim` in its configuration and returns in one evaluation what others need two for.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["guidance_embedding"]

SCALED_BY = 1000.0
"""Factor on the scale before its sinusoids, so that scales of about 10 cover the range of timesteps."""
LONGEST = 10_000.0
"""Ratio of the longest wavelength to the shortest."""


def guidance_embedding(guidance: float, width: int) -> Float[Tensor, "1 {width}"]:
    """Return the sinusoids of a guidance scale (Luo et al. 2023, Latent Consistency Models, App. G; as in diffusers).

    Args:
        guidance: The scale as users give it. What is embedded is w = scale - 1, in which classifier-free guidance is
            (1 + w) times the conditional prediction minus w times the unconditional one.
        width: The denoiser's `time_cond_proj_dim`. Of an odd width the last number is 0.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(LONGEST) / (half - 1)))
    angles = (guidance - 1) * SCALED_BY * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]
