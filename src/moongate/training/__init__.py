"""Teach a backbone one or several subjects and return the Concept (paper, Sec. 3.2 and 4).

Subjects are taught together (joint training) or one after the other (sequential training, from a finished concept).
The objective is the denoising loss of the target pictures over their valid region plus `prior_weight` times that of
the regularization pictures, each a mean per element. The loop never draws pictures: whoever wants validation hands
in `on_step`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.data import ZOOM, Regularization, Subject, augment, square
from moongate.errors import OptionError, TokenError, TrainingDiverged
from moongate.extras import versions
from moongate.training.method import METHODS, Method, Trainable, initial_rows, trainable
from moongate.training.runs import Run, interrupt_after_step, seeded

__all__ = ["Step", "TrainOptions", "check_subjects", "train"]

ENCODE_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Length and size of a run, its seed, and where it keeps its records."""

    steps: int | None = None
    """Optimizer steps; as many for each subject as the method wants when None."""
    batch: int | None = None
    """Target pictures per step, the method's when None; as many regularization pictures join them."""
    lr_per_picture: float | None = None
    """Learning rate for each picture of a step; the method's, scaled for the backbone, when None."""
    flips: bool = False
    """Whether target pictures may be mirrored."""
    rare_token: int | None = None
    """Which of the backbone's rare tokens the first new token begins as; concepts to be merged should differ in it.
    When None the first, or the first that the concept to start from leaves free."""
    seed: int = 0
    run_folder: Path | None = None
    """Where config.json, log.jsonl and the resumable state.pt are written; nowhere when None."""
    checkpoint_steps: int = 50
    """Save the resumable state every so many steps, and when the run is interrupted."""
    recompute: bool = False
    """Compute activations again on the way back instead of keeping them: less memory, more time, the same result."""
    resume: bool = False
    """Continue from the state in `run_folder`."""
    overwrite: bool = False
    """Whether a run folder that holds another run may be replaced."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it must be at least 1.")
        if self.rare_token is not None and self.rare_token < 0:
            raise OptionError(f"rare_token is {self.rare_token}; it counts from 0.")
        if self.lr_per_picture is not None and not 0 < self.lr_per_picture < 1:
            raise OptionError(f"lr_per_picture is {self.lr_per_picture}; it must be between 0 and 1, such as 1e-5.")
        if self.resume and self.run_folder is None:
            raise OptionError("resume needs a run_folder: the one in which the interrupted run left its state.pt.")

    def targets_per_step(self, method: Method) -> int:
        """Return the target pictures of a step."""
        return self.batch or method.targets_per_step


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` is told after each step; `index` counts from 1."""

    index: int
    steps: int
    loss: float
    target_loss: float
    prior_loss: float
    pictures_per_second: float


@dataclass(frozen=True, kw_only=True)
class _Prior:
    """Regularization pictures as latents, captions as the denoiser reads them: they cannot change, so are made once."""

    latents: Float[Tensor, "n c lh lw"]
    text: Conditioning


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """One step's target images, the latent cells that count in the loss, captions, and prior rows."""

    images: Float[Tensor, "b 3 h w"]
    masks: Bool[Tensor, "b 1 lh lw"]
    captions: list[str]
    prior: _Prior | None


