from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from moongate.errors import OptionError, TrainingDiverged
from recipe.fitting import (
    CONSTANT_FILE,
    Constant,
    Cosine,
    Position,
    Schedule,
    Stage,
    _optimizers,
    fit,
    hidden_weights,
)

STAGE = Stage(batch=4, lr=1e-2, checkpoint_minutes=0)
TWELVE = Cosine(steps=12)


def narrow_model() -> nn.Sequential:
    torch.manual_seed(0)
    kernel = nn.Conv2d(4, 6, 3, padding=1)
    return nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (4, 1, 1)), kernel, nn.Flatten(), nn.Linear(6, 1))


def fitted(
    folder: Path,
    *,
    stop_at: int | None = None,
    stage: Stage = STAGE,
    schedule: Schedule = TWELVE,
    muon: bool = False,
    channels_last: bool = False,
    start: Path | None = None,
) -> nn.Module:
    model = narrow_model()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    calls = []

    def losses(generator: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        calls.append(step)
        if stop_at and len(calls) > stop_at:
            raise KeyboardInterrupt
        return {"square": (model(torch.randn(stage.batch, 3, generator=generator)) - 1).square().mean()}

    chosen = hidden_weights(model) if muon else ()
    state = torch.load(start, weights_only=True) if start else None
    fit(model, losses, schedule, stage, folder=folder, muon=chosen, start=state)
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path, muon: bool, channels_last: bool) -> None:
    how = {"muon": muon, "channels_last": channels_last}
    whole = fitted(tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "parts", stop_at=7, **how)
    assert same(whole, fitted(tmp_path / "parts", **how))


def test_a_finished_run_only_loads_its_average(tmp_path: Path) -> None:
    whole = fitted(tmp_path)
    changed = (tmp_path / "state.pt").stat().st_mtime_ns
    assert same(fitted(tmp_path, stop_at=1), whole)
    assert (tmp_path / "state.pt").stat().st_mtime_ns == changed


def test_a_constant_schedule_is_lengthened_to_the_same_weights(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", schedule=Constant(pictures=48))
    fitted(tmp_path / "parts", schedule=Constant(pictures=20))
    assert same(fitted(tmp_path / "parts", schedule=Constant(pictures=48)), whole)


def test_a_run_whose_learning_rate_has_fallen_goes_on_from_the_state_before_that(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", schedule=Constant(pictures=60))
    fitted(tmp_path / "decayed", schedule=Constant(pictures=40, decay_pictures=20))
    with pytest.raises(OptionError, match=r"has begun to fall.*start another folder from .*constant\.pt"):
        fitted(tmp_path / "decayed", schedule=Constant(pictures=60))
    start = tmp_path / "decayed" / CONSTANT_FILE
    assert same(fitted(tmp_path / "more", schedule=Constant(pictures=60), start=start), whole)


def test_a_step_averages_the_gradients_of_its_batches(tmp_path: Path) -> None:
    """The step of two batches is that of the mean of their losses."""
    stage = Stage(batch=4, shards=2, lr=1e-2)
    in_two = fitted(tmp_path / "two", stage=stage, schedule=Cosine(steps=1))
    model = narrow_model()

    def mean_loss(_: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(shard)) for shard in (0, 1)]
        return {"square": torch.stack([(model(batch) - 1).square().mean() for batch in batches]).mean()}

    fit(model, mean_loss, Cosine(steps=1), Stage(batch=8, lr=1e-2), folder=tmp_path / "one")
    for one, other in zip(in_two.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_other_settings_are_named(tmp_path: Path) -> None:
    fitted(tmp_path)
    with pytest.raises(OptionError, match=r"other settings: lr 0\.01, now 0\.02"):
        fitted(tmp_path, stage=Stage(batch=4, lr=2e-2))
    with pytest.raises(OptionError, match=r"steps 12, now 13"):
        fitted(tmp_path, schedule=Cosine(steps=13))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_state(tmp_path: Path) -> None:
    fitted(tmp_path, schedule=Constant(pictures=20))
    before = (tmp_path / "state.pt").read_bytes()
    model = narrow_model()

    def losses(_: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        return {"square": model(torch.full((4, 3), torch.nan)).mean()}

    with pytest.raises(TrainingDiverged, match=r"The loss of step 5 is nan"):
        fit(model, losses, Constant(pictures=40), STAGE, folder=tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_muon_moves_a_kernel_equally_in_all_directions() -> None:
    """Its step is the orthogonal factor of the gradient, scaled to 0.2 of the learning rate in root mean square."""
    for layout in (torch.contiguous_format, torch.channels_last):
        model = narrow_model().to(memory_format=layout)
        kernel = model[2].weight
        before = kernel.detach().clone()
        gradient = torch.randn(kernel.shape)
        for weight in model.parameters():
            weight.grad = gradient.clone(memory_format=layout) if weight is kernel else torch.zeros_like(weight)
        adamw, muon = _optimizers(model, STAGE, hidden_weights(model))
        assert sum(len(group["params"]) for group in adamw.param_groups) == 5
        muon.step()
        moved = (before - kernel).flatten(1) / 1e-2
        left, _, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
        cosine = torch.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0)
        assert cosine > 0.98
        singular = torch.linalg.svdvals(moved)
        assert singular.max() / singular.min() < 2
        assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_cosine_warms_up_and_falls_to_zero() -> None:
    schedule = Cosine(steps=3000)
    factors = [schedule.factor(Position(step=step)) for step in range(3000)]
    assert factors[0] < 0.01
    assert all(later < earlier for earlier, later in pairwise(factors[200:]))
    assert factors[750] + factors[2250] == pytest.approx(1)
    assert factors[1500] == pytest.approx(0.5)
    assert factors[-1] < 1e-6
    assert schedule.factor(Position(step=3000)) is None


def test_a_constant_warms_up_and_falls_over_the_last_pictures_or_minutes() -> None:
    by_pictures = Constant(pictures=1000, decay_pictures=100)
    assert by_pictures.factor(Position(step=19, pictures=0)) == pytest.approx(0.1)
    assert by_pictures.factor(Position(step=900, pictures=900)) == 1
    assert by_pictures.factor(Position(step=900, pictures=950)) == 0.5
    assert by_pictures.factor(Position(step=900, pictures=1000)) is None
    by_time = Constant(minutes=10, decay_minutes=2)
    assert by_time.factor(Position(step=900, seconds=300)) == 1
    assert by_time.factor(Position(step=900, seconds=570)) == 0.25
    assert by_time.factor(Position(step=900, seconds=600)) is None
    assert by_time.is_falling(Position(step=900, seconds=570))
    assert not by_time.is_falling(Position(step=10, seconds=10))
