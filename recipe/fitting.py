"""The training loop of all networks of pocket: resumable, with Muon, an average of the weights, and a schedule.

The randomness of a step depends on the seed, the step and the batch alone, so that a resumed run repeats what an
uninterrupted one does, and one process computes the same as two (`recipe.team`). The module knows no network and no
data: a stage brings its model and its losses.
"""

import dataclasses
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from rich.progress import Progress as Bar
from rich.progress import TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from moongate.errors import OptionError, TrainingDiverged
from moongate.files import write_atomically
from recipe.team import Team

__all__ = [
    "CONSTANT_FILE",
    "STATE_FILE",
    "Constant",
    "Cosine",
    "Position",
    "Stage",
    "fit",
    "hidden_weights",
    "native_autocast",
]

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
CONSTANT_FILE = "constant.pt"
"""The checkpoint from before the learning rate began to fall, from which a longer run starts."""
LOG_EVERY = 50
"""Steps between lines of the log."""
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.01
Losses = Callable[[torch.Generator, int], Mapping[str, Tensor]]
"""From a generator and the step, the parts of the loss of one batch, by name; their sum is minimized."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How a network is trained. A run resumes only under the same values, except for the last two."""

    batch: int
    """Pictures of a batch."""
    lr: float
    """Largest learning rate, of Muon and of AdamW."""
    shards: int = 1
    """Batches of a step, whose gradients are averaged; several processes share them."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two averages."""
    average_decay: float = 0.99
    """Decay of the average of the weights; the first steps use a smaller one."""
    seed: int = 0
    checkpoint_minutes: float = 5.0
    """Time between two checkpoints."""
    device: str = "cpu"


@dataclass(kw_only=True)
class Position:
    """How far a run has come."""

    step: int = 0
    pictures: int = 0
    """Pictures seen, including those that the starting weights had seen."""
    seconds: float = 0.0
    """Time of training, over all restarts."""


