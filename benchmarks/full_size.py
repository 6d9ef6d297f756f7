"""Time one training step and one denoising step of Stable Diffusion 1.5 in full size, with random weights on the CPU.

    python benchmarks/full_size.py [--json]

The denoiser and the text encoder have the true shapes. The autoencoder is a tiny one and the vocabulary is made up, so
that nothing must be downloaded. A step takes one picture of 512 pixels. Memory is the peak of the process so far.
Training is measured first with activations computed again in the backward pass (`recompute`), then with all kept.
"""

import resource
import time
from collections.abc import Callable
from json import dumps

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from moongate.backbone import Backbone
from moongate.data import Subject
from moongate.sampling import SampleOptions, sample
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
AUTOENCODER = {
    "sample_size": 512,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def full_size_backbone(
    *, side_px: int = 512, has_full_autoencoder: bool = False, dtype: torch.dtype = torch.float32
) -> Backbone:
    """Return Stable Diffusion 1.5 with random weights and a vocabulary of letters.

    Args:
        side_px: Side of the pictures that it is made for.
        has_full_autoencoder: Whether the autoencoder has full size too.
        dtype: Precision of the weights.
    """
    torch.manual_seed(0)
    channels = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    tiny = {**channels, "num_encoder_blocks": (0, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 0)}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**AUTOENCODER) if has_full_autoencoder else AutoencoderTiny(**tiny),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel(**UNET | {"sample_size": side_px // 8}),
        scheduler=DDPMScheduler(**SCHEDULE, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Backbone(name="full-size", pipeline=pipeline.to(device, dtype))


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with a vocabulary of letters that is as large as CLIP's."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*letters, *(letter + "</w>" for letter in letters)]
    filling = [f"unused{number}" for number in range(TEXT["vocab_size"] - len(known) - 2)]
    vocabulary = {piece: number for number, piece in enumerate([*known, *filling, start, end])}
    special = {"unk_token": end, "bos_token": start, "eos_token": end, "pad_token": end}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, **special)


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Do some work and return its wall-clock time, its CPU time, and the peak of memory so far."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def train_once(backbone: Backbone, *, recompute: bool) -> None:
    """Train one step on one picture."""
    picture = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    subject = Subject(pictures=(picture,), captions=("photo of a <bear> bear",), category="bear", token="<bear>")
    method = METHODS["custom-diffusion-without-regularization"]
    options = TrainOptions(steps=1, batch=1, recompute=recompute)
    train(backbone, [subject], [], method, options=options)


def measure() -> dict[str, object]:
    """Return all values; each covers a whole call, nearly all of which is the step itself."""
    backbones: list[Backbone] = []
    figures: dict[str, object] = {"threads": torch.get_num_threads()}
    figures["loading"] = timed(lambda: backbones.append(full_size_backbone()))
    (backbone,) = backbones
    weights = backbone.weights("cross-attention-kv")
    figures |= {"matrices": len(weights), "trained": sum(weight.numel() for weight in weights.values())}
    options = SampleOptions(steps=1, guidance=1.0)
    parts: dict[str, Callable[[], object]] = {
        "denoising step": lambda: list(sample(backbone, ["a bear"], seeds=[0], options=options)),
        "training step, recomputed": lambda: train_once(backbone, recompute=True),
        "training step": lambda: train_once(backbone, recompute=False),
    }
    return figures | {name: timed(work) for name, work in parts.items()}


def main(*, json: bool = False) -> None:
    """Measure and print.

    Args:
        json: Print one line of JSON.
    """
    figures = measure()
    if json:
        print(dumps(figures))
        return
    print(f"{figures['matrices']} matrices, {figures['trained']:,} numbers are trained; {figures['threads']} threads")
    print(f"{'':28s}{'seconds':>8}  {'of CPU':>8}  {'peak GB':>8}")
    for name, part in figures.items():
        if isinstance(part, dict):
            print(f"{name:28s}{part['seconds']:8.1f}  {part['cpu_seconds']:8.1f}  {part['peak_gb']:8.2f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
