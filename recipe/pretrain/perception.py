"""Perceptual features of pictures: those of the pretrained EfficientNet-Lite1 at six depths.

The decoder learns from them. Lite0, whose features measure in the report how far pocket's pictures are from real ones,
is another network, but of the same kind and trained on the same pictures.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moongate.evaluation.networks.lite0 import efficientnet

__all__ = ["DEPTHS", "Perception", "perceptual_distance"]

DEPTHS = (16, 24, 40, 80, 112, 192)
"""Channels at each depth, from half of the pictures' resolution to a thirty-second."""
SCALE = 2
"""Factor by which pictures are enlarged, because the network was trained on larger ones."""


class Perception(nn.Module):
    """Pictures in -1..1 to features, scaled to a mean square of one at each place; its own weights are never trained.

    It computes in float32 and channels-last: its convolutions of single channels are slower otherwise.

    Raises:
        MissingLibrary: the packages are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        network = efficientnet(1)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> list[Float[Tensor, "n _ _ _"]]:
        with torch.autocast(images.device.type, enabled=False):
            large = F.interpolate(images.float(), scale_factor=SCALE, mode="bilinear", align_corners=False)
            features = self.stem(large.contiguous(memory_format=torch.channels_last) * (127.5 / 128))
            depths = []
            for block in self.blocks:
                before, features = features, block(features)
                if features.shape[1] != before.shape[1] and before.shape[1] in DEPTHS:
                    depths.append(_scaled(before))
            return depths


def perceptual_distance(a: list[Tensor], b: list[Tensor]) -> Float[Tensor, ""]:
    """Return the mean squared difference of scaled features, averaged over depths (Zhang et al., LPIPS, CVPR 2018)."""
    return torch.stack([F.mse_loss(one, other) for one, other in zip(a, b, strict=True)]).mean()


def _scaled(features: Tensor) -> Tensor:
    return features / (features.square().mean(1, keepdim=True) + 1e-3).sqrt()
