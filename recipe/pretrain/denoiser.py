"""Train the denoiser: `python -m recipe.pretrain.denoiser --prepared runs/pocket/prepared --out runs/pocket/denoiser`.

The learning rate is constant, so that a run can be lengthened at any time. It falls to zero only in the last
`--decay-pictures` or `--decay-minutes`; the state before that is kept in `constant.pt`. To look at a long run, let the
learning rate of a copy fall:
`--start-from runs/pocket/denoiser/state.pt --out runs/pocket/look --minutes 20 --decay-minutes 20`.
Writes `state.pt` every five minutes, and `weights.safetensors`, the average of the weights, at the end; the command
resumes.
"""

import math
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moongate.errors import OptionError, first_line
from recipe.command import command
from recipe.fitting import STATE_FILE, Constant, Stage, fit, hidden_weights, native_autocast
from recipe.networks import load_into, make_denoiser, make_schedule, write_weights
from recipe.pretrain.prepare import Prepared
from recipe.team import Team, run_in_team

__all__ = ["DenoiserOptions", "read_average", "train_denoiser"]

WEIGHTS_FILE, HEAD_FILE = "weights.safetensors", "head.safetensors"
BATCHES = 2
"""Batches of a step."""
FAVORED_LEVEL, FAVORED_SPREAD = 0.8, 1.0
"""Three noise levels in four are drawn logit-normally, half of them above 0.69, where the outline of objects is
decided; the fourth is uniform, because sampling begins at the very end and needs all levels."""
HEAD_CHANNELS, FEATURE_CHANNELS = 256, 112


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions:
    """Where to read and write, how long to train, and how."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    prepared: Path = Path("runs/pocket/prepared")
    """Folder of latents and features, which `recipe.pretrain.prepare` writes."""
    out: Path = Path("runs/pocket/denoiser")
    """Output folder; the run in it goes on."""
    start_from: Path | None = None
    """What a new run begins with: the state of another run (its optimizers go on), or weights in a safetensors file
    (with `head.safetensors` in the same folder, if it is there). None begins at random."""
    pictures_before: int | None = None
    """Pictures that the weights in `start_from` have seen, if the file does not say it."""
    pictures: int = 4_000_000
    """Stop when the model has seen this many pictures, including those before."""
    minutes: float = math.inf
    """Stop after this time of training, over all restarts."""
    decay_pictures: int = 0
    """Let the learning rate fall to zero over the last pictures."""
    decay_minutes: float = 0.0
    """Let the learning rate fall to zero over the last minutes."""
    processes: int = 1
    """Processes of one thread, 1 or 2; the result is the same."""
    batch: int = 64
    """Pictures of a batch; a step has two batches."""
    lr: float = 1e-3
    """Learning rate, of Muon and of AdamW."""
    pairs_share: float = 0.45
    """Share of pictures with two objects."""
    unconditional_share: float = 0.1
    """Share of pictures whose caption is left out, for classifier-free guidance."""
    repa_weight: float = 0.5
    """Weight of the loss between the denoiser's middle and the features of EfficientNet-Lite0 (REPA); at 0, steps are
    faster."""
    average_decay: float = 0.999
    """Decay of the average of the weights."""
    checkpoint_minutes: float = 5.0
    """Time between two checkpoints."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 1
    """Seed of all randomness."""

    def __post_init__(self) -> None:
        if self.decay_minutes and math.isinf(self.minutes):
            raise OptionError(f"decay_minutes is {self.decay_minutes}, but minutes has no limit. Give --minutes.")
        for name in ("pairs_share", "unconditional_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be in 0..1.")


def train_denoiser(options: DenoiserOptions, team: Team) -> None:
    """Train, and write the average of the weights.

    Raises:
        CorpusError: the corpus or its preparation is not finished.
        OptionError: the start cannot be read, or the output folder holds a run with other settings.
    """
    prepared = Prepared(options.prepared, options.corpus)
    torch.manual_seed(options.seed)
    unet = make_denoiser()
    head = _make_head(unet.config.block_out_channels[-1])
    model = nn.ModuleDict({"unet": unet, "head": head}).to(options.device)
    resumes = (options.out / STATE_FILE).exists()
    start = None
    if options.start_from is not None and not resumes:
        start = _read_start(model, options.start_from, options.pictures_before)
    losses = _Losses(model, prepared, options)
    stage = Stage(
        batch=options.batch,
        shards=BATCHES,
        lr=options.lr,
        average_decay=options.average_decay,
        seed=options.seed,
        checkpoint_minutes=options.checkpoint_minutes,
        device=options.device,
    )
    schedule = Constant(
        pictures=options.pictures,
        minutes=options.minutes,
        decay_pictures=options.decay_pictures,
        decay_minutes=options.decay_minutes,
    )
    position = fit(
        model, losses, schedule, stage, folder=options.out, muon=hidden_weights(unet), team=team, start=start
    )
    if team.leads:
        write_weights(options.out / WEIGHTS_FILE, unet.state_dict(), pictures_seen=position.pictures)
        write_weights(options.out / HEAD_FILE, head.state_dict())