def train(
    backbone: Backbone,
    subjects: Sequence[Subject],
    regularization: Sequence[Regularization],
    method: Method = METHODS["custom-diffusion"],
    *,
    options: TrainOptions | None = None,
    start_from: Concept | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Concept:
    """Train on all subjects together and return the concept; the backbone is as before when this returns.

    `regularization` has one entry for each subject, or is empty when the method's prior weight is 0. With
    `start_from` the weights go on from that concept, whose tokens stay as they are, and the concept returned holds
    its subjects too: the paper's sequential training, which forgets some of what came first. The same seed gives
    the same concept bit for bit on one machine, also when the run was interrupted and resumed. During `on_step` the
    backbone holds the weights so far.

    Raises OptionError or TokenError before any work when something does not fit, TrainingDiverged when the loss is
    no longer finite, and KeyboardInterrupt (after saving the state) when the user stops the run.
    """
    options = options or TrainOptions()
    check_subjects(backbone, subjects, method, options=options, start_from=start_from)
    _check_regularization(subjects, regularization, method)
    subjects = [_worded(subject, method) for subject in subjects]
    steps = options.steps or method.steps_per_subject * len(subjects)
    rate = _rate(backbone, method, options, paired=bool(regularization))
    config = _config(backbone, subjects, regularization, method, options)
    config |= {"steps": steps, "learning_rate": rate, "rare_token": _first_rare_token(options, start_from)}
    config |= {"started_from": start_from.hash} if start_from else {}
    run = Run.begin(options.run_folder, config, resume=options.resume, overwrite=options.overwrite)
    drawer = _Drawer(backbone, subjects, regularization, method, options)
    rows = _first_rows(backbone, subjects, method, options, start_from)
    with (
        trainable(backbone, method, rows, start_from=start_from) as moving,
        backbone.activations_recomputed() if options.recompute else nullcontext(),
        interrupt_after_step() as interrupted,
    ):
        optimizer = torch.optim.AdamW(moving.parameters(), lr=rate, weight_decay=0.0)
        start = _restore(run, moving, optimizer)
        began = time.monotonic()
        for index in range(start, steps):
            losses = _losses(backbone, drawer.batch(index), seeded(options.seed, "noise", index))
            loss = losses[0] + method.prior_weight * losses[1]
            if not math.isfinite(loss.item()):
                raise _diverged(run, index, moving, optimizer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            moving.decay(rate * method.weight_decay)
            step = _report(index + 1, steps, loss, losses, (index + 1 - start) * drawer.pictures_per_step, began)
            run.log(dataclasses.asdict(step))
            if on_step:
                on_step(step)
            stopping = interrupted()
            if stopping or step.index % options.checkpoint_steps == 0 or step.index == steps:
                _save(run, step.index, moving, optimizer)
            if stopping:
                raise KeyboardInterrupt
        return _concept(backbone, subjects, method, config, moving, start_from)


def check_subjects(
    backbone: Backbone,
    subjects: Sequence[Subject],
    method: Method,
    *,
    options: TrainOptions,
    start_from: Concept | None = None,
) -> None:
    """Raise OptionError, TokenError or BaseMismatchError unless the subjects can be taught by the method.

    `train` calls it; so may whoever has regularization pictures yet to draw.
    """
    if not subjects:
        raise OptionError("There is no subject to train on. Give at least one.")
    tokens = [subject.token for subject in subjects if subject.token]
    for token in tokens:
        backbone.check_token(token)
    everything: list[SubjectRecord | Subject] = [*(start_from.subjects if start_from else ()), *subjects]
    names = [each.token or each.category for each in everything]
    if twice := [name for name in names if names.count(name) > 1]:
        raise TokenError(f"Two subjects are both called {twice[0]!r}. Give each a token of its own.")
    if method.weights is None and not tokens:
        raise TokenError(f"The method {method.name!r} trains tokens alone, but no subject has one. Give a token.")
    if start_from:
        start_from.check_base(backbone)
        moves = backbone.weights(method.weights) if method.weights else {}
        if other := sorted(set(start_from.deltas) - set(moves)):
            raise OptionError(
                f"The concept to start from changes {other[0]!r}, which the method {method.name!r} does not train. "
                f"Go on with the method it was made by, {start_from.method!r}."
            )
    _first_rows(backbone, subjects, method, options, start_from)


def _check_regularization(
    subjects: Sequence[Subject], regularization: Sequence[Regularization], method: Method
) -> None:
    if method.prior_weight and len(regularization) != len(subjects):
        raise OptionError(
            f"{len(subjects)} subjects need as many sets of regularization pictures, but {len(regularization)} were "
            "given. Give one for each, or choose a method with a prior weight of 0."
        )
    if regularization and not method.prior_weight:
        raise OptionError(f"The method {method.name!r} uses no regularization pictures, but some were given.")


def _worded(subject: Subject, method: Method) -> Subject:
    """Return the subject with its captions as the method says them."""
    worded = [method.worded(text, token=subject.token, category=subject.category) for text in subject.captions]
    return dataclasses.replace(subject, captions=tuple(worded))


def _rate(backbone: Backbone, method: Method, options: TrainOptions, *, paired: bool) -> float:
    per_picture = options.lr_per_picture or method.lr_per_picture * backbone.lr_scale
    return per_picture * options.targets_per_step(method) * (2 if paired else 1)


def _first_rare_token(options: TrainOptions, start_from: Concept | None) -> int:
    if options.rare_token is not None or start_from is None:
        return options.rare_token or 0
    return start_from.record.get("rare_token", 0) + len(start_from.tokens)


def _first_rows(
    backbone: Backbone, subjects: Sequence[Subject], method: Method, options: TrainOptions, start_from: Concept | None
) -> dict[str, Tensor]:
    """Return the rows that the new tokens begin as. Raises OptionError when there are not enough rare tokens."""
    categories = {subject.token: subject.category for subject in subjects if subject.token}
    return initial_rows(
        backbone,
        list(categories),
        method,
        seeded(options.seed, "rows"),
        first=_first_rare_token(options, start_from),
        categories=list(categories.values()),
    )


class _Drawer:
    """Draws the batch of a step from the seed and the step's index alone."""

    def __init__(
        self,
        backbone: Backbone,
        subjects: Sequence[Subject],
        regularization: Sequence[Regularization],
        method: Method,
        options: TrainOptions,
    ) -> None:
        self.backbone = backbone
        self.subjects = subjects
        self.method = method
        self.options = options
        self.targets_per_step = options.targets_per_step(method)
        self.pictures_per_step = self.targets_per_step * (2 if regularization else 1)
        side = round(backbone.resolution_px * ZOOM[1])
        self._sources = [
            [square(picture, side, mask=mask) for picture, mask in zip_longest(subject.pictures, subject.masks)]
            for subject in subjects
        ]
        self._priors = [_encode_prior(given, backbone) for given in regularization]

    def batch(self, index: int) -> _Batch:
        """Return batch `index`; subjects take turns, so that a small set is shown as often as a large one."""
        generator = seeded(self.options.seed, "augment", index)
        drawn, captions, latents, text = [], [], [], []
        for turn in range(index * self.targets_per_step, (index + 1) * self.targets_per_step):
            nth, which = divmod(turn, len(self.subjects))
            subject = self.subjects[which]
            row = self._row(nth, len(subject.pictures), "picture", which)
            drawn.append(
                augment(
                    self._sources[which][row],
                    side_px=self.backbone.resolution_px,
                    cell_px=self.backbone.latent_scale,
                    generator=generator,
                    flips=self.options.flips,
                    resizes=self.method.augments,
                )
            )
            captions.append(drawn[-1].caption(subject.captions[row]))
            if self._priors:
                prior = self._priors[which]
                prior_row = self._row(nth, len(prior.latents), "prior", which)
                latents.append(prior.latents[prior_row])
                text.append(prior.text[prior_row : prior_row + 1])
        return _Batch(
            images=torch.stack([item.image for item in drawn]),
            masks=torch.stack([item.mask for item in drawn])[:, None],
            captions=captions,
            prior=_Prior(latents=torch.stack(latents), text=Conditioning.cat(text)) if latents else None,
        )

    def _row(self, nth: int, count: int, *label: object) -> int:
        """Return the `nth` row of an endless sequence of shuffled passes over `count` rows."""
        passed, place = divmod(nth, count)
        return int(torch.randperm(count, generator=seeded(self.options.seed, *label, passed))[place])


@torch.no_grad()
def _encode_prior(regularization: Regularization, backbone: Backbone) -> _Prior:
    latents, text = [], []
    for begin in range(0, len(regularization.pictures), ENCODE_AT_ONCE):
        chosen = slice(begin, begin + ENCODE_AT_ONCE)
        images = [square(picture, backbone.resolution_px) for picture in regularization.pictures[chosen]]
        latents.append(backbone.encode_images(torch.stack(images)))
        text.append(backbone.encode_text(regularization.captions[chosen]))
    return _Prior(latents=torch.cat(latents), text=Conditioning.cat(text))


def _losses(backbone: Backbone, batch: _Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the target loss, over the valid region, and the prior loss (Eq. 2): means per element, so 1:1."""
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
    target = _masked_mean(error[:count], batch.masks.to(error.device))
    return target, error[count:].mean() if batch.prior else torch.zeros((), device=error.device)


def _masked_mean(values: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    return (values * mask).sum() / (mask.sum() * values.shape[1]).clamp(min=1)


def _timesteps(count: int, total: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(0, total, (count,), generator=generator)


def _restore(run: Run, moving: Trainable, optimizer: torch.optim.Optimizer) -> int:
    """Load the saved state, if the run resumes one, and return the number of steps done."""
    state = run.restore()
    if state is None:
        return 0
    moving.load_state(state["moving"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save(run: Run, step: int, moving: Trainable, optimizer: torch.optim.Optimizer) -> None:
    """Save the state, unless a weight is no longer finite: the last good state is then kept."""
    if all(bool(parameter.isfinite().all()) for parameter in moving.parameters()):
        run.save({"step": step, "moving": moving.state(), "optimizer": optimizer.state_dict()})


def _diverged(run: Run, step: int, moving: Trainable, optimizer: torch.optim.Optimizer) -> TrainingDiverged:
    _save(run, step, moving, optimizer)
    kept = f" The last good state is in {run.saved_state}." if run.saved_state else ""
    return TrainingDiverged(
        f"The loss is not a finite number at step {step + 1}; training stopped.{kept} Lower the rate "
        "(--lr-per-picture), or use float32 (--dtype float32)."
    )


def _report(index: int, steps: int, loss: Tensor, losses: tuple[Tensor, Tensor], pictures: int, began: float) -> Step:
    return Step(
        index=index,
        steps=steps,
        loss=loss.item(),
        target_loss=losses[0].item(),
        prior_loss=losses[1].item(),
        pictures_per_second=pictures / (time.monotonic() - began),
    )


def _concept(
    backbone: Backbone,
    subjects: Sequence[Subject],
    method: Method,
    config: dict[str, Any],
    moving: Trainable,
    start_from: Concept | None,
) -> Concept:
    taught = tuple(
        SubjectRecord(category=subject.category, token=subject.token, prompts=tuple(dict.fromkeys(subject.captions)))
        for subject in subjects
    )
    rows = {token: row.detach().float().cpu().clone() for token, row in moving.rows.items()}
    recorded = ("steps", "seed", "batch", "learning_rate", "rare_token", "started_from", "versions")
    return Concept(
        deltas={name: Dense(delta=delta.cpu()) for name, delta in moving.deltas().items()},
        tokens={**(start_from.tokens if start_from else {}), **rows},
        token_widths=backbone.token_widths,
        subjects=(*(start_from.subjects if start_from else ()), *taught),
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        method=method.name,
        record={key: config[key] for key in recorded if key in config}
        | ({"held_out": held_out} if (held_out := [name for s in subjects for name in s.held_out]) else {}),
    )


def _config(
    backbone: Backbone,
    subjects: Sequence[Subject],
    regularization: Sequence[Regularization],
    method: Method,
    options: TrainOptions,
) -> dict[str, Any]:
    """Return all that decides the outcome of a run, as plain JSON."""
    return {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint.short,
        "dtype": str(backbone.dtype),
        "device": backbone.device.type,
        "subjects": [
            {
                "category": s.category,
                "token": s.token,
                "captions": list(s.captions),
                "pictures": s.hash,
                "held_out": list(s.held_out),
            }
            for s in subjects
        ],
        "regularization": [
            {"source": r.source, "pictures": len(r.pictures), "content": r.hash} for r in regularization
        ],
        "method": dataclasses.asdict(method),
        "batch": options.targets_per_step(method),
        "flips": options.flips,
        "seed": options.seed,
        "versions": versions(),
    }
