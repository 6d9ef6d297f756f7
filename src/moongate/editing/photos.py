"""Real photos: bring them to a size that the model draws, and find the latents that would have drawn them.

Two ways find the path of latents from noise to the photo. `ddim_path` runs DDIM backwards without guidance, for Direct
Inversion (Ju et al., ICLR 2024). `noised_path` adds independent noise at every level, for edit-friendly DDPM
(Huberman-Spiegelglas et al., CVPR 2024). An edit puts its source branch back onto the path in every step. Both are for
any scheduler of diffusers: a path is in the scheduler's own scale.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.errors import OptionError, warn
from moongate.sampling import MAX_ENLARGEMENT

__all__ = ["ddim_path", "fitted", "fitted_mask", "noised_path"]

RESIZED_BEYOND = 2.0
"""A photo with more than this multiple of the pixels that the model was trained on, or fewer than its inverse, is
resized to their number: models draw sizes that are far from theirs badly."""


def fitted(backbone: Backbone, picture: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return a photo whose sides the model can draw: resized if far too large or small, then cropped at its center.

    Args:
        backbone: The model.
        picture: The photo. A warning says if it is not used as it is.

    Raises:
        OptionError: The photo is so narrow that the model can draw no such picture.
    """
    height, width = picture.shape[:2]
    resized, cropped = _sizes(backbone, height, width)
    least, most = backbone.resolution_px / MAX_ENLARGEMENT, backbone.resolution_px * MAX_ENLARGEMENT
    if not least <= min(cropped) <= max(cropped) <= most:
        raise OptionError(
            f"The photo has {width} x {height} pixels, and is too narrow: the model would draw {cropped[1]} x "
            f"{cropped[0]}, and its sides are {least:g} to {most:g}. Crop the photo."
        )
    if cropped != (height, width):
        warn(
            f"The photo has {width} x {height} pixels; the model draws sides that are multiples of "
            f"{backbone.latent_scale}. {'Cropped' if resized == (height, width) else 'Resized and cropped'} to "
            f"{cropped[1]} x {cropped[0]}."
        )
    return _cut(picture, resized, cropped)


def fitted_mask(
    backbone: Backbone, mask: UInt8[np.ndarray, "_ _"], *, of: UInt8[np.ndarray, "_ _ 3"]
) -> UInt8[np.ndarray, "_ _"]:
    """Return a mask resized and cropped as `fitted` does with its photo.

    Raises:
        OptionError: The mask has another size than the photo.
    """
    if mask.shape != of.shape[:2]:
        raise OptionError(
            f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels, and the picture {of.shape[1]} x {of.shape[0]}. "
            "Give the mask the size of its picture."
        )
    return _cut(mask, *_sizes(backbone, *mask.shape))


@torch.no_grad()
def ddim_path(
    backbone: Backbone, clean: Float[Tensor, "n c lh lw"], text: Conditioning, *, scheduler: Any
) -> list[Float[Tensor, "n c lh lw"]]:
    """Run DDIM backwards from latents of photos: the path by which they could have been drawn without guidance.

    Args:
        backbone: The model, with the weights of the source branch.
        clean: Latents of the photos.
        text: The conditioning of what they show.
        scheduler: Its timesteps are the path's.

    Returns:
        The latents at each timestep in the order of drawing, then the clean ones, in the scheduler's scale.
    """
    latents, signal, noise, timestep = clean, 1.0, 0.0, torch.zeros_like(scheduler.timesteps[0])
    path = [clean]
    for following in scheduler.timesteps.flip(0):
        predicted = backbone.predict(latents, timestep.expand(len(latents)), text)
        original, direction = _split(backbone, latents, predicted, max(signal, 1e-3), noise)
        factors = _factors(scheduler, following)
        scale = math.hypot(*factors)
        signal, noise = (factor / scale for factor in factors)
        latents, timestep = signal * original + noise * direction, following
        path.append(scale * latents)
    return path[::-1]


def noised_path(
    clean: Float[Tensor, "n c lh lw"], *, scheduler: Any, generators: list[torch.Generator]
) -> list[Float[Tensor, "n c lh lw"]]:
    """Add independent noise to latents of photos at every timestep (edit-friendly DDPM, Eq. 6).

    Args:
        clean: Latents of the photos.
        scheduler: Its timesteps are the path's.
        generators: One for each photo.

    Returns:
        The latents at each timestep in the order of drawing, then the clean ones, in the scheduler's scale.
    """
    path = []
    for timestep in scheduler.timesteps:
        signal, noise = _factors(scheduler, timestep)
        drawn = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in generators])
        path.append(signal * clean + noise * drawn.to(clean))
    return [*path, clean]


def _factors(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """Return what the scheduler multiplies clean latents and noise by at one of its timesteps."""
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    at = timestep.cpu()[None]
    return float(scheduler.add_noise(one, zero, at)), float(scheduler.add_noise(zero, one, at))


def _split(
    backbone: Backbone, latents: Tensor, predicted: Tensor, signal: float, noise: float
) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c lh lw"]]:
    """Return the clean latents and the noise that a prediction means."""
    kind = backbone.schedule.config.prediction_type
    if kind == "v_prediction":
        return signal * latents - noise * predicted, noise * latents + signal * predicted
    if kind == "epsilon":
        return (latents - noise * predicted) / signal, predicted
    if not noise:  # the latents are clean, and what a prediction of them lacks is its error and no noise
        return latents, torch.zeros_like(latents)
    return predicted, (latents - signal * predicted) / noise


def _sizes(backbone: Backbone, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size to resize to, and the size to crop to after that; height before width."""
    cell, wanted = backbone.latent_scale, backbone.resolution_px**2
    if not 1 / RESIZED_BEYOND <= height * width / wanted <= RESIZED_BEYOND:
        factor = math.sqrt(wanted / (height * width))
        height, width = max(cell, round(height * factor)), max(cell, round(width * factor))
    return (height, width), (height // cell * cell, width // cell * cell)


def _cut(
    picture: UInt8[np.ndarray, "height width *channels"], resized: tuple[int, int], cropped: tuple[int, int]
) -> UInt8[np.ndarray, "_ _ *channels"]:
    if resized != picture.shape[:2]:
        picture = np.asarray(Image.fromarray(picture).resize(resized[::-1], Image.Resampling.LANCZOS))
    top, left = ((have - want) // 2 for have, want in zip(resized, cropped, strict=True))
    return picture[top : top + cropped[0], left : left + cropped[1]].copy()
