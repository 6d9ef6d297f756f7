from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

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
    torch.manual_seed(0)
    model = (
        ViTModel(ViTConfig(**SIZES), add_pooling_layer=False) if kind == "dino" else Dinov2Model(Dinov2Config(**SIZES))
    )
    model.eval().save_pretrained(tmp_path)
    network = load_network(f"dino:{tmp_path}")
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    features = network.image_features(images)
    assert features.shape == (3, 16)
    assert network.caption_features is None
    assert network.name == f"dino:{tmp_path}"
    torch.testing.assert_close(network.image_features(images[:1]), features[:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.mean(1), torch.zeros(3), atol=1e-5, rtol=0)  # the final layer norm's
