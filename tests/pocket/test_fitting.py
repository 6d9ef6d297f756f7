from pathlib import Path

import pytest
import torch
from torch import nn

from moongate.pocket.fitting import Stage, _rate_factor, fit
from moongate.pocket.pretrain import PretrainOptions

STAGE = Stage(steps=12, batch=4, rate=1e-2)


def fitted(folder: Path, *, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    calls = []

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if stop_at and len(calls) > stop_at:
            raise KeyboardInterrupt
        return (model(torch.randn(4, 3, generator=generator)) - 1).square().mean()

    folder.mkdir(exist_ok=True)
    return fit("line", model, loss_of, STAGE, PretrainOptions(out=folder, checkpoint_minutes=0))


def test_a_stopped_stage_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "parts", stop_at=7)
    resumed = fitted(tmp_path / "parts")
    assert torch.equal(whole.weight, resumed.weight)
    assert not (tmp_path / "parts" / "line.pt").exists()


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    whole = fitted(tmp_path)
    assert torch.equal(fitted(tmp_path, stop_at=1).weight, whole.weight)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    factors = [_rate_factor(step, 3000) for step in range(3000)]
    assert factors[0] < 0.01
    assert factors[500] == factors[1900] == 1
    assert factors[-1] < 0.001
