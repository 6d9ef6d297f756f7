"""A tiny backbone of the real classes (random weights, milliseconds on a CPU) and pictures to teach it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from moongate.backbone import Backbone
from moongate.data import Regularisation, Subject

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = "photo of a an teddy bear dog cat chair red on the beach in drawing far away very small".split()  # noqa: SIM905
WIDTH = 16


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_tiny_model(folder: Path, *, seed: int) -> Path:
    """Write a diffusers folder: 64 px pictures, 8 x 8 latents, 14 cross-attention keys and values."""
    torch.manual_seed(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [START, END, *alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = []
    for word in WORDS:
        left = word[0]
        for index in range(1, len(word)):
            right = word[index] + ("</w>" if index == len(word) - 1 else "")
            if (left, right) not in merges:
                merges.append((left, right))
                pieces.append(left + right)
            left += right
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    special = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": END}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, **special)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    channels = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    vae = AutoencoderTiny(**channels, num_encoder_blocks=(0, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 0))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    (folder / "moongate.json").write_text(json.dumps({"rare_tokens": [20, 30, 40], "lr_scale": 10.0}))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture(scope="session")
def shared_tiny(tiny_folder: Path) -> Backbone:
    return Backbone.load(tiny_folder, device="cpu")


@pytest.fixture
def tiny(shared_tiny: Backbone) -> Backbone:
    """The tiny backbone; the test fails if it leaves a weight, the tokenizer or the embedding changed."""
    weights = {name: weight.clone() for name, weight in all_weights(shared_tiny).items()}
    identities = shared_tiny.tokenizer, shared_tiny.text_encoder.get_input_embeddings()
    yield shared_tiny
    assert_same(weights, all_weights(shared_tiny))
    assert (shared_tiny.tokenizer, shared_tiny.text_encoder.get_input_embeddings()) == identities
    assert not any(p.requires_grad for p in shared_tiny.unet.parameters())


def all_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "text_encoder", "vae")
        for name, tensor in getattr(backbone, part).state_dict().items()
    }


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three coloured pictures."""
    folder = tmp_path / "pictures"
    write_pictures(folder, count=3, seed=0)
    return folder


def write_pictures(folder: Path, *, count: int, seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((100, 80)).save(folder / f"{index}.png")


@pytest.fixture
def make_subject() -> Callable[..., Subject]:
    def make(token: str | None = "<bear>", *, category: str = "bear", seed: int = 0, count: int = 3) -> Subject:
        rng = np.random.default_rng(seed)
        words = f"{token} {category}" if token else category
        return Subject(
            pictures=tuple(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(count)),
            captions=(f"photo of a {words}",) * count,
            category=category,
            token=token,
        )

    return make


@pytest.fixture
def prior() -> Regularisation:
    rng = np.random.default_rng(5)
    return Regularisation(
        pictures=tuple(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(5)),
        captions=tuple(f"photo of a {colour} bear" for colour in ("red", "dog", "cat", "chair", "small")),
    )
