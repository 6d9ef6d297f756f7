from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from moongate.errors import BackboneError
from moongate.evaluation.networks.pretrained import pretrained

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=16), add_pooling_layer=False).half().save_pretrained(tmp_path)
    return tmp_path


def test_a_model_is_loaded_in_float32_for_inference(folder: Path) -> None:
    model = pretrained(ViTModel, folder, unused=("pooler.",))
    assert not model.training
    assert {(weight.dtype, weight.requires_grad) for weight in model.parameters()} == {(torch.float32, False)}


def test_weights_that_are_missing_or_of_another_shape_are_named(folder: Path) -> None:
    with pytest.raises(BackboneError, match="lacks weights of a ViTModel.*: pooler.dense.bias; pooler.dense.weight"):
        pretrained(ViTModel, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file(weights | {name: torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"in other shapes: {name}"):
        pretrained(ViTModel, folder, unused=("pooler.",))
