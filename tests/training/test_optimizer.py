import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moongate.backbone import Backbone
from moongate.data import Regularization, Subject
from moongate.errors import MissingLibrary, TrainingDiverged
from moongate.training import Step, TrainOptions, train
from moongate.training.method import METHODS
from moongate.training.optimizer import Optimizer, check_optimizer

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))


def made(weight: torch.nn.Parameter, dtype: torch.dtype) -> Optimizer:
    return Optimizer.of({weight: 0.1}, name="adamw", dtype=dtype)


def stepped(optimizer: Optimizer, loss: torch.Tensor) -> bool:
    """Take a step and return whether it moved the parameters."""
    optimizer.backward(loss)
    return bool(optimizer.step(loss.detach()))


def test_without_loss_scaling_nothing_moves_from_the_first_loss_on_that_is_not_finite() -> None:
    plain, guarded = parameter(), parameter()
    reference = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.0)
    optimizer = made(guarded, torch.float32)
    for factor in (3.0, 0.2):
        reference.zero_grad()
        (factor * plain.square().sum()).backward()
        reference.step()
        assert stepped(optimizer, factor * guarded.square().sum())
        torch.testing.assert_close(guarded, plain, rtol=1e-6, atol=0)
    kept, moments = guarded.detach().clone(), optimizer.state()["optimizer"]["state"][0]["exp_avg"].clone()
    for factor in (math.nan, 1.0):
        assert not stepped(optimizer, factor * guarded.square().sum())
    assert torch.equal(guarded, kept)
    assert torch.equal(optimizer.state()["optimizer"]["state"][0]["exp_avg"], moments)


def test_each_parameter_moves_at_its_own_rate() -> None:
    fast, slow = parameter(), parameter()
    optimizer = Optimizer.of({fast: 0.1, slow: 0.001}, name="adamw", dtype=torch.float32)
    before = fast.detach().clone()
    assert stepped(optimizer, fast.square().sum() + slow.square().sum())
    torch.testing.assert_close(before - fast, 0.1 * before.sign())  # the first step of Adam is the sign of the gradient
    torch.testing.assert_close(before - slow, 0.001 * before.sign())


def test_a_scaled_loss_moves_the_parameters_as_an_unscaled_one() -> None:
    plain, scaled = parameter(), parameter()
    reference = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.0)
    optimizer = made(scaled, torch.float16)
    for factor in (1e-8, 3.0, 0.2):
        reference.zero_grad()
        (factor * plain.square().sum()).backward()
        reference.step()
        assert stepped(optimizer, factor * scaled.square().sum())
        torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=0)


def test_a_step_that_overflows_is_counted_and_moves_nothing() -> None:
    weight = parameter()
    optimizer = made(weight, torch.float16)
    before = weight.detach().clone()
    for factor in (1e36, math.nan):
        assert not stepped(optimizer, factor * weight.sum())
        assert torch.equal(weight, before)
    assert optimizer.skipped_steps == 2
    assert stepped(optimizer, weight.sum())
    assert not torch.equal(weight, before)


def test_gradients_that_overflow_at_any_scale_are_noted() -> None:
    weight = parameter()
    optimizer = made(weight, torch.float16)
    while not optimizer.overflows:
        assert not stepped(optimizer, math.inf * weight.sum())
    assert optimizer.skipped_steps == 36
    assert not made(weight, torch.float32).overflows


def test_a_training_whose_gradients_overflow_float16_stops_with_all_steps_in_its_log_and_a_state(
    tiny_folder: Path, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Backbone.load(tiny_folder, device="cpu", dtype=torch.float16)
    real = half.predict
    monkeypatch.setattr(half, "predict", lambda *arguments: real(*arguments) * math.inf)
    options = TrainOptions(steps=60, batch=1, run_folder=tmp_path, report_steps=20)
    with pytest.raises(TrainingDiverged, match=r"overflow float16 in 40 steps.* state is in .*state.pt. Use bfloat16"):
        train(half, [make_subject()], [prior], METHOD, options=options)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 40
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 40


def test_only_a_base_in_float16_has_its_loss_scaled() -> None:
    assert [made(parameter(), kind).scales_loss for kind in (torch.float32, torch.bfloat16)] == [False, False]
    assert made(parameter(), torch.float16).scales_loss


def test_training_in_float16_resumes_bit_for_bit_with_its_scale_and_skipped_steps(
    tiny_folder: Path,
    make_subject: MakeSubject,
    prior: Regularization,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = Backbone.load(tiny_folder, device="cpu", dtype=torch.float16)
    real, calls = half.predict, []

    def overflows(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (math.inf if len(calls) == 2 else 1)

    def run(**options: object) -> tuple[list[Step], str]:
        steps: list[Step] = []
        chosen = TrainOptions(**{"steps": 5, "batch": 1, **options})
        return steps, train(half, [make_subject()], [prior], METHOD, options=chosen, on_step=steps.append).hash

    monkeypatch.setattr(half, "predict", overflows)
    steps, whole = run()
    assert [step.skipped_steps for step in steps] == [0, 1, 1, 1, 1]
    calls.clear()
    run(steps=3, run_folder=tmp_path)
    scale = torch.load(tmp_path / "state.pt", weights_only=True)["loss_scale"]["scale"]
    assert scale == 2.0**15, "half of the first scale"
    steps, resumed = run(run_folder=tmp_path, resume=True)
    assert [step.skipped_steps for step in steps] == [1, 1]
    assert resumed == whole


def test_adamw8bit_without_bitsandbytes_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingLibrary, match=r"bitsandbytes, which is not installed.*pip install .*adamw8bit"):
        check_optimizer("adamw8bit")
    check_optimizer("adamw")


def test_adamw8bit_trains_with_the_librarys_optimizer_and_resumes(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, object]] = []

    class StandIn(torch.optim.Adagrad):
        """An optimizer with a state, which moves otherwise than AdamW."""

        def __init__(self, groups: list[dict[str, Any]], **options: object) -> None:
            made.append({"lr": [group["lr"] for group in groups], **options})
            super().__init__(groups, **options)

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=StandIn)))

    def run(**options: object) -> str:
        chosen = TrainOptions(**{"steps": 4, "batch": 1, "optimizer": "adamw8bit", **options})
        concept = train(tiny, [make_subject()], [prior], METHOD, options=chosen)
        assert concept.record.get("optimizer", "adamw") == chosen.optimizer
        return concept.hash

    whole = run()
    assert made == [{"lr": [pytest.approx(1e-5 * 10 * 2)], "weight_decay": 0.0}]
    run(steps=2, run_folder=tmp_path)
    assert run(run_folder=tmp_path, resume=True) == whole
    assert run(optimizer="adamw") != whole
