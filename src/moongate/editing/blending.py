"""Local blend: change a picture only where a word looks, or where a mask allows it (Hertz et al. 2022, Sec. 4).

Pure functions of attention maps, latents and pixels.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

__all__ = ["as_latent_mask", "composed", "word_mask"]


def word_mask(
    maps: Float[Tensor, "pictures height width"], *, threshold: float
) -> Float[Tensor, "pictures 1 height width"]:
    """Return 1 where a picture attends to some words and next to it, else 0.

    Args:
        maps: Where each picture attends to the words; zeros all over if it has none of them.
        threshold: Share of the largest attention from which on a position counts, from 0 to 1.
    """
    wide = F.max_pool2d(maps[:, None], 3, stride=1, padding=1)
    return (wide > threshold * wide.amax((2, 3), keepdim=True)).to(maps)


def as_latent_mask(mask: UInt8[np.ndarray, "height width"], cell_px: int) -> Float[Tensor, "1 rows columns"]:
    """Return a mask over latents, with 1 for each cell in which a pixel is white, else 0."""
    cells = F.max_pool2d(torch.from_numpy(mask)[None].float(), cell_px)
    return (cells >= 128).float()


def composed(
    picture: UInt8[np.ndarray, "height width 3"],
    edited: UInt8[np.ndarray, "height width 3"],
    may_change: Float[Tensor, "rows columns"],
    *,
    mask: UInt8[np.ndarray, "height width"] | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the edited picture where it may differ, with soft edges, and the pixels of the other elsewhere.

    Args:
        picture: What stays.
        edited: What replaces it.
        may_change: 1 for each cell of the latents that may change, else 0.
        mask: White where pixels may change; everywhere if there is none.
    """
    smooth = F.interpolate(may_change[None, None].float(), picture.shape[:2], mode="bilinear", align_corners=False)
    share = smooth[0, 0].cpu().numpy()
    if mask is not None:
        share = share * (mask / 255)
    return (picture + share[..., None] * (edited.astype(np.float32) - picture)).round().astype(np.uint8)
