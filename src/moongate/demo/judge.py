"""Tells pictures of an example from those of other things of its category, by the features of pocket CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moongate.data import Regularization
from moongate.data.pictures import as_tensor, find_pictures, read_picture
from moongate.evaluation.networks.clip import PocketClip
from moongate.pocket import Example

__all__ = ["Judge"]

FEWEST = 6
"""Pictures of others that it takes to judge."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The mean features of the example and of the others, and how far they can be trusted."""

    clip: PocketClip
    means: Float[Tensor, "2 width"]
    right: float
    """Share of real pictures that are told right, none of which is in the means; the mean over both kinds."""

    @classmethod
    def of(cls, example: Example, pool: Regularization) -> Self | None:
        """Learn from the example's held-out pictures and a pool of its category; None with too few in its style."""
        begins = f"{example.style} of a"
        others = [
            picture
            for picture, caption in zip(pool.pictures, pool.captions, strict=True)
            if caption.startswith(begins) and " and " not in caption
        ]
        if len(others) < FEWEST:
            return None
        clip = PocketClip()
        itself = [read_picture(path) for path in find_pictures(example.evaluation)]
        kinds = [clip.image_features(as_tensor(np.stack(pictures))) for pictures in (itself, others)]
        means = torch.stack([features[::2].mean(0) for features in kinds])
        right = [_nearest(features[1::2], means) == index for index, features in enumerate(kinds)]
        return cls(clip=clip, means=means, right=float(np.mean([told.double().mean() for told in right])))

    def sees(self, pictures: Sequence[np.ndarray]) -> Bool[Tensor, " n"]:
        """Tell which pictures, uint8 [side, side, 3], are nearer to the example than to the others."""
        return _nearest(self.clip.image_features(as_tensor(np.stack(pictures))), self.means) == 0


def _nearest(features: Float[Tensor, "n width"], means: Float[Tensor, "2 width"]) -> Tensor:
    return torch.cdist(features, means).argmin(1)
