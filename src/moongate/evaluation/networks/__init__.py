"""Feature networks by name: each turns pictures, and some turn captions, into vectors that measures compare.

Values of one network can be compared with each other and with no others, so every value carries the network's name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from moongate.backbone import POCKET
from moongate.errors import OptionError
from moongate.evaluation.networks.clip import Clip
from moongate.evaluation.networks.dino import dino_features
from moongate.evaluation.networks.inception import inception_features
from moongate.evaluation.networks.lite0 import lite0_features

__all__ = ["NETWORKS", "Clip", "Network", "check_network", "load_network"]

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
"""The models in the public evaluations of the paper's method."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A feature network: functions to float32 vectors [n, width]."""

    name: str
    image_features: Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n features"]]
    """Takes pictures in -1..1."""
    caption_features: Callable[[Sequence[str]], Float[Tensor, "n features"]] | None = None
    """Takes captions; None for a network that reads no text."""


def load_network(name: str, *, device: str = "cpu") -> Network:
    """Load a feature network.

    Args:
        name: One of `NETWORKS`. `clip:SOURCE` and `dino:SOURCE` take another model of the same kind (a folder or a
            model id of the hub), `pocket-clip:FOLDER` other weights of pocket, `inception:FILE` the file it needs.
        device: Where the network computes.

    Raises:
        OptionError: The name is unknown.
        MissingLibrary: The package with the network is not installed.
        BackboneError: The weights cannot be loaded.
    """
    check_network(name)
    kind, _, source = name.partition(":")
    return NETWORKS[kind](name, source, device)


def check_network(name: str) -> None:
    """Check that a network has this name, before a model is loaded.

    Raises:
        OptionError: The name is unknown.
    """
    if name.partition(":")[0] not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise OptionError(f"Unknown features {name!r}. Known: {known}. clip:FOLDER takes another CLIP model.")


def _pocket_clip(name: str, source: str, device: str) -> Network:
    return _of_clip(name, Clip.load(source or POCKET, device=device))


def _clip(name: str, source: str, device: str) -> Network:
    return _of_clip(name, Clip.load(source or CLIP, device=device))


def _of_clip(name: str, clip: Clip) -> Network:
    clip.check_pictures()
    return Network(name=name, image_features=clip.pictures, caption_features=clip.captions)


def _lite0(name: str, source: str, device: str) -> Network:
    if source:
        raise OptionError(f"The features {name!r} come from a package, not from {source!r}. Write efficientnet-lite0.")
    return Network(name=name, image_features=lite0_features(device))


def _dino(name: str, source: str, device: str) -> Network:
    return Network(name=name, image_features=dino_features(source or DINO, device=device))


def _inception(name: str, source: str, device: str) -> Network:
    return Network(name=name, image_features=inception_features(Path(source), device=device))


NETWORKS: dict[str, Callable[[str, str, str], Network]] = {
    "pocket-clip": _pocket_clip,
    "efficientnet-lite0": _lite0,
    "clip": _clip,
    "dino": _dino,
    "inception": _inception,
}
"""Loaders by name. A loader gets the whole name, what follows the colon (or ""), and the device."""
