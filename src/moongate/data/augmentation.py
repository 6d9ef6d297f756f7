"""Augmentation of target pictures: zoom, shrink and place, with the mask and the caption that follow (paper, Sec. 3.2).

Pictures are uint8 arrays [height, width, 3] outside and float tensors [channels, side, side] in -1..1 inside. A user's
mask is a fourth channel. The module knows nothing of models and files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from moongate.data.pictures import as_tensor

__all__ = ["ZOOM", "Augmented", "Framing", "augment", "framed", "framing", "square"]

ZOOM = (1.2, 1.4)
"""Range of the side of an enlarged picture, as a multiple of the training side."""
SHRINK = (0.4, 1.0)
"""Range of the side of a shrunk picture, as a fraction of the training side."""
ZOOM_SHARE = 1 / 3
"""Fraction of the pictures that are enlarged; the others are shrunk."""
SMALL_BELOW = 0.6
"""Fraction of the side below which the caption says that the subject is small."""
NOTHING_MASKED_IN = -0.99
"""Mean of a mask in -1..1 up to which a latent cell shows nothing of the subject; resampling blurs the mask's edge."""
PHRASES = {"small": ("far away", "very small"), "large": ("zoomed in", "close up")}
"""Phrases for the size, put before the caption (paper, Sec. 3.2): "far away photo of a <bear> teddy bear"."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Augmented:
    """A training picture, the latent cells that count in the loss, and the phrase for its caption."""

    image: Float[Tensor, "3 side side"]
    mask: Bool[Tensor, "cells cells"]
    """True where a latent cell shows the picture (not the canvas around it) and the user's mask lets it count."""
    phrase: str
    """What the caption says of the size; empty for a picture of usual size."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """The random choices of one augmentation. Equal framings of one picture give equal training pictures."""

    is_flipped: bool
    picture_px: int
    """Side to which the picture is resized."""
    top: int
    """Top edge of the training picture in an enlarged picture, or of a shrunk picture on the canvas, in pixels."""
    left: int
    """Left edge of the same."""
    phrase: str
    """As in `Augmented`."""

    def caption(self, caption: str) -> str:
        """Return the caption with the phrase before it."""
        return f"{self.phrase} {caption}" if self.phrase else caption


def augment(
    picture: Float[Tensor, "channels source source"],
    *,
    side_px: int,
    cell_px: int,
    generator: torch.Generator,
    flips: bool = False,
    resizes: bool = True,
) -> Augmented:
    """Enlarge (one picture in three) or shrink and place a picture at random, and say so in the caption (Sec. 3.2).

    Args:
        picture: Square picture in -1..1, with a user's mask as the fourth channel if there is one.
        side_px: Side of the training picture in pixels.
        cell_px: Side of a latent cell in pixels.
        generator: Source of all random choices.
        flips: Whether half of the pictures are mirrored.
        resizes: Whether pictures are enlarged or shrunk; without, the whole picture fills the canvas.
    """
    choices = framing(side_px=side_px, cell_px=cell_px, generator=generator, flips=flips, resizes=resizes)
    return framed(picture, choices, side_px=side_px, cell_px=cell_px)


def framing(*, side_px: int, cell_px: int, generator: torch.Generator, flips: bool, resizes: bool) -> Framing:
    """Draw the random choices of one augmentation; `augment` explains the arguments."""
    is_flipped = flips and _uniform(0, 1, generator) < 0.5
    if not resizes:
        return Framing(is_flipped=is_flipped, picture_px=side_px, top=0, left=0, phrase="")
    if _uniform(0, 1, generator) < ZOOM_SHARE:
        side = round(side_px * _uniform(*ZOOM, generator))
        top, left = (_below(side - side_px + 1, generator) for _ in range(2))
        phrase = _choice(PHRASES["large"], generator)
        return Framing(is_flipped=is_flipped, picture_px=side, top=top, left=left, phrase=phrase)
    cells = side_px // cell_px
    covered = max(1, round(cells * _uniform(*SHRINK, generator)))
    top, left = (_below(cells - covered + 1, generator) * cell_px for _ in range(2))
    phrase = _choice(PHRASES["small"], generator) if covered < SMALL_BELOW * cells else ""
    return Framing(is_flipped=is_flipped, picture_px=covered * cell_px, top=top, left=left, phrase=phrase)


def framed(
    picture: Float[Tensor, "channels source source"], choices: Framing, *, side_px: int, cell_px: int
) -> Augmented:
    """Return the training picture of a picture, with its mask.

    A shrunk picture covers whole latent cells, so that the mask is exactly the region it covers; the rest of the canvas
    is mid-gray and does not count in the loss. A user's mask moves with the picture: a cell counts when at least half
    of it is masked in. If no cell has that much, the cells that have the most count.

    Args:
        picture: Square picture in -1..1, with a user's mask as the fourth channel if there is one.
        choices: What `framing` drew for the same sides.
        side_px: Side of the training picture in pixels.
        cell_px: Side of a latent cell in pixels.
    """
    resized = _resized(picture.flip(-1) if choices.is_flipped else picture, choices.picture_px)
    top, left = choices.top, choices.left
    if choices.picture_px >= side_px:
        image = resized[:, top : top + side_px, left : left + side_px]
        return Augmented(image=image[:3], mask=_counted(image[3:], cell_px), phrase=choices.phrase)
    end_row, end_column = top + choices.picture_px, left + choices.picture_px
    image = torch.zeros(3, side_px, side_px)
    image[:, top:end_row, left:end_column] = resized[:3]
    mask = torch.zeros(side_px // cell_px, side_px // cell_px, dtype=torch.bool)
    rows, columns = (slice(begin // cell_px, end // cell_px) for begin, end in ((top, end_row), (left, end_column)))
    mask[rows, columns] = _counted(resized[3:], cell_px)
    return Augmented(image=image, mask=mask, phrase=choices.phrase)


def square(
    picture: UInt8[np.ndarray, "height width 3"],
    side_px: int,
    *,
    mask: UInt8[np.ndarray, "height width"] | None = None,
) -> Float[Tensor, "channels {side_px} {side_px}"]:
    """Cut the largest square out of a picture and resize it.

    The square is the central one. If a mask is given and the central square misses a part of it, it is the square that
    shows most of the mask.

    Args:
        picture: Pixels in 0..255.
        side_px: Side of the result in pixels.
        mask: White (255) where the picture counts in the loss.

    Returns:
        Floats in -1..1 with three channels, or four if a mask is given; the mask is the fourth.
    """
    centering = (0.5, 0.5) if mask is None else _centering(mask)
    layers = [picture] if mask is None else [picture, mask[..., None]]
    fitted = [
        np.array(
            ImageOps.fit(
                Image.fromarray(layer.squeeze()), (side_px, side_px), Image.Resampling.LANCZOS, centering=centering
            )
        )
        for layer in layers
    ]
    return as_tensor(np.concatenate([layer.reshape(side_px, side_px, -1) for layer in fitted], axis=2))


def _centering(mask: UInt8[np.ndarray, "height width"]) -> tuple[float, float]:
    """Return the position of the square with most of the mask, horizontally and vertically.

    Positions go from 0 (left, top) to 1; the result is 0.5 if the central square shows as much as any other.
    """
    positions = []
    for axis in (0, 1):
        sums = np.concatenate([[0], (mask >= 128).sum(axis).cumsum()])
        covered = sums[min(mask.shape) :] - sums[: -min(mask.shape)]
        last, best = len(covered) - 1, np.flatnonzero(covered == covered.max())
        positions.append(0.5 if last // 2 in best else float(best[len(best) // 2] / last))
    return positions[0], positions[1]


def _counted(mask: Float[Tensor, "layers height width"], cell_px: int) -> Bool[Tensor, "rows columns"]:
    """Return the latent cells that count, for one mask in -1..1 or none (then all cells count)."""
    if not len(mask):
        return torch.ones(mask.shape[1] // cell_px, mask.shape[2] // cell_px, dtype=torch.bool)
    level = F.avg_pool2d(mask, cell_px)[0]
    return (level > NOTHING_MASKED_IN) & (level >= level.max().clamp(max=0))


def _resized(picture: Float[Tensor, "channels source source"], side: int) -> Float[Tensor, "channels {side} {side}"]:
    resized = F.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))


def _choice(options: Sequence[str], generator: torch.Generator) -> str:
    return options[_below(len(options), generator)]
