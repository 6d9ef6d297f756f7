"""DINO and DINOv2: self-supervised vision transformers, whose class token the paper's field compares subjects by."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.errors import BackboneError
from moongate.evaluation.networks.preprocessing import central_square, normalized
from moongate.evaluation.networks.pretrained import pretrained

__all__ = ["dino_features"]

SIDE_PX = 224
"""Both DINO and DINOv2 are used at this size."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the colors, in 0..1, of the pictures that both were trained on."""


def dino_features(
    source: str, *, device: str = "cpu"
) -> Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n features"]]:
    """Return a function from pictures in -1..1 to the class token of the last layer, float32.

    One picture is tried at once, so that a model of another kind is refused before pictures are drawn.

    Args:
        source: A folder in transformers' layout, or a model id of the hub.
        device: Where the network computes.

    Raises:
        BackboneError: The model cannot be found or read, lacks weights, or is of another kind.
    """
    from transformers import AutoModel

    model = pretrained(AutoModel, source, device=device, unused=("pooler.",))

    @torch.no_grad()
    def features(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
        squares = normalized(central_square(images.to(device), SIDE_PX), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        tokens: Tensor = model(pixel_values=squares).last_hidden_state
        return tokens[:, 0].float()

    try:
        fits = features(torch.zeros(1, 3, SIDE_PX, SIDE_PX)).ndim == 2
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise BackboneError(
            f"The model {source!r} ({type(model).__name__}) gives no class token for a picture. Give a DINO or DINOv2 "
            "model, or name a CLIP model with clip:SOURCE."
        )
    return features
