"""The loop of every stage of pretraining: resumable, with an average of the weights and a falling rate."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Length, rate and optimizer of one training stage."""

    steps: int
    batch: int
    rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    """With "muon", all kernels and matrices but the first and the last are trained by Muon, the rest by AdamW."""


class Keeping(Protocol):
    """Where a stage keeps its checkpoints and its result, where it computes, and its seed."""

    @property
    def out(self) -> Path: ...

    @property
    def device(self) -> str: ...

    @property
    def checkpoint_minutes(self) -> float: ...

    @property
    def seed(self) -> int: ...


def fit(
    name: str,
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    stage: Stage,
    keeping: Keeping,
) -> nn.Module:
    """Minimize `loss_of` over the weights of `model` and load its exponential moving average into it.

    The randomness of a step depends on the seed and the step alone, so that a resumed run repeats what an
    uninterrupted one does. The rate warms up and falls to zero along a cosine.
    """
    done, checkpoint = keeping.out / name, keeping.out / f"{name}.pt"
    model.to(keeping.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if (done / "done").exists():
        model.load_state_dict(torch.load(done / "done", weights_only=True, map_location=keeping.device))
        return model
    optimizers = _optimizers(model, stage)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=keeping.device)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average, start = state["average"], state["step"]
    done.mkdir(exist_ok=True)
    generator = torch.Generator()
    model.train()
    saved = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (done / "log.jsonl").open("a") as log:
        task = progress.add_task(name, total=stage.steps, completed=start)
        mean_loss, began = 0.0, time.monotonic()
        for step in range(start, stage.steps):
            generator.manual_seed(keeping.seed * 1_000_003 + step)
            loss = loss_of(generator)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = stage.rate * _rate_factor(step, stage.steps)
                optimizer.step()
            model.zero_grad(set_to_none=True)
            _update_average(average, model, min(1 - 10 / stage.steps, (1 + step) / (20 + step)))
            mean_loss = loss.item() if step == start else 0.98 * mean_loss + 0.02 * loss.item()
            rate = (step + 1 - start) * stage.batch / (time.monotonic() - began)
            progress.update(task, advance=1, description=f"{name}  loss {mean_loss:.4f}  {rate:.0f} pictures/s")
            if step % 50 == 0:
                log.write(json.dumps({"step": step, "loss": mean_loss, "pictures_per_second": rate}) + "\n")
                log.flush()
            if time.monotonic() - saved > keeping.checkpoint_minutes * 60:
                kept = [optimizer.state_dict() for optimizer in optimizers]
                state = {"model": model.state_dict(), "optimizers": kept, "average": average, "step": step + 1}
                save(state, checkpoint)
                saved = time.monotonic()
    save(average, done / "done")
    checkpoint.unlink(missing_ok=True)
    model.load_state_dict(average)
    return model


class _Muon(torch.optim.Muon):
    """Muon for matrices and kernels of any number of dimensions: a kernel counts as the matrix [out, all else].

    Its rate is that of AdamW: steps have AdamW's root mean square.
    """

    def __init__(self, weights: list[nn.Parameter], rate: float) -> None:
        self.weights = weights
        matrices = [nn.Parameter(_as_matrix(weight.detach())) for weight in weights]
        super().__init__(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        super().step()


def _as_matrix(weight: Tensor) -> Tensor:
    """View [out, all else] of a matrix, or of a kernel whose channels come last in memory."""
    return weight.movedim(1, -1).flatten(1)


def _optimizers(model: nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    hidden = [weight for weight in model.parameters() if weight.ndim > 1][1:-1] if stage.optimizer == "muon" else []
    chosen = set(hidden)
    rest = [weight for weight in model.parameters() if weight not in chosen]
    adamw = torch.optim.AdamW(rest, lr=stage.rate, weight_decay=0.01, fused=True)
    return [adamw, _Muon(hidden, stage.rate)] if hidden else [adamw]


def _rate_factor(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(200, steps // 10 + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)


def save(state: Any, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def native_autocast(device: str) -> torch.autocast:
    """Compute in bfloat16 where the device has instructions for it; a CPU without them takes ten times as long."""
    kind = torch.device(device).type
    native = kind != "cpu" or any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(kind, torch.bfloat16, enabled=native)
