from pathlib import Path

import pytest
import torch

from making import make_clip
from moongate.backbone import Backbone
from moongate.errors import BackboneError, OptionError
from moongate.evaluation import load_network
from moongate.evaluation.networks.clip import Clip


def test_a_clip_network_gives_the_vectors_of_the_model(tiny: Backbone, tmp_path: Path) -> None:
    folder = make_clip(tmp_path / "clip", tiny)
    network, clip = load_network(f"clip:{folder}"), Clip.load(folder)
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    assert network.caption_features is not None
    assert torch.equal(network.caption_features(["a dog"]), clip.captions(["a dog"]))
    assert torch.equal(network.image_features(images), clip.pictures(images))


def test_pockets_network_comes_with_the_package() -> None:
    network = load_network("pocket-clip")
    assert network.name == "pocket-clip"
    assert network.caption_features is not None
    assert network.caption_features(["a dog"]).shape == network.image_features(torch.zeros(1, 3, 64, 64)).shape


def test_a_network_that_cannot_be_loaded_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Unknown features 'vgg'. Known: pocket-clip, efficientnet-lite0, clip"):
        load_network("vgg")
    with pytest.raises(OptionError, match="come from a package, not from 'here'. Write efficientnet-lite0"):
        load_network("efficientnet-lite0:here")
    for name in ("clip", "dino", "pocket-clip"):
        with pytest.raises(BackboneError, match=f"model '{tmp_path}' cannot be loaded.*Give a folder in transformers"):
            load_network(f"{name}:{tmp_path}")
