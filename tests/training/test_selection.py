import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Regularization, Subject
from moongate.errors import OptionError
from moongate.training import Step, TrainOptions, train
from moongate.training.method import METHODS
from moongate.training.selection import Judge, best_step, kept_file

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


def run(
    tiny: Backbone, subject: Subject, prior: Regularization, folder: Path, *held_out: Subject, **options: object
) -> tuple[Concept, list[Step]]:
    steps: list[Step] = []
    chosen = TrainOptions(**{"steps": 5, "batch": 1, "run_folder": folder, "save_every": 2, **options})
    concept = train(tiny, [subject], [prior], METHOD, options=chosen, held_out=held_out, on_step=steps.append)
    return concept, steps


def test_kept_concepts_are_those_of_shorter_runs(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    last, _ = run(tiny, make_subject(), prior, tmp_path / "run")
    kept = sorted((tmp_path / "run" / "concepts").iterdir())
    assert kept == [kept_file(tmp_path / "run", step) for step in (2, 4, 5)]
    shorter, _ = run(tiny, make_subject(), prior, tmp_path / "shorter", steps=2, save_every=None)
    assert [Concept.load(path).hash for path in kept[::2]] == [shorter.hash, last.hash]


def test_judging_changes_no_concept_and_its_losses_are_logged(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    plain, _ = run(tiny, make_subject(), prior, tmp_path / "plain")
    judged, steps = run(tiny, make_subject(), prior, tmp_path / "judged", make_subject(seed=9, count=2))
    assert all(torch.equal(judged.deltas[name].full(), plain.deltas[name].full()) for name in plain.deltas)
    assert [step.index for step in steps if step.held_out_loss is not None] == [2, 4, 5]
    log = [json.loads(line) for line in (tmp_path / "judged" / "log.jsonl").read_text().splitlines()]
    assert [line["held_out_loss"] for line in log] == [step.held_out_loss for step in steps]


def test_the_score_is_the_mean_masked_error_at_eight_timesteps(
    tiny: Backbone, make_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is 1 on the left half and 2 on the right, times the noise level's share of the schedule."""
    left = np.zeros((64, 64), dtype=np.uint8)
    left[:, :32] = 255
    seen: list[list[int]] = []

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor, _text: object) -> torch.Tensor:
        seen.append(timesteps.tolist())
        sides = torch.ones(8).index_fill(0, torch.arange(4, 8), 2.0)
        return sides * (timesteps / 1000).reshape(-1, 1, 1, 1).expand_as(noisy)

    monkeypatch.setattr(tiny, "predict", predict)
    monkeypatch.setattr(tiny, "target", lambda latents, _noise, _timesteps: torch.zeros_like(latents))
    subject = replace(make_subject(count=2), masks=(left, None))
    with tiny.tokens({"<bear>": tiny.token_row(20)}):
        loss = Judge(tiny, [subject], side_px=64).loss()
    assert seen == [[62, 187, 312, 437, 562, 687, 812, 937]] * 2
    levels = np.mean((np.array(seen[0]) / 1000) ** 2)
    assert loss == pytest.approx(levels * (1 + (1 + 4) / 2) / 2)


def test_the_same_weights_have_the_same_score_whatever_the_seed(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    others = make_subject(seed=9, count=1)
    _, first = run(tiny, make_subject(), prior, tmp_path / "a", others, steps=1, seed=0, lr_per_picture=1e-30)
    _, second = run(tiny, make_subject(), prior, tmp_path / "b", others, steps=1, seed=5, lr_per_picture=1e-30)
    assert first[0].held_out_loss == second[0].held_out_loss
    assert first[0].target_loss != second[0].target_loss


def test_the_best_step_becomes_the_result_when_asked(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.3, 0.1, 0.2, 0.1])
    monkeypatch.setattr(Judge, "loss", lambda _self: next(losses))
    others = make_subject(seed=9, count=1)
    options = {"keep_best": True, "save_every": 1}
    run(tiny, make_subject(), prior, tmp_path, others, steps=2, **options)
    best, _ = run(tiny, make_subject(), prior, tmp_path, others, steps=4, resume=True, **options)
    assert best_step(tmp_path) == 2, "the first of equals"
    assert best.hash == Concept.load(kept_file(tmp_path, 2)).hash
    assert (best.record["steps"], best.record["held_out_loss"]) == (2, 0.1)
    kept_file(tmp_path, 2).unlink()
    assert best_step(tmp_path) == 4, "the best of those that are still there"


def test_a_log_without_scores_has_no_best_step(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"index": 1, "loss": 1.0}\n{"index": 2, "held_out_loss": null}\n')
    assert best_step(tmp_path) is None


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    lines = [{"index": step, "held_out_loss": loss} for step, loss in ((1, math.nan), (2, 0.5), (3, -math.inf))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "concepts").mkdir()
    for step in (1, 2, 3):
        kept_file(tmp_path, step).touch()
    assert best_step(tmp_path) == 2


def test_a_run_that_replaces_another_removes_its_kept_concepts(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    run(tiny, make_subject(), prior, tmp_path, save_every=1)
    run(tiny, make_subject(), prior, tmp_path, save_every=4, overwrite=True)
    assert sorted((tmp_path / "concepts").iterdir()) == [kept_file(tmp_path, step) for step in (4, 5)]


def test_what_judging_needs_is_named_before_any_work(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "encode_images", None)
    with pytest.raises(OptionError, match="save_every needs a run_folder"):
        TrainOptions(save_every=1)
    with pytest.raises(OptionError, match="keep_best needs save_every"):
        TrainOptions(keep_best=True)
    with pytest.raises(OptionError, match="keep_best needs held-out pictures"):
        run(tiny, make_subject(), prior, tmp_path, keep_best=True)
    with pytest.raises(OptionError, match="judge the concepts that are kept. Give save_every"):
        run(tiny, make_subject(), prior, tmp_path, make_subject(), save_every=None)
