from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from making import make_clip
from moongate.backbone import Backbone
from moongate.errors import BackboneError
from moongate.evaluation import load_network

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 56,
}


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_dino_from_a_folder_gives_the_class_token(kind: str, tmp_path: Path) -> None:
    """That of transformers, called with the colors that both models were trained with."""
    torch.manual_seed(0)
    model = (
        ViTModel(ViTConfig(**SIZES), add_pooling_layer=False) if kind == "dino" else Dinov2Model(Dinov2Config(**SIZES))
    )
    model.eval().save_pretrained(tmp_path)
    network = load_network(f"dino:{tmp_path}")
    images = torch.rand(3, 3, 224, 224)
    features = network.image_features(images * 2 - 1)
    assert features.shape == (3, 16)
    assert network.caption_features is None
    assert network.name == f"dino:{tmp_path}"
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        tokens = model(pixel_values=(images - mean) / std).last_hidden_state
    torch.testing.assert_close(features, tokens[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1], atol=0.1)
    torch.testing.assert_close(network.image_features(images[:1] * 2 - 1), features[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["CLIPModel", "BertModel", "ResNetModel", "ViTModel"])
def test_a_model_of_another_kind_is_refused_when_it_is_loaded(kind: str, tmp_path: Path, tiny: Backbone) -> None:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "CLIPModel":
        make_clip(tmp_path, tiny)
    elif kind == "BertModel":
        BertModel(BertConfig(**small, vocab_size=20)).save_pretrained(tmp_path)
    elif kind == "ResNetModel":
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    else:  # it takes pictures of another size alone
        ViTModel(ViTConfig(**{**SIZES, "image_size": 112}), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=rf"\({kind}\) gives no class token for a picture. Give a DINO or DINOv2"):
        load_network(f"dino:{tmp_path}")
