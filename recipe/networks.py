"""Pocket's networks: autoencoder, denoiser with its noise schedule, and how their weights are read and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from moongate.errors import OptionError
from moongate.files import write_atomically

__all__ = [
    "AUTOENCODER",
    "DENOISER",
    "SCHEDULE",
    "LATENT_CHANNELS",
    "LATENT_PX",
    "TEXT_WIDTH",
    "load_into",
    "make_autoencoder",
    "make_denoiser",
    "make_schedule",
    "read_weights",
    "write_weights",
]

TEXT_WIDTH = 256
LATENT_CHANNELS, LATENT_PX = 8, 16
AUTOENCODER: dict[str, Any] = {
    "encoder_block_out_channels": (48, 48, 48, 48),
    "decoder_block_out_channels": (48, 48, 48, 48),
    "num_encoder_blocks": (0, 1, 2, 3),
    "num_decoder_blocks": (3, 2, 1, 0),
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 1.0,
}
DENOISER: dict[str, Any] = {
    "sample_size": LATENT_PX,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (96, 224),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (1, 4),  # the number of heads
}
"""Cross-attention at 16 x 16 as well as at 8 x 8, because objects are laid out at 16 x 16."""
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "steps_offset": 1,  # as pipelines expect it; trailing spacing does not use it
}


def make_autoencoder() -> AutoencoderTiny:
    """Return an autoencoder with random weights: 128 px pictures to latents [n, 8, 16, 16] and back."""
    return AutoencoderTiny(**AUTOENCODER)


def make_denoiser() -> UNet2DConditionModel:
    """Return a denoiser with random weights, with plain attention: the fused one's backward pass is slow on a CPU."""
    model = UNet2DConditionModel(**DENOISER)
    model.set_attn_processor(AttnProcessor())
    return model


def make_schedule() -> DDPMScheduler:
    """Return the noise schedule: v-prediction with zero terminal signal-to-noise ratio."""
    return DDPMScheduler(**SCHEDULE)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file as float32 weights and what was noted about them.

    Raises:
        OptionError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise OptionError(f"There are no weights {path}. Run the stage that writes them first (recipe/README.md).")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            return weights, dict(file.metadata() or {})
    except SafetensorError as error:
        raise OptionError(f"{path} is not a safetensors file ({error}). Give another one.") from error


def load_into(model: nn.Module, path: Path) -> dict[str, str]:
    """Load the weights of a safetensors file into a model; return what was noted about them.

    Raises:
        OptionError: the file cannot be read, or its weights are those of another network.
    """
    weights, notes = read_weights(path)
    own = model.state_dict()
    wrong = [name for name in own.keys() | weights.keys() if name not in own or name not in weights]
    wrong += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if wrong:
        raise OptionError(
            f"{path} holds the weights of another network: {len(wrong)} of them are missing, unknown or of another "
            f"shape, for example {min(wrong)}. Give the file that the recipe's stage of that name writes."
        )
    model.load_state_dict(weights)
    return notes


def write_weights(path: Path, weights: Mapping[str, Tensor], **notes: Any) -> None:
    """Write weights in float32, and notes about them, as a safetensors file."""
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    write_atomically(path, save(tensors, metadata={key: str(value) for key, value in notes.items()}))
