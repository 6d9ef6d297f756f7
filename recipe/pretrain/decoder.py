"""Sharpen the decoder against a critic: `python -m recipe.pretrain.decoder --out runs/pocket/decoder`.

The encoder is frozen, so that stored latents stay valid. An average of all likely pictures lacks sharp edges and
texture. The decoder learns them from a pretrained network (`recipe.pretrain.perception`), and from critics: one of
patches of pixels (Esser et al., "Taming Transformers", 2021, Sec. 3.1), whose features it matches too, and one at each
depth of that network (Sauer et al., "Projected GANs", 2021). With `--drawn` the critics also see what the decoder makes
of latents that the denoiser drew, which are what it will decode. Every `--measure-every` steps the held-out PSNR is
measured; the last decoder that has at least `--least-psnr-db` is kept. It begins with the autoencoder's own decoder,
which may be smaller. Writes `weights.safetensors` with the whole autoencoder; the command resumes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from moongate.errors import OptionError
from recipe.command import command
from recipe.corpus import Corpus
from recipe.fitting import Constant, Position, Stage, fit, hidden_weights, native_autocast
from recipe.networks import load_autoencoder, read_weights, write_weights
from recipe.pretrain.autoencoder import CELL_PX, CROP_PX, WEIGHTS_FILE, picture_loss, psnr_db
from recipe.pretrain.drawn import LATENTS
from recipe.pretrain.perception import DEPTHS, Perception, perceptual_distance
from recipe.pretrain.prepare import Prepared

__all__ = ["DecoderOptions", "train_decoder"]

LATENT_NOISE = 0.02
"""Standard deviation of the noise on latents before they are decoded."""
FEATURES_WEIGHT = 2.0
"""Weight of the critic's features, relative to its scores."""
DEPTHS_WEIGHT = 2.0
"""Weight of the critics of perceptual features, relative to that of pixels."""
CRITIC_ALONE_STEPS, CRITIC_RISE_STEPS = 30, 30
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
    drawn: Path | None = None
    """Latents that a denoiser drew (`recipe.pretrain.drawn`), for the critics; none unless given."""
    out: Path = Path("runs/pocket/decoder")
    """Output folder."""
    steps: int = 2000
    """Number of steps; in the second half the learning rate falls to zero."""
    batch: int = 24
    """Crops of a step."""
    drawn_batch: int = 8
    """Crops of drawn latents beside them, with `--drawn`."""
    lr: float = 1e-3
    """Learning rate, of the decoder and of the critics."""
    perceptual_weight: float = 8.0
    """Weight of the distance between perceived features."""
    critic_weight: float = 0.1
    """Weight of the adversarial loss. Lower it when the PSNR stays below the limit."""
    least_psnr_db: float = 29.0
    """Held-out PSNR that the decoder must have."""
    measure_every: int = 200
    """Steps between two measurements."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of all randomness."""


def train_decoder(options: DecoderOptions) -> None:
    """Train, and write the last decoder that had the least PSNR when it was measured.

    Raises:
        CorpusError: the corpus or its preparation is not finished.
        MissingLibrary: the packages of EfficientNet-Lite1 are not installed.
        OptionError: the autoencoder or the drawn latents cannot be read, or no decoder reached the least PSNR.
    """
    corpus, prepared = Corpus(options.corpus), Prepared(options.prepared, options.corpus)
    torch.manual_seed(options.seed)
    model = load_autoencoder(options.autoencoder)
    model.to(options.device, memory_format=torch.channels_last)
    players = nn.ModuleDict({"decoder": model.decoder, "critics": _make_critics()})
    players.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    losses = _Losses(players, corpus, prepared, options)
    stage = Stage(batch=options.batch, lr=options.lr, betas=(0.5, 0.99), seed=options.seed, device=options.device)
    crops = options.steps * options.batch
    whole = Constant(pictures=crops, decay_pictures=crops // 2)
    console, kept, psnr = Console(), (options.out / WEIGHTS_FILE).exists(), 0.0
    for stop in [*range(options.measure_every, options.steps, options.measure_every), options.steps]:
        until = _Until(whole, stop)
        position = fit(players, losses, until, stage, folder=options.out, muon=hidden_weights(model.decoder))
        if position.step > stop:  # a run that goes on has measured this already
            continue
        psnr = psnr_db(model, corpus, MEASURED_PICTURES, device=options.device)
        console.print(f"{stop} steps: {psnr:.2f} dB on held-out pictures")
        if psnr >= options.least_psnr_db:
            write_weights(options.out / WEIGHTS_FILE, model.state_dict(), psnr_db=round(psnr, 2))
            kept = True
    if not kept:
        raise OptionError(
            f"The held-out PSNR is {psnr:.2f} dB at the end, below {options.least_psnr_db}. Lower --critic-weight "
            f"({options.critic_weight}) or --perceptual-weight ({options.perceptual_weight}), or train longer."
        )


@dataclass(frozen=True)
class _Until:
    """A part of a longer schedule, up to a step at which the decoder is measured."""

    whole: Constant
    stop: int

    def factor(self, position: Position) -> float | None:
        return None if position.step >= self.stop else self.whole.factor(position)

    def is_falling(self, position: Position) -> bool:
        return self.whole.is_falling(position)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.whole.settings, "crops": self.whole.pictures}


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


