"""Inception v3 in the TorchScript file that published FID and KID are computed with.

It is the only network whose FID and KID compare with those of papers. The file is not shipped: clean-fid downloads it
as `inception-2015-12-05.pt`. It resizes pictures itself, from values in 0..255.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.errors import BackboneError

__all__ = ["inception_features"]

WIDTH = 2048
PROBE_PX = 64
REMEDY = "Give inception:FILE with the TorchScript file inception-2015-12-05.pt that clean-fid downloads."


def inception_features(
    file: Path, *, device: str = "cpu"
) -> Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n 2048"]]:
    """Return a function from pictures in -1..1 to the features before the classification, float32.

    One picture is tried at once, so that another file is refused before pictures are drawn.

    Raises:
        BackboneError: The file is missing, is not a TorchScript file, or does not give 2048 features.
    """
    if not file.is_file():
        raise BackboneError(f"The features 'inception' need a file, which {str(file)!r} is not. {REMEDY}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the file exists in no other format
            model = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        raise BackboneError(f"{file} is not a TorchScript file. {REMEDY}") from error

    @torch.no_grad()
    def features(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
        vectors: Tensor = model((images.to(device) + 1) * 127.5, return_features=True)
        return vectors.float()

    try:
        shape = tuple(features(torch.zeros(1, 3, PROBE_PX, PROBE_PX)).shape)
    except RuntimeError as error:
        raise BackboneError(f"{file} holds another network, which cannot be called like Inception. {REMEDY}") from error
    if shape != (1, WIDTH):
        raise BackboneError(f"{file} gives features of shape {shape} instead of (1, {WIDTH}). {REMEDY}")
    return features
