"""Tiny backbones of the real classes (random weights, milliseconds on a CPU) and pictures to teach them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from moongate.backbone import Backbone
from moongate.data import Regularization, Subject

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = "photo of a an teddy bear dog cat chair red on the beach in drawing far away very small".split()  # noqa: SIM905
WIDTH = 16


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


FAMILIES = ("sd1", "sd2", "sdxl")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def make_tokenizer(*, pad: str = END) -> CLIPTokenizer:
    """A tokenizer that knows `WORDS`, with the start and end tokens last, as in CLIP's vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = []
    for word in WORDS:
        left = word[0]
        for index in range(1, len(word)):
            right = word[index] + ("</w>" if index == len(word) - 1 else "")
            if (left, right) not in merges:
                merges.append((left, right))
                pieces.append(left + right)
            left += right
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    special = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": pad}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, **special)


def text_config(tokenizer: CLIPTokenizer, *, width: int = WIDTH, **changes: object) -> CLIPTextConfig:
    defaults = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**defaults, **changes})


def make_tiny_model(folder: Path, *, seed: int, family: str = "pocket") -> Path:
    """Write a diffusers folder: 64 px pictures, 8 x 8 latents; of pocket's kind or of one of `FAMILIES`.

    What tells the families apart is as in the models themselves: scheduler, prediction, activations, linear or
    convolutional projections, and SDXL's second text encoder (with the outdated id of its end token).
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    unet: dict[str, object] = {"cross_attention_dim": WIDTH, "attention_head_dim": 2}
    channels = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    text = CLIPTextModel(text_config(tokenizer, hidden_act="quick_gelu" if family in ("pocket", "sd1") else "gelu"))
    scheduler: SchedulerMixin
    if family == "pocket":
        vae = AutoencoderTiny(**channels, num_encoder_blocks=(0, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 0))
        scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    else:
        vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, sample_size=64, **blocks)
    if family == "sd1":
        scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    elif family == "sd2":
        unet["use_linear_projection"] = True
        scheduler = DDIMScheduler(
            **{**SCHEDULE, "timestep_spacing": "trailing"},
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            clip_sample=False,
        )
    more: dict[str, object] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if family == "sdxl":
        scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading")
        second = make_tokenizer(pad="!")
        config = text_config(second, width=24, projection_dim=12, hidden_act="gelu", eos_token_id=2)
        more = {"tokenizer_2": second, "text_encoder_2": CLIPTextModelWithProjection(config)}
        unet = {
            "cross_attention_dim": WIDTH + 24,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 12,
        }
    denoiser = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        **unet,
    )
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": denoiser, "scheduler": scheduler}
    kind(**parts, **more).save_pretrained(folder)
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
def tiny(shared_tiny: Backbone) -> Iterator[Backbone]:
    """The tiny backbone; the test fails if it leaves a weight, the tokenizer or the embedding changed."""
    yield from guarded(shared_tiny)


@pytest.fixture(scope="session", params=FAMILIES)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp(request.param) / "model", seed=0, family=request.param)


@pytest.fixture(scope="session")
def shared_each(family_folder: Path) -> Backbone:
    return Backbone.load(family_folder, device="cpu")


@pytest.fixture
def each(shared_each: Backbone) -> Iterator[Backbone]:
    """A tiny backbone of each of `FAMILIES` in turn, watched as `tiny` is."""
    yield from guarded(shared_each)


def guarded(backbone: Backbone) -> Iterator[Backbone]:
    def identities() -> list[object]:
        return [part for e in backbone.encoders for part in (e.tokenizer, e.model.get_input_embeddings())]

    weights, found = {name: weight.clone() for name, weight in all_weights(backbone).items()}, identities()
    yield backbone
    assert_same(weights, all_weights(backbone))
    assert all(now is before for now, before in zip(identities(), found, strict=True))
    assert not any(p.requires_grad for p in backbone.unet.parameters())


def all_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "text_encoder", "text_encoder_2", "vae")
        if hasattr(backbone, part)
        for name, tensor in getattr(backbone, part).state_dict().items()
    }


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three colored pictures."""
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
def prior() -> Regularization:
    rng = np.random.default_rng(5)
    return Regularization(
        pictures=tuple(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(5)),
        captions=tuple(f"photo of a {color} bear" for color in ("red", "dog", "cat", "chair", "small")),
    )
