"""Teach a backbone one or several subjects and return the Concept (paper, Sec. 3).

Subjects are taught together (joint training) or one after the other (sequential training, from a finished concept).
The objective is the denoising loss of the target pictures over their valid region plus `prior_weight` times that of
the regularization pictures, each a mean per element (Eq. 2). The loop never draws pictures; `on_step` may.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.data import Regularization, Subject
from moongate.errors import OptionError, TrainingDiverged, first_line, warn
from moongate.files import exclusive
from moongate.provenance import free_rare_token, names_of_edits
from moongate.ranks import Ranks
from moongate.training.batches import Batch, Batches
from moongate.training.method import Method, Trainable, method_for, trainable
from moongate.training.neutral_decay import NeutralDecay
from moongate.training.optimizer import Optimizer
from moongate.training.plan import Plan, TrainOptions
from moongate.training.runs import Run, check_run, interrupt_after_step
from moongate.training.selection import Judge, best_step, kept_file
from moongate.training.speed import Speed

__all__ = ["Plan", "Step", "TrainOptions", "train"]

RECORDED = (
    *("steps", "seed", "batch", "learning_rate", "token_learning_rate", "neutral_decay", "rare_token"),
    *("initializer_token", "resolution_px", "optimizer", "started_from", "held_out_loss", "versions"),
)
"""Entries of the run's configuration that the concept's record repeats."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` receives after each step."""

    index: int
    """Number of the step, counted from 1."""
    steps: int
    """Number of all steps."""
    loss: float
    target_loss: float
    prior_loss: float
    """0 for a method without regularization pictures."""
    pictures_per_second: float
    """Target and regularization pictures per second, on average since the run began or was resumed."""
    utilization: float | None = None
    """Share of the speed of a matrix product that the run reaches (MFU), 0..1; only on a GPU."""
    held_out_loss: float | None = None
    """Loss of the held-out pictures after a step whose concept is kept and judged."""
    skipped_steps: int = 0
    """Steps so far that changed nothing because gradients overflowed float16."""


def train(
    backbone: Backbone,
    subjects: Sequence[Subject],
    regularization: Sequence[Regularization],
    method: Method | None = None,
    *,
    options: TrainOptions | None = None,
    start_from: Concept | None = None,
    held_out: Sequence[Subject] = (),
    on_step: Callable[[Step], None] | None = None,
) -> Concept:
    """Train on all subjects together and return the concept; afterwards the backbone is unchanged.

    The same seed gives the same concept bit for bit on one machine with one number of threads, also when the run was
    interrupted and resumed.

    Args:
        backbone: The model to train. During `on_step` it holds the weights after the last step that was read.
        subjects: The subjects to teach.
        regularization: One set of pictures for each subject; empty if the method's prior weight is 0.
        method: What is trained, and how fast; None is the model's own method, or custom-diffusion.
        options: Length and batch size of the run, its seed and its folder.
        start_from: A finished concept to continue from (sequential training). Its tokens stay as they are, and the
            result holds its subjects too; what was taught first is forgotten in part.
        held_out: Further pictures of the subjects. The concepts that are kept (`save_every`) are judged by their loss.
        on_step: Called for each step, when its loss is read (`TrainOptions.report_steps`); of several processes that
            train together, only in the first.

    Raises:
        OptionError: A setting does not fit; raised before any work.
        TokenError: A token cannot be used, or two subjects have the same name; raised before any work.
        BaseMismatchError: The concept to start from was made for another backbone; raised before any work.
        TrainingDiverged: The loss is no longer a finite number, or gradients overflow float16 however they are scaled;
            the last good state is saved.
        KeyboardInterrupt: The user stopped the run; the state is saved.
    """
    method = method or method_for(backbone)
    plan = Plan.of(
        backbone, subjects, regularization, method, options=options, start_from=start_from, held_out=held_out
    )
    folder = plan.options.run_folder
    with exclusive(folder) if folder and Ranks.current().is_first else nullcontext():
        return _trained(plan, on_step)