def _depth_critic(channels: int) -> nn.Sequential:
    kernels = [spectral_norm(nn.Conv2d(*each)) for each in ((channels, 64, 1), (64, 64, 3, 1, 1), (64, 1, 1))]
    return nn.Sequential(kernels[0], nn.LeakyReLU(0.2), kernels[1], nn.LeakyReLU(0.2), kernels[2])


def _make_critics() -> nn.ModuleDict:
    return nn.ModuleDict({"pixels": Critic(), "depths": nn.ModuleList(map(_depth_critic, DEPTHS))})


class _Losses:
    """The parts of the loss of one batch: of the decoder, and of the critics."""

    def __init__(self, players: nn.ModuleDict, corpus: Corpus, prepared: Prepared, options: DecoderOptions) -> None:
        self.decoder, self.critics = players["decoder"], cast(nn.ModuleDict, players["critics"])
        self.perception = Perception().to(options.device)
        self.corpus, self.prepared, self.options = corpus, prepared, options
        self.drawn = None if options.drawn is None else _read_drawn(options.drawn)

    def __call__(self, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        device = self.options.device
        latents, images = self._crops(generator)
        latents = latents.to(device, memory_format=torch.channels_last)
        images = images.to(device, memory_format=torch.channels_last)
        inside = (..., slice(EDGE_PX, -EDGE_PX), slice(EDGE_PX, -EDGE_PX))
        stored = slice(len(images))
        with native_autocast(device):
            decoded = self.decoder(latents)
            with torch.no_grad():
                seen = self.perception(images[inside])
            decoded_seen = self.perception(decoded[inside])
            real_scores, real_features = self.critics["pixels"](images[inside])
            critic = self._critic_loss(real_scores, seen, decoded.detach()[inside], decoded_seen)
            self.critics.requires_grad_(False)  # the decoder's part of the loss must not train the critics
            adversarial = self._adversarial_loss(real_features, decoded[inside], decoded_seen)
            self.critics.requires_grad_(True)
        rise = min(1.0, max(0, step - CRITIC_ALONE_STEPS) / CRITIC_RISE_STEPS)
        perceptual = perceptual_distance([each[stored] for each in decoded_seen], seen)
        return {
            "picture": picture_loss(decoded[stored].float(), images),
            "perceptual": self.options.perceptual_weight * perceptual,
            "adversarial": rise * self.options.critic_weight * adversarial,
            "critic": critic,
        }

    def _critic_loss(
        self, real_scores: Tensor, seen: list[Tensor], decoded: Tensor, decoded_seen: list[Tensor]
    ) -> Tensor:
        """Return how often the critics are wrong, as hinge losses; those of the depths are averaged."""
        loss = _hinge(real_scores, self.critics["pixels"](decoded)[0])
        depths = zip(cast(nn.ModuleList, self.critics["depths"]), seen, decoded_seen, strict=True)
        return loss + torch.stack([_hinge(critic(a), critic(b.detach())) for critic, a, b in depths]).mean()

    def _adversarial_loss(self, real_features: list[Tensor], decoded: Tensor, decoded_seen: list[Tensor]) -> Tensor:
        """Return how little decoded crops deceive the critics, and how far the critic's features are from real ones."""
        scores, features = self.critics["pixels"](decoded)
        pairs = zip(features, real_features, strict=True)
        matched = [F.l1_loss(own[: len(real)].float(), real.detach().float()) for own, real in pairs]
        depths = zip(cast(nn.ModuleList, self.critics["depths"]), decoded_seen, strict=True)
        perceived = torch.stack([critic(each).float().mean() for critic, each in depths]).mean()
        return FEATURES_WEIGHT * torch.stack(matched).sum() - scores.float().mean() - DEPTHS_WEIGHT * perceived

    def _crops(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return crops of stored latents with noise, then of drawn ones; and of the pictures of those stored."""
        chosen = torch.randint(0, self.corpus.training, (self.options.batch,), generator=generator).sort().values
        latents, images = self.prepared.latents[chosen], self.corpus.images(chosen)
        cells = CROP_PX // CELL_PX
        top, left = torch.randint(0, latents.shape[-1] - cells + 1, (2,), generator=generator).tolist()
        within = (..., slice(top, top + cells), slice(left, left + cells))
        rows, columns = slice(CELL_PX * top, CELL_PX * top + CROP_PX), slice(CELL_PX * left, CELL_PX * left + CROP_PX)
        stored = latents[within] + LATENT_NOISE * torch.randn(latents[within].shape, generator=generator)
        if self.drawn is None:
            return stored, images[:, :, rows, columns]
        picked = torch.randint(0, len(self.drawn), (self.options.drawn_batch,), generator=generator)
        return torch.cat([stored, self.drawn[picked][within]]), images[:, :, rows, columns]


def _read_drawn(path: Path) -> Float[Tensor, "n 8 16 16"]:
    weights, _ = read_weights(path)
    if LATENTS not in weights:
        raise OptionError(f"{path} holds no {LATENTS}. Give a file that `recipe.pretrain.drawn` writes as --drawn.")
    return weights[LATENTS]


def _hinge(real: Tensor, decoded: Tensor) -> Tensor:
    return F.relu(1 - real.float()).mean() + F.relu(1 + decoded.float()).mean()


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(DecoderOptions, train_decoder, description=__doc__)
