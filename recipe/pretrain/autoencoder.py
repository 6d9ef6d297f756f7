"""Train the autoencoder: `python -m recipe.pretrain.autoencoder --corpus corpus --out runs/pocket/autoencoder`.

It has 8 latent channels. In a third of the steps a latent is rotated by multiples of 90 degrees and scaled, and must
decode to the picture rotated and scaled in the same way (Kouzelis et al., "EQ-VAE", 2025), which makes latents easier
to denoise. It begins with an earlier autoencoder, which may be smaller. Writes `weights.safetensors`; the command
resumes.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from moongate.pocket import weights_folder
from recipe.command import command
from recipe.corpus import Corpus
from recipe.fitting import Cosine, Stage, fit, hidden_weights, native_autocast
from recipe.networks import load_autoencoder, make_autoencoder, write_weights
from recipe.team import Team, run_in_team

__all__ = ["AutoencoderOptions", "picture_loss", "psnr_db", "train_autoencoder"]

WEIGHTS_FILE = "weights.safetensors"
CROP_PX, CELL_PX = 64, 8
"""Side of a training crop and of a latent cell."""
LATENT_NOISE = 0.05
"""Standard deviation of the noise on latents before they are decoded: the denoiser's latents are not exact either."""
MOMENTS_WEIGHT = 0.02
"""Weight of the loss that keeps each latent channel at mean 0 and deviation 1."""
MEASURED_PICTURES = 192


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """Where to read and write, and how long to train."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    out: Path = Path("runs/pocket/autoencoder")
    """Output folder."""
    start_from: Path | None = field(
        default_factory=lambda: weights_folder() / "vae" / "diffusion_pytorch_model.safetensors"
    )
    """Weights of an earlier autoencoder, or None to begin at random."""
    steps: int = 2000
    """Training steps; 2,000 take about 45 minutes on two cores."""
    batch: int = 64
    """Crops of a batch; a step has two batches."""
    lr: float = 1e-3
    """Largest learning rate."""
    equivariant_share: float = 0.35
    """Share of batches whose latents are turned and scaled."""
    processes: int = 1
    """Processes of one thread, 1 or 2; the result is the same."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of all randomness."""


def train_autoencoder(options: AutoencoderOptions, team: Team) -> None:
    """Train, measure on held-out pictures, and write the average of the weights.

    Raises:
        CorpusError: the corpus is not finished.
        OptionError: the weights to start from cannot be read, or the folder holds a run with other settings.
    """
    corpus = Corpus(options.corpus)
    torch.manual_seed(options.seed)
    model = make_autoencoder() if options.start_from is None else load_autoencoder(options.start_from)
    model.to(options.device, memory_format=torch.channels_last)

    def losses(generator: torch.Generator, step: int) -> dict[str, Tensor]:
        images = _crops(corpus, options.batch, generator).to(options.device, memory_format=torch.channels_last)
        with native_autocast(options.device):
            latents = model.encoder(images).float()
        moved, targets = latents, images
        if torch.rand((), generator=generator) < options.equivariant_share:
            moved, targets = _moved(latents, images, generator)
        noise = torch.randn(moved.shape, generator=generator).to(options.device)
        noisy = (moved + LATENT_NOISE * noise).contiguous(memory_format=torch.channels_last)
        with native_autocast(options.device):
            decoded = model.decoder(noisy).float()
        dims = (0, 2, 3)
        moments = latents.mean(dims).square().mean() + (latents.std(dims) - 1).square().mean()
        return {"picture": picture_loss(decoded, targets), "moments": MOMENTS_WEIGHT * moments}

    stage = Stage(batch=options.batch, shards=2, lr=options.lr, seed=options.seed, device=options.device)
    fit(model, losses, Cosine(steps=options.steps), stage, folder=options.out, muon=hidden_weights(model), team=team)
    if team.leads:
        psnr = psnr_db(model, corpus, MEASURED_PICTURES, device=options.device)
        write_weights(options.out / WEIGHTS_FILE, model.state_dict(), psnr_db=round(psnr, 2))
        Console().print(f"{psnr:.2f} dB on held-out pictures: {options.out / WEIGHTS_FILE}")


def picture_loss(
    decoded: Float[Tensor, "n 3 height width"], images: Float[Tensor, "n 3 height width"]
) -> Float[Tensor, ""]:
    """Return how far decoded pictures are from real ones: in squares, in absolute values, coarsely, and in edges."""
    loss = 4 * F.mse_loss(decoded, images) + F.l1_loss(decoded, images)
    if decoded.shape[-1] >= 16:
        loss = loss + F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(images, 4))
    for dim in (2, 3):
        loss = loss + 0.5 * F.l1_loss(decoded.diff(dim=dim), images.diff(dim=dim))
    return loss


@torch.no_grad()
def psnr_db(model: Any, corpus: Corpus, count: int, *, device: str = "cpu") -> float:
    """Return the mean peak signal-to-noise ratio of the first `count` held-out pictures, encoded and decoded.

    `model` is an autoencoder with an `encoder` and a `decoder`.
    """
    ratios = []
    for indices in corpus.held_out(count).split(32):
        images = corpus.images(indices).to(device)
        decoded = model.decoder(model.encoder(images)).clamp(-1, 1)
        ratios.append(10 * torch.log10(4 / (decoded - images).square().mean((1, 2, 3)).clamp(min=1e-10)))
    return torch.cat(ratios).mean().item()


def _crops(corpus: Corpus, count: int, generator: torch.Generator) -> Float[Tensor, "n 3 crop crop"]:
    """Return crops of random training pictures, all from one position that fits the latent cells, half mirrored."""
    chosen = torch.randint(0, corpus.training, (count,), generator=generator).sort().values
    images = corpus.images(chosen)
    cells = (images.shape[-1] - CROP_PX) // CELL_PX + 1
    top, left = (CELL_PX * torch.randint(0, cells, (2,), generator=generator)).tolist()
    crops = images[:, :, top : top + CROP_PX, left : left + CROP_PX]
    return crops.flip(3) if torch.rand((), generator=generator) < 0.5 else crops


def _moved(latents: Tensor, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn latents and pictures by the same number of quarters, and scale them to the same smaller size."""
    quarters = int(torch.randint(0, 4, (1,), generator=generator))
    side = int(torch.randint(3, latents.shape[-1] + 1, (1,), generator=generator))
    latents, images = torch.rot90(latents, quarters, (2, 3)), torch.rot90(images, quarters, (2, 3))
    if side < latents.shape[-1]:
        scale: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
        latents = F.interpolate(latents, size=(side, side), **scale)
        images = F.interpolate(images, size=(CELL_PX * side, CELL_PX * side), **scale)
    return latents, images


if __name__ == "__main__":
    command(AutoencoderOptions, partial(run_in_team, train_autoencoder), description=__doc__)