def read_average(unet: nn.Module, path: Path) -> int | None:
    """Load the averaged weights of a run into a denoiser.

    Args:
        unet: a denoiser of the recipe's architecture.
        path: `weights.safetensors`, or the `state.pt` of a run.

    Returns:
        How many pictures it has seen; None when the file does not say so.

    Raises:
        OptionError: the file cannot be read, or is of another network.
    """
    if path.suffix == ".safetensors":
        noted = load_into(unet, path).get("pictures_seen")
        return None if noted is None else int(noted)
    state = _read_state(path)
    prefix = "unet."
    weights = {name.removeprefix(prefix): value for name, value in state["average"].items() if name.startswith(prefix)}
    unet.load_state_dict(weights)
    seen: int = state["position"]["pictures"]
    return seen


class _Losses:
    """The parts of the loss of one batch."""

    def __init__(self, model: nn.ModuleDict, prepared: Prepared, options: DenoiserOptions) -> None:
        unet: Any = model["unet"]
        self.unet, self.head = unet, model["head"]
        self.prepared, self.options, self.schedule = prepared, options, make_schedule()
        self.features = prepared.features if options.repa_weight else None
        self.middle: Tensor | None = None
        unet.mid_block.attentions[0].register_forward_hook(self._keep_middle)

    def __call__(self, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """Return the loss of v-prediction, and one minus the cosine to the features of a network that sees (REPA)."""
        options, device = self.options, self.options.device
        chosen = self._choose(options.batch, generator)
        dropped = torch.rand(options.batch, generator=generator) < options.unconditional_share
        context = self.prepared.text(torch.where(dropped, -1, chosen)).to(device)
        clean = self.prepared.latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = _times(options.batch, generator)
        noisy = self.schedule.add_noise(clean, noise, times).to(device)
        velocity = self.schedule.get_velocity(clean, noise, times).to(device)
        with native_autocast(device):
            predicted = self.unet(noisy, times.to(device), context).sample
        parts = {"v": F.mse_loss(predicted.float(), velocity)}
        if self.features is not None:
            parts["repa"] = options.repa_weight * self._distance_to(self.features[chosen].to(device))
        return parts

    def _distance_to(self, features: Float[Tensor, "n channels rows columns"]) -> Float[Tensor, ""]:
        """Return one minus the cosine of what the head makes of the middle to the normalized features."""
        with native_autocast(self.options.device):
            seen = self.head(self.middle)
        means, spreads = features.mean((2, 3), keepdim=True), features.std((2, 3), keepdim=True)
        features = (features - means) / (spreads + 1e-3)
        return 1 - F.cosine_similarity(seen.float(), features, dim=1).mean()

    def _choose(self, count: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        pairs, singles = self.prepared.pairs, self.prepared.singles
        is_pair = torch.rand(count, generator=generator) < self.options.pairs_share
        pair = pairs[torch.randint(0, len(pairs), (count,), generator=generator)]
        single = singles[torch.randint(0, len(singles), (count,), generator=generator)]
        return torch.where(is_pair, pair, single)

    def _keep_middle(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.middle = output[0] if isinstance(output, tuple) else output.sample


def _times(count: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return stratified times in 0..999: every batch covers the whole range, so that its gradient varies less."""
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    favored = torch.sigmoid(FAVORED_LEVEL + FAVORED_SPREAD * torch.special.ndtri(strata))
    levels = torch.where(torch.arange(count) % 4 == 0, strata, favored)
    return (levels * 1000).long().clamp(max=999)


def _make_head(channels: int) -> nn.Sequential:
    """Return the head between the denoiser's middle and the features; a convolution keeps what lies where (iREPA)."""
    return nn.Sequential(
        nn.Conv2d(channels, HEAD_CHANNELS, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(HEAD_CHANNELS, FEATURE_CHANNELS, 1),
    )


def _read_start(model: nn.ModuleDict, path: Path, pictures_before: int | None) -> dict[str, Any]:
    """Return the checkpoint to begin from: another run's, or one made of weights alone."""
    if path.suffix == ".safetensors":
        seen = load_into(model["unet"], path).get("pictures_seen", pictures_before)
        if (path.parent / HEAD_FILE).exists():
            load_into(model["head"], path.parent / HEAD_FILE)
        weights = model.state_dict()
        state: dict[str, Any] = {"model": weights, "average": weights, "optimizers": [], "position": {}}
    else:
        state = _read_state(path)
        seen = state["position"]["pictures"]
    if seen is None:
        raise OptionError(f"{path} does not say how many pictures it has seen. Give --pictures-before.")
    return state | {"position": {**state["position"], "pictures": int(seen), "seconds": 0.0}}


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OptionError(f"There is no file {path}. Give the state.pt of a run, or a safetensors file.")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise OptionError(f"{path} is not the state of a run ({first_line(error)}). Give a state.pt.") from error
    if not {"model", "average", "optimizers", "position"} <= state.keys():
        raise OptionError(f"{path} is not the state of a run. Give a state.pt, or a safetensors file.")
    return state


if __name__ == "__main__":
    command(DenoiserOptions, partial(run_in_team, train_denoiser), description=__doc__)
