"""Pictures as a feature network expects them: the central square, at the network's size, in its range of colors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["central_square", "normalized"]


def central_square(
    images: Float[Tensor, "n 3 height width"], side_px: int, *, mode: str = "bicubic"
) -> Float[Tensor, "n 3 {side_px} {side_px}"]:
    """Resize pictures in -1..1 so that their shorter side has `side_px` pixels, and cut out the center.

    Args:
        images: Pictures of one size.
        side_px: Side of the square.
        mode: Interpolation of `torch.nn.functional.interpolate`, with antialiasing.
    """
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter != side_px:
        size = (height * side_px // shorter, width * side_px // shorter)
        images = F.interpolate(images, size=size, mode=mode, antialias=True).clamp(-1, 1)
        height, width = size
    top, left = (height - side_px) // 2, (width - side_px) // 2
    return images[..., top : top + side_px, left : left + side_px]


def normalized(
    images: Float[Tensor, "n 3 height width"], *, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n 3 height width"]:
    """Map pictures in -1..1 to the colors a network was trained on; mean and deviation are those of 0..1, per color."""
    center, spread = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return ((images + 1) / 2 - center) / spread