class Schedule(Protocol):
    """The factor on the learning rate at a position."""

    def factor(self, position: Position) -> float | None:
        """Return a factor in 0..1, or None at the end of the run."""

    def is_falling(self, position: Position) -> bool:
        """Return whether the learning rate has begun to fall; a longer run would have to start from before that."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What must stay the same when a run resumes."""


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """A warm-up, then a cosine that falls to zero."""

    steps: int

    def factor(self, position: Position) -> float | None:
        if position.step >= self.steps:
            return None
        warm = min(1.0, (position.step + 1) / min(WARMUP_STEPS, self.steps // 10 + 1))
        return warm * 0.5 * (1 + math.cos(math.pi * position.step / self.steps))

    def is_falling(self, position: Position) -> bool:
        return False  # it falls all the time, and its length is a fixed setting

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A warm-up, then a constant, which may fall to zero linearly at the end. The run ends at the nearer limit."""

    pictures: float = math.inf
    """Pictures seen at the end."""
    minutes: float = math.inf
    """Time of training at the end, over all restarts."""
    decay_pictures: float = 0
    """Length of the fall in pictures."""
    decay_minutes: float = 0
    """Length of the fall in time."""

    def factor(self, position: Position) -> float | None:
        if min(self._left(position)) <= 0:
            return None
        return min(1.0, (position.step + 1) / WARMUP_STEPS, *self._falls(position))

    def is_falling(self, position: Position) -> bool:
        return any(fall < 1 for fall in self._falls(position))

    def _left(self, position: Position) -> tuple[float, float]:
        return self.pictures - position.pictures, 60 * self.minutes - position.seconds

    def _falls(self, position: Position) -> list[float]:
        lengths = self.decay_pictures, 60 * self.decay_minutes
        return [left / length for left, length in zip(self._left(position), lengths, strict=True) if length]

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}


def fit(
    model: nn.Module,
    losses: Losses,
    schedule: Schedule,
    stage: Stage,
    *,
    folder: Path,
    muon: Sequence[nn.Parameter] = (),
    team: Team | None = None,
    start: Mapping[str, Any] | None = None,
) -> Position:
    """Minimize the sum of the losses, then load the average of the weights into the model.

    Args:
        model: everything that is trained; it must be on the stage's device and have its memory layout.
        losses: the parts of the loss of one batch, by name.
        schedule: the learning rate over the run, and the end of the run.
        stage: batch, learning rate and the like.
        folder: where the checkpoint and the log are kept. A run in it goes on; a finished one only loads its average.
        muon: the weights that Muon trains, see `hidden_weights`; AdamW trains the others.
        team: the processes that share the batches.
        start: a checkpoint to begin from when the folder has none.

    Returns:
        How far the run has come.

    Raises:
        OptionError: the folder holds a run with other settings.
        TrainingDiverged: the loss is not a finite number; the last checkpoint remains.
    """
    team = team or Team()
    run = _Run(model, schedule, stage, muon=muon, folder=folder)
    run.resume(start)
    model.train()
    first, began = run.position.pictures, time.monotonic()
    saved, seconds_before = began, run.position.seconds
    with _Log(folder, team) as log:
        while (factor := _agreed(run, team)) is not None:
            if team.leads:
                run.keep_constant()
            parts = _gradients(model, losses, stage, run.position.step, team)
            run.step(factor * stage.lr)
            now = time.monotonic()
            run.position.seconds = seconds_before + now - began
            log.write(run.position, parts, speed=(run.position.pictures - first) / (now - began))
            if team.leads and now - saved > 60 * stage.checkpoint_minutes:
                run.save(STATE_FILE)
                saved = now
    if team.leads and run.position.pictures > first:
        run.save(STATE_FILE)
    model.load_state_dict(run.average)
    model.eval()
    return run.position


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights for Muon: all matrices and kernels except the first and the last."""
    return [weight for weight in model.parameters() if weight.ndim > 1][1:-1]


def native_autocast(device: str) -> torch.autocast:
    """Compute in bfloat16 where the device has instructions for it; a CPU without them takes ten times as long."""
    kind = torch.device(device).type
    native = kind != "cpu" or any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(kind, torch.bfloat16, enabled=native)


def _agreed(run: "_Run", team: Team) -> float | None:
    """Return the factor on the learning rate, or None at the end; clocks differ, so the first process decides."""
    factor = run.schedule.factor(run.position)
    shared = team.agreed(math.nan if factor is None else factor)
    return None if math.isnan(shared) else shared


def _gradients(model: nn.Module, losses: Losses, stage: Stage, step: int, team: Team) -> dict[str, float]:
    """Set the gradients of the weights to their mean over all batches of a step; return the mean losses seen here."""
    own = team.shards(stage.shards)
    sums: dict[str, float] = {}
    loss = 0.0
    for shard in own:
        generator = torch.Generator().manual_seed((stage.seed * 10**7 + step) * 64 + shard)
        parts = losses(generator, step)
        total = torch.stack([part.float() for part in parts.values()]).sum()
        total.backward()
        loss += total.item()
        sums = {name: sums.get(name, 0.0) + part.item() / len(own) for name, part in parts.items()}
    loss = team.summed(loss)  # each process learns of a bad loss in another one
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"The loss of step {step} is {loss}. The last checkpoint remains; resume with a lower learning rate than "
            f"{stage.lr} in a new folder."
        )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    team.sum_gradients(weights)
    if stage.shards > 1:
        for weight in weights:
            if weight.grad is not None:
                weight.grad /= stage.shards
    nn.utils.clip_grad_norm_(weights, 1.0)
    return sums


class _Run:
    """What a checkpoint holds: weights, their average, the optimizers and the position."""

    def __init__(
        self, model: nn.Module, schedule: Schedule, stage: Stage, *, muon: Sequence[nn.Parameter], folder: Path
    ) -> None:
        self.model, self.schedule, self.stage, self.folder = model, schedule, stage, folder
        self.optimizers = _optimizers(model, stage, muon)
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self.position = Position()
        settings = dataclasses.asdict(stage) | {"betas": list(stage.betas)} | dict(schedule.settings)
        self.settings = {key: value for key, value in settings.items() if key not in ("checkpoint_minutes", "device")}

    def resume(self, start: Mapping[str, Any] | None) -> None:
        """Load the checkpoint in the folder, or else `start`, which may come from a run of other settings."""
        file = self.folder / STATE_FILE
        if not file.exists():
            if start is not None:
                self._restore(start)
            return
        state = torch.load(file, weights_only=True, map_location=self.stage.device)
        earlier = state["settings"]
        changes = [
            f"{key} {earlier.get(key)}, now {value}"
            for key, value in self.settings.items()
            if earlier.get(key) != value
        ]
        if changes:
            raise OptionError(
                f"{file} belongs to a run with other settings: {'; '.join(changes)}. Use the same settings, or choose "
                "another output folder."
            )
        self._restore(state)
        ended = self.schedule.factor(self.position) is None
        if state["falling"] and not ended and not self.schedule.is_falling(self.position):
            raise OptionError(
                f"The learning rate of the run in {self.folder} has begun to fall. To train longer, start another "
                f"folder from {self.folder / CONSTANT_FILE}."
            )

    def step(self, lr: float) -> None:
        """Change the weights by the gradients, and their average by the weights."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.pictures += self.stage.batch * self.stage.shards
        decay = min(self.stage.average_decay, (1 + self.position.step) / (10 + self.position.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)
                else:
                    self.average[key].copy_(value)

    def keep_constant(self) -> None:
        """Write a checkpoint of its own when the learning rate begins to fall."""
        if self.schedule.is_falling(self.position) and not (self.folder / CONSTANT_FILE).exists():
            self.save(CONSTANT_FILE)

    def save(self, name: str) -> None:
        """Write a checkpoint, completely or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "position": dataclasses.asdict(self.position),
            "settings": self.settings,
            "falling": name == STATE_FILE and self.schedule.is_falling(self.position),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(self.folder / name, content.getvalue())

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average = {key: value.clone() for key, value in state["average"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=False):
            optimizer.load_state_dict(saved)
        self.position = Position(**state["position"])


class _Muon(torch.optim.Muon):
    """Muon for matrices and kernels of any number of dimensions: a kernel counts as the matrix [out, all else].

    Its steps have the root mean square of AdamW's, so that both share a learning rate.
    """

    def __init__(self, weights: Sequence[nn.Parameter], lr: float) -> None:
        self.weights = list(weights)
        matrices = [nn.Parameter(_as_matrix(weight.detach())) for weight in self.weights]
        super().__init__(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        super().step()  # type: ignore[no-untyped-call]


def _as_matrix(weight: Tensor) -> Tensor:
    """View a matrix, or a kernel in either memory layout, as [out, all else]."""
    return weight.flatten(1) if weight.is_contiguous() else weight.movedim(1, -1).flatten(1)


def _optimizers(model: nn.Module, stage: Stage, muon: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    chosen = set(muon)
    rest = [weight for weight in model.parameters() if weight.requires_grad and weight not in chosen]
    adamw = torch.optim.AdamW(rest, lr=stage.lr, betas=stage.betas, weight_decay=WEIGHT_DECAY, fused=True)
    return [adamw, _Muon(muon, stage.lr)] if muon else [adamw]


class _Log:
    """Shows progress, and writes a line of JSON now and then; silent in all processes but the first."""

    def __init__(self, folder: Path, team: Team) -> None:
        self.folder, self.team = folder, team
        self.means: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.bar = Bar(TextColumn("{task.description}"), TimeElapsedColumn(), disable=not self.team.leads)
        self.bar.start()
        self.task = self.bar.add_task(self.folder.name, total=None)
        if self.team.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lines = (self.folder / LOG_FILE).open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.team.leads:
            self.lines.close()

    def write(self, position: Position, losses: Mapping[str, float], *, speed: float) -> None:
        if not self.team.leads:
            return
        self.means = {name: 0.98 * self.means.get(name, loss) + 0.02 * loss for name, loss in losses.items()}
        words = "  ".join(f"{name} {mean:.4f}" for name, mean in self.means.items())
        text = f"{self.folder.name}  {position.pictures:,} pictures  {words}  {speed:.0f} pictures/s"
        self.bar.update(self.task, description=text)
        if position.step % LOG_EVERY == 0:
            line = dataclasses.asdict(position) | self.means | {"pictures_per_second": speed}
            self.lines.write(json.dumps(line) + "\n")
            self.lines.flush()
