import _thread
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import all_weights
from moongate import training
from moongate.backbone import Backbone, Conditioning
from moongate.concept import Concept
from moongate.data import Augmented, Regularization, Subject
from moongate.errors import MoongateWarning, OptionError, TrainingDiverged
from moongate.training import Step, TrainOptions, batches, train
from moongate.training.batches import Batch, Batches
from moongate.training.method import METHODS
from moongate.training.runs import Run

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


def taught(tiny: Backbone, subject: Subject, prior: Regularization, **options: object) -> Concept:
    return train(tiny, [subject], [prior], METHOD, options=TrainOptions(**{"steps": 4, "batch": 2, **options}))


def test_every_key_value_and_the_token_move_and_nothing_else(
    each: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    inside: dict[str, torch.Tensor] = {}
    before = {name: tensor.clone() for name, tensor in all_weights(each).items()}

    def look(step: Step) -> None:
        if step.index == 4:
            inside.update({name: tensor.clone() for name, tensor in all_weights(each).items()})

    subject = make_subject()
    concept = train(each, [subject], [prior], METHOD, options=TrainOptions(steps=4, batch=2), on_step=look)
    kept = {name for name in before if name in inside and torch.equal(before[name], inside[name])}
    assert set(before) - kept - {n for n in before if "token_embedding" in n} == set(concept.deltas)
    assert all(change.full().any() for change in concept.deltas.values())
    for name, change in concept.deltas.items():
        torch.testing.assert_close(change.full(), inside[name] - before[name], atol=0, rtol=0)
    for row, start in zip(concept.rows("<bear>"), each.token_row(20).split(each.token_widths), strict=True):
        assert (row != start).any()  # in every text encoder
    with concept.applied(each):
        pass
    # All other weights, the tokenizer and the table are compared bit for bit by the `each` fixture.


@pytest.mark.parametrize("name", METHODS)
def test_each_method_moves_its_own_weights_and_nothing_else(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, name: str
) -> None:
    method = METHODS[name]
    priors = [prior] if method.prior_weight else []

    def look(step: Step) -> None:
        changed = {n for n, weight in all_weights(tiny).items() if n in before and not torch.equal(before[n], weight)}
        if step.index == 2:
            assert changed == (set(tiny.weights(method.weights)) if method.weights else set())

    before = {name: weight.clone() for name, weight in all_weights(tiny).items()}
    options = TrainOptions(steps=2, batch=1)
    concept = train(tiny, [make_subject()], priors, method, options=options, on_step=look)
    rows = [concept.tokens["<bear>"], tiny.word_row("bear") if name == "textual-inversion" else tiny.token_row(20)]
    assert torch.equal(*rows) == (not method.trains_tokens)
    assert set(concept.deltas) == (set(tiny.weights(method.weights)) if method.weights else set())
    assert concept.method == name
    with concept.applied(tiny):
        pass


def test_without_augmentation_every_picture_is_whole(
    tiny: Backbone, make_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode_text = tiny.encode_text
    monkeypatch.setattr(tiny, "encode_text", lambda captions: read.extend(captions) or encode_text(captions))
    train(tiny, [make_subject()], [], METHODS["textual-inversion"], options=TrainOptions(steps=2))
    assert read == ["photo of a <bear>"] * 2  # once a step for eight pictures; no phrase of size, no category


def test_weights_and_tokens_move_at_the_rates_of_the_options(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    """The first step of Adam is the rate times the sign of the gradient."""
    options = TrainOptions(steps=1, batch=2, learning_rate=0.002, token_lr_scale=5)
    method = replace(METHOD, weight_decay=0.0)
    concept = train(tiny, [make_subject()], [prior], method, options=options)
    moved = (concept.tokens["<bear>"] - tiny.token_row(20)).abs()
    assert moved.max() == pytest.approx(0.01, rel=1e-2)
    for name, change in concept.deltas.items():
        assert change.full().abs().max() == pytest.approx(0.002, rel=1e-2), name


def test_with_two_tokens_both_move(tiny: Backbone, make_subject: MakeSubject, prior: Regularization) -> None:
    subjects = [make_subject("<one>", seed=1), make_subject("<two>", category="cat", seed=2, count=5)]
    concept = train(tiny, subjects, [prior, prior], METHOD, options=TrainOptions(steps=3, batch=2))
    assert not torch.equal(concept.tokens["<one>"], tiny.token_row(20))
    assert not torch.equal(concept.tokens["<two>"], tiny.token_row(30))
    assert [subject.words for subject in concept.subjects] == ["<one> bear", "<two> cat"]
    assert [subject.prompts for subject in concept.subjects] == [("photo of a <one> bear",), ("photo of a <two> cat",)]


# --- sequential training ----------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(tiny: Backbone, make_subject: MakeSubject, prior: Regularization) -> Concept:
    return taught(tiny, make_subject("<one>", seed=1), prior)


def continued(tiny: Backbone, earlier: Concept, subject: Subject, prior: Regularization, **options: object) -> Concept:
    chosen = TrainOptions(**{"steps": 4, "batch": 2, **options})
    return train(tiny, [subject], [prior], METHOD, options=chosen, start_from=earlier)


def test_sequential_training_holds_both_and_leaves_the_earlier_token_alone(
    tiny: Backbone, earlier: Concept, make_subject: MakeSubject, prior: Regularization
) -> None:
    both = continued(tiny, earlier, make_subject("<two>", category="cat", seed=2), prior)
    assert [subject.words for subject in both.subjects] == ["<one> bear", "<two> cat"]
    assert list(both.tokens) == ["<one>", "<two>"]
    assert torch.equal(both.tokens["<one>"], earlier.tokens["<one>"])
    assert not torch.equal(both.tokens["<two>"], tiny.token_row(30)), "it began as the next rare token and moved"
    assert both.record["started_from"] == earlier.hash
    with both.applied(tiny):
        assert tiny.known_tokens == ("<one>", "<two>")


def test_its_changes_are_relative_to_the_base(
    tiny: Backbone, earlier: Concept, make_subject: MakeSubject, prior: Regularization
) -> None:
    """At a rate of nearly nothing the weights stay where the earlier concept left them."""
    both = continued(tiny, earlier, make_subject("<two>", category="cat"), prior, steps=1, lr_per_picture=1e-12)
    for name, change in earlier.deltas.items():
        torch.testing.assert_close(both.deltas[name].full(), change.full(), rtol=1e-5, atol=1e-7)


def test_each_step_takes_the_rate_times_the_decay_from_the_change_and_nothing_from_the_token(
    tiny: Backbone, earlier: Concept, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gradients are zero, so that nothing else moves the weights: two steps leave (1 - 0.1 * 0.5)^2 of a change."""
    real = tiny.predict
    monkeypatch.setattr(tiny, "predict", lambda *arguments: real(*arguments) * 0)
    method, options = replace(METHOD, weight_decay=0.5), TrainOptions(steps=2, batch=1, learning_rate=0.1)
    subject = make_subject("<two>", category="cat")
    both = train(tiny, [subject], [prior], method, options=options, start_from=earlier)
    for name, change in earlier.deltas.items():
        torch.testing.assert_close(both.deltas[name].full(), 0.95**2 * change.full(), rtol=1e-3, atol=1e-7)
    assert torch.equal(both.tokens["<two>"], tiny.token_row(30))


def test_a_resumed_sequence_gives_the_concept_of_an_uninterrupted_one(
    tiny: Backbone, earlier: Concept, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    subject = make_subject("<two>", category="cat")
    whole = continued(tiny, earlier, subject, prior, steps=6)
    continued(tiny, earlier, subject, prior, steps=2, run_folder=tmp_path)
    resumed = continued(tiny, earlier, subject, prior, steps=6, run_folder=tmp_path, resume=True)
    assert resumed.hash == whole.hash
    other = earlier.scaled(0.5)
    with pytest.raises(OptionError, match="was started with started_from"):
        continued(tiny, other, subject, prior, steps=6, run_folder=tmp_path, resume=True)


def test_a_concept_may_have_no_token(tiny: Backbone, make_subject: MakeSubject, prior: Regularization) -> None:
    concept = taught(tiny, make_subject(None), prior)
    assert concept.tokens == {}
    assert all(change.full().any() for change in concept.deltas.values())


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_prior_loss_counts_by_its_weight_beside_that_of_the_targets(
    tiny: Backbone,
    make_subject: MakeSubject,
    prior: Regularization,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
) -> None:
    """With the same error in every element, both losses are its square, however much of a picture is masked."""
    error = 0.3
    targets: list[torch.Tensor] = []
    real_target, real_predict = tiny.target, tiny.predict

    def target(*arguments: torch.Tensor) -> torch.Tensor:
        targets.append(real_target(*arguments))
        return torch.zeros_like(targets[-1])

    def predict(*arguments: torch.Tensor) -> torch.Tensor:
        return real_predict(*arguments) * 0 + error

    monkeypatch.setattr(tiny, "target", target)
    monkeypatch.setattr(tiny, "predict", predict)
    steps: list[Step] = []
    method = replace(METHOD, prior_weight=weight)
    train(tiny, [make_subject()], [prior], method, options=TrainOptions(steps=3), on_step=steps.append)
    assert len(steps) == 3
    for step in steps:
        assert step.target_loss == pytest.approx(error**2)
        assert step.prior_loss == pytest.approx(error**2)
        assert step.loss == pytest.approx((1 + weight) * error**2)


def test_the_canvas_around_a_shrunk_picture_does_not_count(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the canvas alone gives a target loss of zero."""
    canvases: list[torch.Tensor] = []
    real = batches.framed

    def framed(*arguments: object, **named: object) -> Augmented:
        found = real(*arguments, **named)
        cells = torch.nn.functional.avg_pool2d((found.image == 0).all(0, keepdim=True).float(), 8)
        canvases.append(cells == 1)
        return found

    def predict(noisy: torch.Tensor, _times: torch.Tensor, text: Conditioning) -> torch.Tensor:
        canvas = torch.zeros(len(noisy), 1, 8, 8)
        canvas[0] = canvases[len(steps)].float()
        weight = next(iter(tiny.weights("cross-attention-kv").values()))
        return canvas.expand_as(noisy) * 5 + 0 * weight.sum() + 0 * text.features.sum()

    monkeypatch.setattr(batches, "framed", framed)
    monkeypatch.setattr(tiny, "target", lambda latents, _noise, _times: torch.zeros_like(latents))
    monkeypatch.setattr(tiny, "predict", predict)
    steps: list[Step] = []
    options = TrainOptions(steps=12, batch=1)
    train(tiny, [make_subject(count=12)], [prior], METHOD, options=options, on_step=steps.append)
    assert len(canvases) == 12, "each picture is encoded, because each is another one"
    assert any(canvas.any() for canvas in canvases)
    assert all(step.target_loss == 0 for step in steps)


def test_the_same_seed_gives_the_same_concept_and_another_does_not(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    first = taught(tiny, make_subject(), prior)
    assert taught(tiny, make_subject(), prior).hash == first.hash
    assert taught(tiny, make_subject(), prior, seed=1).hash != first.hash


def test_a_resumed_run_gives_the_concept_of_an_uninterrupted_one(
    each: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    whole = taught(each, make_subject(), prior, steps=6)

    def stop(step: Step) -> None:
        if step.index == 2:
            _thread.interrupt_main()  # as Ctrl-C does

    options = TrainOptions(steps=6, batch=2, run_folder=tmp_path, checkpoint_steps=100)
    with pytest.raises(KeyboardInterrupt):
        train(each, [make_subject()], [prior], METHOD, options=options, on_step=stop)
    done = torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    assert 2 <= done < 6
    resumed = train(each, [make_subject()], [prior], METHOD, options=replace(options, resume=True))
    assert resumed.hash == whole.hash
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["index"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_a_run_folder_explains_itself(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    taught(tiny, make_subject(), prior, run_folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["subjects"][0]["token"] == "<bear>"
    assert config["regularization"][0]["pictures"] == 5
    assert config["learning_rate"] == pytest.approx(1e-5 * 10 * 4)  # per picture, the model's scale, pictures a step
    assert {"moongate", "torch", "diffusers", "transformers", "python"} <= set(config["versions"])
    assert {"seed", "steps", "method", "fingerprint"} <= set(config)


def test_resuming_other_settings_or_nothing_is_refused(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="holds no state.pt to resume from"):
        taught(tiny, make_subject(), prior, run_folder=tmp_path, resume=True)
    taught(tiny, make_subject(), prior, run_folder=tmp_path)
    with pytest.raises(OptionError, match="was started with seed = 0, not 1"):
        taught(tiny, make_subject(), prior, run_folder=tmp_path, resume=True, seed=1)
    with pytest.raises(OptionError, match="holds a run already. Continue it .--resume."):
        taught(tiny, make_subject(), prior, run_folder=tmp_path)
    longer = taught(tiny, make_subject(), prior, run_folder=tmp_path, resume=True, steps=6)
    assert longer.hash == taught(tiny, make_subject(), prior, steps=6).hash


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    tiny: Backbone,
    make_subject: MakeSubject,
    prior: Regularization,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = tiny.predict, []

    def breaks(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(tiny, "predict", breaks)
    with pytest.raises(TrainingDiverged, match="not a finite number at step 4.*last good state is in .*state.pt"):
        taught(tiny, make_subject(), prior, steps=6, run_folder=tmp_path)
    monkeypatch.setattr(tiny, "predict", real)
    resumed = taught(tiny, make_subject(), prior, steps=6, run_folder=tmp_path, resume=True)
    assert resumed.hash == taught(tiny, make_subject(), prior, steps=6).hash


def test_all_pictures_are_encoded_before_the_first_step(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    encode_images, predict = tiny.encode_images, tiny.predict
    monkeypatch.setattr(tiny, "encode_images", lambda x: done.append(f"encode {len(x)}") or encode_images(x))
    monkeypatch.setattr(tiny, "predict", lambda *x: done.append("predict") or predict(*x))
    taught(tiny, make_subject(), prior, steps=5)
    assert done == [*["encode 2"] * 5, "encode 5", *["predict"] * 5]


def test_no_step_waits_for_the_device(
    each: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each of these calls waits until all work is done, and none may be in a captured step.

    The shapes of a step depend on nothing but the number of its different captions.
    """
    shapes: list[tuple[object, ...]] = []
    real = training._step

    def trapped(found: Batches, shards: list[Batch], *arguments: object, **named: object) -> torch.Tensor:
        (batch,) = shards
        shapes.append((*(tuple(each.shape) for each in (batch.latents, batch.masks, batch.caption_rows)),))

        def trap(*_arguments: object, **_named: object) -> None:
            raise AssertionError("a step waits for a number")

        with pytest.MonkeyPatch.context() as inside:
            for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
                inside.setattr(torch.Tensor, name, trap)
            return real(found, shards, *arguments, **named)

    monkeypatch.setattr(training, "_step", trapped)
    steps: list[Step] = []
    options = TrainOptions(steps=7, batch=2, report_steps=5)
    train(each, [make_subject()], [prior], METHOD, options=options, on_step=steps.append)
    assert [step.index for step in steps] == list(range(1, 8))
    assert len(set(shapes)) == 1


def test_losses_read_later_are_the_same(tiny: Backbone, make_subject: MakeSubject, prior: Regularization) -> None:
    each_step, all_at_once = [], []
    for steps, every in ((each_step, 1), (all_at_once, 10)):
        options = TrainOptions(steps=4, batch=2, report_steps=every)
        train(tiny, [make_subject()], [prior], METHOD, options=options, on_step=steps.append)
    assert [step.loss for step in each_step] == [step.loss for step in all_at_once]


def test_a_loss_that_is_not_finite_is_found_when_it_is_read_and_nothing_moves_after_it(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = tiny.predict, []

    def breaks(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(tiny, "predict", breaks)
    with pytest.raises(TrainingDiverged, match="not a finite number at step 3"):
        taught(tiny, make_subject(), prior, steps=8, run_folder=tmp_path, report_steps=6)
    assert len(calls) == 6
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(tiny, "predict", real)
    resumed = taught(tiny, make_subject(), prior, steps=8, run_folder=tmp_path, resume=True)
    assert resumed.hash == taught(tiny, make_subject(), prior, steps=8).hash


def test_a_step_in_shards_is_the_same_step_up_to_rounding(
    each: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    found: list[Concept] = []
    losses: list[list[Step]] = [[], []]
    for shards, steps in zip((1, 2), losses, strict=True):
        options = TrainOptions(steps=2, batch=4, shards=shards)
        found.append(train(each, [make_subject()], [prior], METHOD, options=options, on_step=steps.append))
    for one, two in zip(*losses, strict=True):
        assert one.target_loss == pytest.approx(two.target_loss, rel=1e-4)
        assert one.prior_loss == pytest.approx(two.prior_loss, rel=1e-4)
    for name, change in found[0].deltas.items():
        # Adam's first steps are nearly signs of gradients, which amplify rounding in the smallest of them.
        difference = change.full() - found[1].deltas[name].full()
        assert difference.norm() / change.full().norm() < 0.05, name


def test_shards_must_be_equal(tiny: Backbone, make_subject: MakeSubject, prior: Regularization) -> None:
    with pytest.raises(OptionError, match="4 target pictures of a step cannot be divided into 3 equal shards"):
        taught(tiny, make_subject(), prior, batch=4, shards=3)


def test_half_precision_bases_train_in_float32(
    family_folder: Path, make_subject: MakeSubject, prior: Regularization
) -> None:
    half = Backbone.load(family_folder, device="cpu", dtype=torch.bfloat16)
    name = next(iter(half.weights("cross-attention-kv")))
    start = half.parameter(name).detach().clone()
    seen: list[torch.dtype] = []
    options = TrainOptions(steps=2, batch=2)
    concept = train(
        half,
        [make_subject()],
        [prior],
        METHOD,
        options=options,
        on_step=lambda _: seen.append(half.parameter(name).dtype),
    )
    assert seen == [torch.float32] * 2
    assert half.parameter(name).dtype == torch.bfloat16
    assert torch.equal(half.parameter(name), start)
    small = concept.deltas[name].full()
    assert small.dtype == torch.float32
    # Most of these updates are below bfloat16's resolution of the weights, and would have been lost in it.
    assert (small != 0).float().mean() > 0.95
    with concept.applied(half):
        pass


def test_recomputed_activations_give_the_same_concept(
    each: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plain = taught(each, make_subject(), prior)
    assert taught(each, make_subject(), prior, recompute=True).hash == plain.hash
    assert not each.unet.down_blocks[0].gradient_checkpointing


def test_training_without_regularization_pictures_runs(tiny: Backbone, make_subject: MakeSubject) -> None:
    method = METHODS["custom-diffusion-without-regularization"]
    steps: list[Step] = []
    train(tiny, [make_subject()], [], method, options=TrainOptions(steps=2), on_step=steps.append)
    assert all(step.prior_loss == 0 and step.loss == step.target_loss for step in steps)


def test_masks_limit_the_loss_and_white_ones_change_nothing(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    subject = make_subject()
    white, left = np.full((64, 64), 255, dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8)
    left[:, :32] = 255
    plain = taught(tiny, subject, prior).deltas
    unlimited = taught(tiny, replace(subject, masks=(white, None, white)), prior).deltas
    limited = taught(tiny, replace(subject, masks=(left, None, left)), prior).deltas
    assert all(torch.equal(plain[name].full(), unlimited[name].full()) for name in plain)
    assert not all(torch.equal(plain[name].full(), limited[name].full()) for name in plain)


def test_a_batch_that_shows_nothing_of_the_masked_subject_has_no_loss(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    corner = np.zeros((64, 64), dtype=np.uint8)
    corner[:4, :4] = 255  # zooming in cuts it off
    losses: list[float] = []
    options = TrainOptions(steps=12, batch=1)
    subject = replace(make_subject(), masks=(corner,) * 3)
    train(tiny, [subject], [prior], METHOD, options=options, on_step=lambda step: losses.append(step.target_loss))
    assert 0 in losses
    assert all(map(math.isfinite, losses))


def test_held_out_pictures_are_recorded(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    concept = taught(tiny, replace(make_subject(), held_out=("9.jpg",)), prior, run_folder=tmp_path)
    assert concept.record["held_out"] == ["9.jpg"]
    assert json.loads((tmp_path / "config.json").read_text())["subjects"][0]["held_out"] == ["9.jpg"]


def test_a_run_resumes_from_a_log_whose_last_line_is_incomplete(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    taught(tiny, make_subject(), prior, run_folder=tmp_path, steps=2)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"index": 3, "lo')
    resumed = taught(tiny, make_subject(), prior, run_folder=tmp_path, resume=True, steps=4)
    assert resumed.hash == taught(tiny, make_subject(), prior, steps=4).hash
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["index"] for line in log] == [1, 2, 3, 4]


def test_a_state_that_cannot_be_written_ends_only_a_run_that_was_interrupted(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The concept may fit on a disk where the state does not."""

    def full(_run: Run, _state: object) -> None:
        raise OptionError("No space left on device.")

    whole = taught(tiny, make_subject(), prior)
    monkeypatch.setattr(Run, "save", full)
    with pytest.warns(MoongateWarning, match="No space left on device. Training goes on without this state"):
        assert taught(tiny, make_subject(), prior, run_folder=tmp_path / "one").hash == whole.hash

    def stop(step: Step) -> None:
        if step.index == 1:
            _thread.interrupt_main()  # as Ctrl-C does

    options = TrainOptions(steps=6, batch=1, run_folder=tmp_path / "two")
    with pytest.raises(OptionError, match="No space left on device"):
        train(tiny, [make_subject()], [prior], METHOD, options=options, on_step=stop)


def test_a_run_that_goes_on_with_other_threads_says_that_its_last_bits_will_differ(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tiny, make_subject(), prior, steps=1, run_folder=tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(MoongateWarning, match="thread count of 1 and goes on with 7: its concept will differ"):
        taught(tiny, make_subject(), prior, steps=2, run_folder=tmp_path, resume=True)


def test_too_small_a_disk_for_the_state_is_said_before_the_first_step(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trained number takes four bytes, and Adam keeps two more for it."""
    needed = 12 * (sum(weight.numel() for weight in tiny.weights("cross-attention-kv").values()) + 16)
    for free in (needed, needed - 1):
        monkeypatch.setattr(training.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        run = tmp_path / str(free)
        with pytest.warns(MoongateWarning, match="no room for the state") if free < needed else nullcontext():
            taught(tiny, make_subject(), prior, steps=1, run_folder=run)