def _trained(plan: Plan, on_step: Callable[[Step], None] | None) -> Concept:
    # Begin.
    backbone, options, ranks = plan.backbone, plan.options, Ranks.current()
    if options.run_folder:  # again: the folder may have changed before it was held
        check_run(options.run_folder, plan.config, resume=options.resume, overwrite=options.overwrite)
    ranks.wait()  # until all have checked the folder, which the first one then changes
    run = Run.begin(options.run_folder, plan.config, resume=options.resume, writes=ranks.is_first)
    with (
        trainable(backbone, plan.method, plan.first_rows, start_from=plan.start_from) as moving,
        backbone.activations_recomputed() if options.recompute else nullcontext(),
        interrupt_after_step() as interrupted,
    ):
        # Resume.
        rates = moving.learning_rates(weights=plan.learning_rate, tokens=plan.token_learning_rate)
        optimizer = Optimizer.of(rates, name=options.optimizer, dtype=backbone.dtype)
        judge = Judge(backbone, plan.held_out, side_px=plan.resolution_px) if plan.held_out else None
        first = _restore(run, moving, optimizer, plan.steps)
        _check_space(options.run_folder, moving)
        batches = Batches(plan, ranks, first=first)
        neutral = NeutralDecay.of(plan)

        # Loop.
        with backbone.autoencoder_parked():
            speed, unread = Speed(plan.pictures_per_step, backbone.device, backbone.dtype), []
            for index, shards in enumerate(batches, first + 1):
                with speed.step():
                    unread.append(_step(batches, shards, moving, optimizer, neutral, stops=interrupted()))
                is_saved = index % options.checkpoint_steps == 0 or index == plan.steps
                if not (is_saved or plan.reports(index) or (ranks.count == 1 and interrupted())):
                    continue
                read, unread = torch.stack(unread).tolist(), []  # the only place that waits for the device
                for step in _steps(plan, index, read, speed, optimizer):
                    if not (math.isfinite(step.loss) or optimizer.scales_loss):  # which leaves such a step out
                        _save(run, step.index - 1, moving, optimizer)
                        raise _diverged(step.index, run.saved_state)
                    if plan.keeps(step.index):
                        step = _kept(plan, step, moving, judge, writes=run.writes)
                    run.log(dataclasses.asdict(step))
                    if on_step and ranks.is_first:
                        on_step(step)
                if optimizer.overflows:
                    _save(run, index, moving, optimizer)
                    raise _overflowed(optimizer.skipped_steps, run.saved_state)
                is_stopping = any(stops for *_, stops in read)
                if is_saved or is_stopping:
                    _save(run, index, moving, optimizer, is_needed=is_stopping)
                if is_stopping:
                    raise KeyboardInterrupt

        # Concept.
        ranks.wait()  # until the first one has written the log
        best = best_step(options.run_folder) if options.keep_best and options.run_folder else None
        if best and options.run_folder:
            return Concept.load(kept_file(options.run_folder, best))
        return _concept(plan, moving, plan.steps)


def _step(
    batches: Batches,
    shards: Sequence[Batch],
    moving: Trainable,
    optimizer: Optimizer,
    neutral: NeutralDecay | None,
    *,
    stops: bool,
) -> Float[Tensor, "4"]:
    """Move what is trained by the gradients of all shards of a step, without waiting for the device.

    Returns:
        The loss, the target loss, the prior loss, and above 0 if any process has been interrupted (`stops`).
    """
    plan, ranks, parts = batches.plan, batches.ranks, []
    for batch in shards:
        target_loss, prior_loss = _losses(plan, batch, batches.text(batch))
        loss = target_loss + plan.method.prior_weight * prior_loss
        optimizer.backward(loss)
        values = torch.stack([loss, target_loss, prior_loss, loss.new_full((), stops)]).detach()
        parts.append([values, *(moving.gradients_taken() if ranks.count > 1 else [])])
    summed, *gradients = ranks.summed(parts)
    for parameter, gradient in zip(moving.parameters(), gradients, strict=ranks.count > 1):
        parameter.grad = gradient
    moved = optimizer.step(summed[0])
    moving.decay(moved * (plan.learning_rate * plan.method.weight_decay))
    if neutral:
        neutral.apply(moving, moved)
    return summed


