"""Sharpen the decoder against a critic: `python -m recipe.pretrain.decoder --out runs/pocket/decoder`.

The encoder stays as it is, so that stored latents stay valid. What an average of all likely pictures lacks, sharp edges
and texture, is what the critic asks for (Esser et al., "Taming Transformers", 2021, Sec. 3.1); the decoder also matches
the critic's features of the real picture. Every `--measure-every` steps the held-out PSNR is measured; training stops
when it falls below `--least-psnr-db`, and the decoder from before that is kept. Writes `weights.safetensors`, the whole
autoencoder; the command resumes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from moongate.errors import OptionError
from recipe.command import command
from recipe.corpus import Corpus
from recipe.fitting import Constant, Stage, fit, native_autocast
from recipe.networks import load_into, make_autoencoder, write_weights
from recipe.pretrain.autoencoder import CELL_PX, CROP_PX, WEIGHTS_FILE, picture_loss, psnr_db
from recipe.pretrain.prepare import Prepared

__all__ = ["DecoderOptions", "train_decoder"]

LATENT_NOISE = 0.03
"""Standard deviation of the noise on latents before they are decoded."""
FEATURES_WEIGHT = 2.0
"""Weight of the critic's features beside its scores."""
CRITIC_ALONE_STEPS, CRITIC_RISE_STEPS = 150, 200
"""The critic learns alone first; then its part of the decoder's loss rises to its full weight."""
EDGE_PX = 8
"""Border of a crop that the critic does not see, because the decoder lacks the cells around it."""
MEASURED_PICTURES = 192


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """Where to read and write, and how long to train."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    prepared: Path = Path("runs/pocket/prepared")
    """Folder of the stored latents."""
    autoencoder: Path = Path("runs/pocket/autoencoder/weights.safetensors")
    """Weights of the autoencoder that made the latents."""
    out: Path = Path("runs/pocket/decoder")
    """Output folder."""
    steps: int = 2000
    """Largest number of steps."""
    batch: int = 32
    """Crops of a step."""
    lr: float = 4e-4
    """Learning rate, of the decoder and of the critic."""
    critic_weight: float = 0.05
    """Weight of the adversarial loss. Lower it when the PSNR falls below the limit too soon."""
    least_psnr_db: float = 29.0
    """Held-out PSNR below which training stops."""
    measure_every: int = 200
    """Steps between two measurements."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of all randomness."""


def train_decoder(options: DecoderOptions) -> None:
    """Train until the steps are done or the PSNR falls below the limit; write the last decoder that kept it.

    Raises:
        CorpusError: the corpus or its preparation is not finished.
        OptionError: the autoencoder cannot be read, or no decoder reached the least PSNR.
    """
    corpus, prepared = Corpus(options.corpus), Prepared(options.prepared, options.corpus)
    torch.manual_seed(options.seed)
    model = make_autoencoder()
    load_into(model, options.autoencoder)
    model.to(options.device, memory_format=torch.channels_last)
    players = nn.ModuleDict({"decoder": model.decoder, "critic": Critic()})
    players.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    losses = _Losses(players, corpus, prepared, options)
    stage = Stage(batch=options.batch, lr=options.lr, betas=(0.5, 0.99), seed=options.seed, device=options.device)
    console, kept = Console(), False
    for stop in [*range(options.measure_every, options.steps, options.measure_every), options.steps]:
        fit(players, losses, Constant(pictures=stop * options.batch), stage, folder=options.out)
        psnr = psnr_db(model, corpus, MEASURED_PICTURES, device=options.device)
        console.print(f"{stop} steps: {psnr:.2f} dB on held-out pictures")
        if psnr < options.least_psnr_db:
            break
        write_weights(options.out / WEIGHTS_FILE, model.state_dict(), psnr_db=round(psnr, 2))
        kept = True
    if not kept:
        raise OptionError(
            f"The held-out PSNR is {psnr:.2f} dB at the first measurement, below {options.least_psnr_db}. Lower "
            f"--critic-weight ({options.critic_weight}), or train the autoencoder longer."
        )


class Critic(nn.Module):
    """Scores of overlapping patches, above zero for real ones and below for decoded ones, and features for matching."""

    def __init__(self) -> None:
        super().__init__()
        kernels = (
            nn.Conv2d(3, 48, 4, 2, 1),
            nn.Conv2d(48, 96, 4, 2, 1),
            nn.Conv2d(96, 128, 3, 1, 1),
            nn.Conv2d(128, 1, 3, 1, 1),
        )
        self.kernels = nn.ModuleList(map(spectral_norm, kernels))

    def forward(
        self, images: Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n 1 rows columns"], list[Tensor]]:
        *hidden, last = self.kernels
        features = []
        for kernel in hidden:
            images = F.leaky_relu(kernel(images), 0.2)
            features.append(images)
        return last(images), features


class _Losses:
    """The parts of the loss of one batch: of the decoder, and of the critic."""

    def __init__(self, players: nn.ModuleDict, corpus: Corpus, prepared: Prepared, options: DecoderOptions) -> None:
        self.decoder, self.critic = players["decoder"], players["critic"]
        self.corpus, self.prepared, self.options = corpus, prepared, options

    def __call__(self, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        device = self.options.device
        latents, images = self._crops(generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = (latents + LATENT_NOISE * noise).to(device, memory_format=torch.channels_last)
        images = images.to(device, memory_format=torch.channels_last)
        inside = (..., slice(EDGE_PX, -EDGE_PX), slice(EDGE_PX, -EDGE_PX))
        with native_autocast(device):
            decoded = self.decoder(noisy)
            real_scores, real_features = self.critic(images[inside])
            decoded_scores, _ = self.critic(decoded.detach()[inside])
            self.critic.requires_grad_(False)  # the decoder's part of the loss must not train the critic
            deceived_scores, features = self.critic(decoded[inside])
            self.critic.requires_grad_(True)
        hinge = F.relu(1 - real_scores.float()).mean() + F.relu(1 + decoded_scores.float()).mean()
        matched = [
            F.l1_loss(own.float(), real.detach().float()) for own, real in zip(features, real_features, strict=True)
        ]
        adversarial = FEATURES_WEIGHT * torch.stack(matched).sum() - deceived_scores.float().mean()
        rise = min(1.0, max(0, step - CRITIC_ALONE_STEPS) / CRITIC_RISE_STEPS)
        return {
            "picture": picture_loss(decoded.float(), images),
            "adversarial": rise * self.options.critic_weight * adversarial,
            "critic": hinge,
        }

    def _crops(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return crops of stored latents, and the same crops of their pictures."""
        chosen = torch.randint(0, self.corpus.training, (self.options.batch,), generator=generator).sort().values
        latents, images = self.prepared.latents[chosen], self.corpus.images(chosen)
        cells = CROP_PX // CELL_PX
        top, left = torch.randint(0, latents.shape[-1] - cells + 1, (2,), generator=generator).tolist()
        rows, columns = slice(CELL_PX * top, CELL_PX * top + CROP_PX), slice(CELL_PX * left, CELL_PX * left + CROP_PX)
        return latents[:, :, top : top + cells, left : left + cells], images[:, :, rows, columns]


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(DecoderOptions, train_decoder, description=__doc__)
