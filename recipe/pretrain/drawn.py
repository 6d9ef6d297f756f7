"""Draw latents for the decoder's critics: `python -m recipe.pretrain.drawn --denoiser runs/pocket/denoiser/state.pt`.

What a denoiser draws differs a little from what the encoder makes of real pictures. The decoder that also sees the
first learns to make real pictures of both (`recipe.pretrain.decoder --drawn`). Captions are those of the training
pictures. Writes one safetensors file with `latents`, float16 [n, 8, 16, 16].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from jaxtyping import Float
from rich.progress import track
from safetensors.torch import save
from torch import Tensor

from moongate.errors import OptionError
from moongate.files import write_atomically
from recipe.command import command
from recipe.fitting import native_autocast
from recipe.networks import LATENT_CHANNELS, LATENT_PX, make_denoiser, make_schedule
from recipe.pretrain.denoiser import read_average
from recipe.pretrain.prepare import Prepared

__all__ = ["LATENTS", "DrawnOptions", "draw_latents"]

LATENTS = "latents"
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class DrawnOptions:
    """Where to read and write, and how to draw."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    prepared: Path = Path("runs/pocket/prepared")
    """Folder with the features of the captions."""
    denoiser: Path = Path("runs/pocket/denoiser/state.pt")
    """Weights of the denoiser, or the `state.pt` of a run, whose average of the weights is taken."""
    out: Path = Path("runs/pocket/drawn.safetensors")
    """File to write."""
    count: int = 1536
    """Number of latents."""
    guidance: float = 4.0
    """Scale of classifier-free guidance; pocket's own unless given."""
    steps: int = 16
    """Denoising steps."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of captions and noise."""

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; give at least 1.")


def draw_latents(options: DrawnOptions) -> None:
    """Draw, and write the file.

    Raises:
        CorpusError: the corpus or its preparation is not finished.
        OptionError: the denoiser cannot be read.
    """
    prepared = Prepared(options.prepared, options.corpus)
    unet = make_denoiser()
    read_average(unet, options.denoiser)
    unet.to(options.device).eval()
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randint(0, prepared.training, (options.count,), generator=generator)
    empty = prepared.text(torch.tensor([-1]))
    parts = []
    for rows in track(chosen.split(BATCH), "Drawing"):
        noise = torch.randn(len(rows), LATENT_CHANNELS, LATENT_PX, LATENT_PX, generator=generator)
        contexts = torch.cat([empty.expand(len(rows), -1, -1), prepared.text(rows)])
        with torch.inference_mode(), native_autocast(options.device):
            parts.append(_denoised(unet, noise.to(options.device), contexts.to(options.device), options).cpu().half())
    write_atomically(options.out, save({LATENTS: torch.cat(parts)}))


def _denoised(
    unet: Any, latents: Float[Tensor, "n 8 16 16"], contexts: Float[Tensor, "2n tokens width"], options: DrawnOptions
) -> Float[Tensor, "n 8 16 16"]:
    """Denoise with guidance; the first half of the contexts is of the empty caption."""
    schedule: Any = DPMSolverMultistepScheduler.from_config(make_schedule().config)
    schedule.set_timesteps(options.steps)
    for time in schedule.timesteps:
        empty, captioned = unet(torch.cat([latents, latents]), time, contexts).sample.float().chunk(2)
        guided = empty + options.guidance * (captioned - empty)
        latents = schedule.step(guided, time, latents).prev_sample
    return latents


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(DrawnOptions, draw_latents, description=__doc__)