def _losses(plan: Plan, batch: Batch, text: Conditioning) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return what a shard adds to the target loss over the valid region and to the prior loss (Eq. 2).

    Both are means per element, over all shards of the step.
    """
    backbone, count = plan.backbone, len(batch.masks)
    noisy = backbone.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = backbone.target(batch.latents, batch.noise, batch.timesteps)
    error = (backbone.predict(noisy, batch.timesteps, text) - target).square()
    target_loss = (error[:count] * batch.masks).sum() / batch.counted
    has_prior = len(error) > count
    return target_loss, error[count:].mean() / plan.shards if has_prior else torch.zeros_like(target_loss)


def _steps(
    plan: Plan, last: int, read: Sequence[Sequence[float]], speed: Speed, optimizer: Optimizer
) -> Iterator[Step]:
    """Yield the last steps, of which `_step` returned what was read."""
    for index, (loss, target_loss, prior_loss, _) in enumerate(read, last - len(read) + 1):
        yield Step(
            index=index,
            steps=plan.steps,
            loss=loss,
            target_loss=target_loss,
            prior_loss=prior_loss,
            pictures_per_second=speed.pictures_per_second,
            utilization=speed.utilization,
            skipped_steps=optimizer.skipped_steps,
        )


def _kept(plan: Plan, step: Step, moving: Trainable, judge: Judge | None, *, writes: bool) -> Step:
    """Keep the concept after a step in the run folder, and return the step with the loss of held-out pictures."""
    step = dataclasses.replace(step, held_out_loss=judge.loss() if judge else None)
    if writes and plan.options.run_folder:
        concept = _concept(plan, moving, step.index, held_out_loss=step.held_out_loss)
        concept.save(kept_file(plan.options.run_folder, step.index), overwrite=True)
    return step


def _restore(run: Run, moving: Trainable, optimizer: Optimizer, steps: int) -> int:
    """Load the saved state if the run resumes one, and return the number of steps done."""
    state = run.restore(steps=steps)
    if state is None:
        return 0
    try:
        moving.load_state(state["moving"])
        optimizer.load_state(state)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{run.saved_state} does not hold the state of this run ({first_line(error)}) Start again with --overwrite."
        ) from error
    if state.get("threads", torch.get_num_threads()) != torch.get_num_threads():
        warn(
            f"The run began with a thread count of {state['threads']} and goes on with {torch.get_num_threads()}: its "
            "concept will differ in the last bits from that of an uninterrupted run."
        )
    return int(state["step"])


def _save(run: Run, step: int, moving: Trainable, optimizer: Optimizer, *, is_needed: bool = True) -> None:
    """Save the state, unless a weight is no longer finite: then the last good state is kept.

    A state that cannot be written ends the run only if it is needed, because the concept may fit where it does not.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in moving.parameters()):
        return
    try:
        parts = {"moving": moving.state(), **optimizer.state()}
        run.save({"step": step, "threads": torch.get_num_threads(), **parts})
    except OptionError as error:
        if is_needed:
            raise
        warn(f"{error} Training goes on without this state.")


def _check_space(folder: Path | None, moving: Trainable) -> None:
    """Warn if the state will not fit on the disk: each number, and two of the optimizer for it."""
    needed = 3 * 4 * sum(parameter.numel() for parameter in moving.parameters())
    if folder and shutil.disk_usage(folder).free < needed:
        warn(
            f"{folder} has no room for the state of the training ({needed / 1e6:.1f} MB), so that it could not be "
            "resumed. Free some space, or choose another run folder."
        )


def _diverged(step: int, saved_state: Path | None) -> TrainingDiverged:
    return TrainingDiverged(
        f"The loss is not a finite number at step {step}; training stopped.{_state_in(saved_state)} Lower the learning "
        "rate (--lr-per-picture), or use float32 (--dtype float32)."
    )


def _overflowed(skipped_steps: int, saved_state: Path | None) -> TrainingDiverged:
    return TrainingDiverged(
        f"The gradients overflow float16 in {skipped_steps} steps, however small the loss scale; training stopped."
        f"{_state_in(saved_state)} Use bfloat16 or float32 (--dtype)."
    )


def _state_in(saved_state: Path | None) -> str:
    return f" The last good state is in {saved_state}." if saved_state else ""


def _concept(plan: Plan, moving: Trainable, steps: int, *, held_out_loss: float | None = None) -> Concept:
    """Return the concept of the trained weights and token rows after some steps, with the record of the run."""
    earlier = plan.start_from
    taught = tuple(
        SubjectRecord(category=subject.category, token=subject.token, prompts=tuple(dict.fromkeys(subject.captions)))
        for subject in plan.subjects
    )
    rows = {token: row.detach().float().cpu().clone() for token, row in moving.rows.items()}
    facts = plan.config | {"steps": steps} | ({} if held_out_loss is None else {"held_out_loss": held_out_loss})
    record = {key: facts[key] for key in RECORDED if key in facts}
    used = plan.rare_token + len(plan.first_rows)
    record["next_rare_token"] = max(used, free_rare_token(earlier.record, len(earlier.tokens))) if earlier else used
    subjects = (*(earlier.subjects if earlier else ()), *taught)
    if earlier and (edits := names_of_edits(earlier.record, len(earlier.subjects))):  # so that no merge loses them
        record["rows"] = [{"words": words} for words in (*(subject.words for subject in subjects), *edits)]
    held_out = [name for subject in plan.subjects for name in subject.held_out]
    return Concept(
        deltas={name: Dense(delta=delta.cpu()) for name, delta in moving.deltas().items()},
        tokens={**(earlier.tokens if earlier else {}), **rows},
        token_widths=plan.backbone.token_widths,
        subjects=subjects,
        base=plan.backbone.name,
        fingerprint=plan.backbone.fingerprint,
        method=plan.method.name,
        record=record | ({"held_out": held_out} if held_out else {}),
    )
