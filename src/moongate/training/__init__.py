"""Teach a backbone one or several subjects and return the Concept (paper, Sec. 3.2 and 4).

Subjects are taught together (joint training) or one after the other (sequential training, from a finished concept).
The objective is the denoising loss of the target pictures over their valid region plus `prior_weight` times that of
the regularization pictures, each a mean per element (Eq. 2). The loop never draws pictures; `on_step` may.
"""

import dataclasses
import math
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.data import Regularization, Subject
from moongate.errors import OptionError, TrainingDiverged, first_line
from moongate.files import exclusive
from moongate.training.batches import Batch, Batches
from moongate.training.method import Method, Trainable, method_for, trainable
from moongate.training.optimizer import Optimizer
from moongate.training.plan import Plan, TrainOptions
from moongate.training.runs import LOG, Run, check_run, interrupt_after_step, seeded
from moongate.training.selection import Judge, best_step, kept_file

__all__ = ["Plan", "Step", "TrainOptions", "train"]

RECORDED = (
    *("steps", "seed", "batch", "learning_rate", "rare_token", "initializer_token", "resolution_px", "optimizer"),
    *("started_from", "held_out_loss", "versions"),
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
        backbone: The model to train. During `on_step` it holds the weights trained so far.
        subjects: The subjects to teach.
        regularization: One set of pictures for each subject; empty if the method's prior weight is 0.
        method: What is trained, and how fast; None is the model's own method, or custom-diffusion.
        options: Length and batch size of the run, its seed and its folder.
        start_from: A finished concept to continue from (sequential training). Its tokens stay as they are, and the
            result holds its subjects too; what was taught first is forgotten in part.
        held_out: Further pictures of the subjects. The concepts that are kept (`save_every`) are judged by their loss.
        on_step: Called after each step.

    Raises:
        OptionError: A setting does not fit; raised before any work.
        TokenError: A token cannot be used, or two subjects have the same name; raised before any work.
        BaseMismatchError: The concept to start from was made for another backbone; raised before any work.
        TrainingDiverged: The loss is no longer a finite number; the last good state is saved.
        KeyboardInterrupt: The user stopped the run; the state is saved.
    """
    method = method or method_for(backbone)
    plan = Plan.of(
        backbone, subjects, regularization, method, options=options, start_from=start_from, held_out=held_out
    )
    folder = plan.options.run_folder
    with exclusive(folder) if folder else nullcontext():
        return _trained(plan, on_step)


def _trained(plan: Plan, on_step: Callable[[Step], None] | None) -> Concept:
    # Begin.
    backbone, method, options = plan.backbone, plan.method, plan.options
    if options.run_folder:  # again: the folder may have changed before it was held
        check_run(options.run_folder, plan.config, resume=options.resume, overwrite=options.overwrite)
    run = Run.begin(options.run_folder, plan.config, resume=options.resume)
    batches = Batches(plan)
    with (
        trainable(backbone, method, plan.first_rows, start_from=plan.start_from) as moving,
        backbone.activations_recomputed() if options.recompute else nullcontext(),
        interrupt_after_step() as interrupted,
    ):
        # Resume.
        optimizer = Optimizer.of(
            moving.parameters(), name=options.optimizer, learning_rate=plan.learning_rate, dtype=backbone.dtype
        )
        judge = Judge(backbone, plan.held_out, side_px=plan.resolution_px) if plan.held_out else None
        first, began = _restore(run, moving, optimizer, plan.steps), time.monotonic()
        _check_space(options.run_folder, moving)

        # Loop.
        for index in range(first, plan.steps):
            target_loss, prior_loss = _losses(backbone, batches.draw(index), seeded(options.seed, "noise", index))
            loss = target_loss + method.prior_weight * prior_loss
            if not (math.isfinite(loss.item()) or optimizer.scales_loss):  # which leaves such a step out
                _save(run, index, moving, optimizer)
                raise _diverged(index + 1, run.saved_state)
            optimizer.backward(loss)
            if optimizer.step():
                moving.decay(plan.learning_rate * method.weight_decay)
            is_kept = plan.keeps(index + 1)
            step = Step(
                index=index + 1,
                steps=plan.steps,
                loss=loss.item(),
                target_loss=target_loss.item(),
                prior_loss=prior_loss.item(),
                pictures_per_second=(index + 1 - first) * plan.pictures_per_step / (time.monotonic() - began),
                held_out_loss=judge.loss() if judge and is_kept else None,
                skipped_steps=optimizer.skipped_steps,
            )
            run.log(dataclasses.asdict(step))
            if is_kept and options.run_folder:
                kept = _concept(plan, moving, step.index, held_out_loss=step.held_out_loss)
                kept.save(kept_file(options.run_folder, step.index), overwrite=True)
            if on_step:
                on_step(step)
            is_stopping = interrupted()
            if is_stopping or step.index % options.checkpoint_steps == 0 or step.index == plan.steps:
                _save(run, step.index, moving, optimizer, is_needed=is_stopping)
            if is_stopping:
                raise KeyboardInterrupt

        # Concept.
        best = best_step(options.run_folder / LOG) if options.keep_best and options.run_folder else None
        if best and options.run_folder:
            return Concept.load(kept_file(options.run_folder, best))
        return _concept(plan, moving, plan.steps)


def _losses(
    backbone: Backbone, batch: Batch, generator: torch.Generator
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the target loss over the valid region and the prior loss (Eq. 2), each a mean per element."""
    latents = backbone.encode_images(batch.images).float()
    text = backbone.encode_text(batch.captions)
    if batch.prior:
        latents = torch.cat([latents, batch.prior.latents.float()])
        text = Conditioning.cat([text, batch.prior.text])
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    timesteps = _timesteps(len(latents), backbone.train_timesteps, generator).to(latents.device)
    noisy = backbone.schedule.add_noise(latents, noise, timesteps)
    error = (backbone.predict(noisy, timesteps, text) - backbone.target(latents, noise, timesteps)).square()
    count = len(batch.captions)
    target_loss = _masked_mean(error[:count], batch.masks.to(error.device))
    return target_loss, error[count:].mean() if batch.prior else torch.zeros((), device=error.device)


def _masked_mean(
    values: Float[Tensor, "n channels height width"], mask: Bool[Tensor, "n 1 height width"]
) -> Float[Tensor, ""]:
    """Return the mean of the values where the mask is true; 0 where it is true nowhere."""
    return (values * mask).sum() / (mask.sum() * values.shape[1]).clamp(min=1)


def _timesteps(count: int, total: int, generator: torch.Generator) -> Int[Tensor, " {count}"]:
    return torch.randint(0, total, (count,), generator=generator)


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
        warnings.warn(
            f"The run was started with {state['threads']} threads and goes on with {torch.get_num_threads()}: its "
            "concept will differ in the last bits from that of an uninterrupted run.",
            stacklevel=2,
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
        warnings.warn(f"{error} Training goes on without this state.", stacklevel=2)


def _check_space(folder: Path | None, moving: Trainable) -> None:
    """Warn if the state will not fit on the disk: each number, and two of the optimizer for it."""
    needed = 3 * 4 * sum(parameter.numel() for parameter in moving.parameters())
    if folder and shutil.disk_usage(folder).free < needed:
        warnings.warn(
            f"{folder} has no room for the state of the training ({needed / 1e6:.0f} MB), so that it could not be "
            "resumed. Free some space, or choose another run folder.",
            stacklevel=2,
        )


def _diverged(step: int, saved_state: Path | None) -> TrainingDiverged:
    kept = f" The last good state is in {saved_state}." if saved_state else ""
    return TrainingDiverged(
        f"The loss is not a finite number at step {step}; training stopped.{kept} Lower the learning rate "
        "(--lr-per-picture), or use float32 (--dtype float32)."
    )


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
    held_out = [name for subject in plan.subjects for name in subject.held_out]
    return Concept(
        deltas={name: Dense(delta=delta.cpu()) for name, delta in moving.deltas().items()},
        tokens={**(earlier.tokens if earlier else {}), **rows},
        token_widths=plan.backbone.token_widths,
        subjects=(*(earlier.subjects if earlier else ()), *taught),
        base=plan.backbone.name,
        fingerprint=plan.backbone.fingerprint,
        method=plan.method.name,
        record=record | ({"held_out": held_out} if held_out else {}),
    )
