from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from recipe.fitting import Stage, _optimizers, _rate_factor, fit
from recipe.pretrain import PretrainOptions

STAGE = Stage(steps=12, batch=4, rate=1e-2)
MUON_STAGE = Stage(steps=12, batch=4, rate=1e-2, optimizer="muon")


def narrow_model() -> nn.Sequential:
    torch.manual_seed(0)
    kernel = nn.Conv2d(4, 6, 3, padding=1)
    return nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (4, 1, 1)), kernel, nn.Flatten(), nn.Linear(6, 1))


def fitted(folder: Path, *, stop_at: int | None = None, stage: Stage = STAGE) -> nn.Module:
    model = narrow_model()
    calls = []

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if stop_at and len(calls) > stop_at:
            raise KeyboardInterrupt
        return (model(torch.randn(4, 3, generator=generator)) - 1).square().mean()

    folder.mkdir(exist_ok=True)
    return fit("line", model, loss_of, stage, PretrainOptions(out=folder, checkpoint_minutes=0))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("stage", [STAGE, MUON_STAGE])
def test_a_stopped_stage_resumes_to_the_same_weights(tmp_path: Path, stage: Stage) -> None:
    whole = fitted(tmp_path / "whole", stage=stage)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "parts", stop_at=7, stage=stage)
    resumed = fitted(tmp_path / "parts", stage=stage)
    assert same(whole, resumed)
    assert not (tmp_path / "parts" / "line.pt").exists()


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    whole = fitted(tmp_path)
    assert same(fitted(tmp_path, stop_at=1), whole)


def test_muon_moves_a_kernel_equally_in_all_directions() -> None:
    """Its step is the orthogonal factor of the gradient, scaled to 0.2 of the rate in root mean square."""
    model = narrow_model().to(memory_format=torch.channels_last)
    kernel = model[2].weight
    before = kernel.detach().clone()
    gradient = torch.randn(kernel.shape)
    for weight in model.parameters():
        weight.grad = gradient if weight is kernel else torch.zeros_like(weight)
    adamw, muon = _optimizers(model, MUON_STAGE)
    assert sum(len(group["params"]) for group in adamw.param_groups) == 5
    muon.step()
    moved = (before - kernel).flatten(1) / 1e-2
    left, _, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    cosine = torch.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0)
    assert cosine > 0.98
    singular = torch.linalg.svdvals(moved)
    assert singular.max() / singular.min() < 2
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_the_rate_warms_up_and_falls_to_zero_along_a_cosine() -> None:
    factors = [_rate_factor(step, 3000) for step in range(3001)]
    assert factors[0] < 0.01
    assert all(later < earlier for earlier, later in pairwise(factors[200:]))
    assert factors[750] + factors[2250] == pytest.approx(1)
    assert factors[1500] == pytest.approx(0.5)
    assert factors[-1] == 0
