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
    "TEXT_WIDTH",
    "grown",
    "load_autoencoder",
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
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_encoder_blocks": (0, 1, 2, 3),
    "num_decoder_blocks": (3, 3, 2, 1),
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 1.0,
}
"""The decoder is larger than the encoder, and has a block at full resolution: it must invent what latents lack."""
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


def load_autoencoder(path: Path) -> AutoencoderTiny:
    """Return an autoencoder with the weights of a file, which may be those of a smaller one (`grown`).

    Raises:
        OptionError: the file cannot be read, or its weights are those of another network.
    """
    model = make_autoencoder()
    weights, _ = read_weights(path)
    try:
        model.load_state_dict(grown(weights, model.state_dict()))
    except (KeyError, RuntimeError, ValueError) as error:
        raise OptionError(
            f"{path} holds no autoencoder of at most this size. Give the file that a stage of the recipe writes."
        ) from error
    return model


def grown(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an autoencoder that begins as a smaller one.

    That one may have fewer latent channels, narrower layers in its decoder, and fewer blocks there. What its channels
    read from new ones begins at zero, and so does what a new block adds. A block ends with a ReLU, so that the first
    block of a level that had none still changes what comes out.

    Args:
        weights: the smaller autoencoder's.
        own: the larger one's, for what is new.

    Raises:
        KeyError, RuntimeError, ValueError: the weights are those of another network, or of a larger one.
    """
    sources = {name: name for name in own if not name.startswith("decoder.") or name.startswith("decoder.layers.0.")}
    result = {name: weight.clone() for name, weight in own.items()}
    for (blocks, last), (own_blocks, own_last) in zip(_levels(weights), _levels(own), strict=True):
        pairs = [*zip(own_blocks, blocks, strict=False), (own_last, last)]
        for place, source in pairs:
            sources |= {name: source + name.removeprefix(place) for name in own if name.startswith(place)}
        for added in own_blocks[len(blocks) :]:
            result[f"{added}conv.4.weight"].zero_()
            result[f"{added}conv.4.bias"].zero_()
    for name, source in sources.items():
        old, new = weights[source], result[name]
        if new.ndim > 1:
            new[: old.shape[0], old.shape[1] :] = 0
        new[tuple(slice(size) for size in old.shape)] = old
    return result


def _levels(weights: Mapping[str, Tensor]) -> list[tuple[list[str], str]]:
    """Return the beginnings of the names of each level of a decoder: those of its blocks, and of the kernel behind."""
    levels: list[tuple[list[str], str]] = []
    blocks: list[str] = []
    for number in sorted({int(name.split(".")[2]) for name in weights if name.startswith("decoder.layers.")})[1:]:
        place = f"decoder.layers.{number}."
        if f"{place}weight" in weights:
            levels.append((blocks, place))
            blocks = []
        else:
            blocks.append(place)
    return levels


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
