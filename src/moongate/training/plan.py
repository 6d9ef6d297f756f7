"""The plan of a training run: everything is resolved and checked before any work begins.

A plan holds what the loop needs, in its final form: captions as the method words them, the rows that new tokens begin
with, sizes, steps and the learning rate. It knows nothing of losses, and it computes no latents.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.text import folded
from moongate.concept import Concept
from moongate.data import Regularization, Subject
from moongate.data.augmentation import PHRASES
from moongate.errors import OptionError, TokenError, shortened, warn
from moongate.extras import versions
from moongate.limits import MAX_BATCH, check_count
from moongate.provenance import free_rare_token
from moongate.ranks import Ranks
from moongate.training.method import Method, initial_rows, usual_steps
from moongate.training.optimizer import OPTIMIZERS, OptimizerName, check_optimizer
from moongate.training.runs import check_run, seeded

__all__ = ["Plan", "TrainOptions"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Length and batch size of a run, its seed, and where it keeps its records.

    Raises:
        OptionError: A number is out of range, or `resume` has no run folder.
    """

    steps: int | None = None
    """Optimizer steps; None takes the method's number for each subject."""
    batch: int | None = None
    """Target pictures per step, None takes the method's number; as many regularization pictures are added."""
    lr_per_picture: float | None = None
    """Learning rate for each picture of a step, between 0 and 1; None takes the method's, scaled for the backbone."""
    learning_rate: float | None = None
    """Learning rate for all pictures of a step together, in place of `lr_per_picture`; between 0 and 1."""
    token_lr_scale: float | None = None
    """Learning rate of the new tokens, as a multiple of that of the weights; above 0. None takes what suits the
    backbone, which is 1 in the paper."""
    neutral_decay: float | None = None
    """Strength of the decay that returns the keys and values of neutral captions to the base's (`NeutralDecay`), 0 or
    more. None takes what suits the backbone if only keys and values are trained, else 0; the paper has none."""
    optimizer: OptimizerName = "adamw"
    """adamw8bit keeps its state in 8 bits (needs bitsandbytes)."""
    resolution_px: int | None = None
    """Side of the training pictures in pixels; None takes the side that the model was trained on."""
    flips: bool = False
    """Whether target pictures are mirrored at random."""
    rare_token: int | None = None
    """Index, from 0, of the backbone's rare token that the first new token begins as. Concepts that will be merged
    should differ in it. None takes the first one, or the first that the concept to start from leaves free."""
    initializer_token: tuple[str, ...] = ()
    """The word that each new token begins as, one for each, instead of a rare token. Each is one token of the model."""
    shards: int | None = None
    """Equal parts of a step, which the processes that train together share; each computes its own one after the other,
    which saves memory. The same number of shards gives the same concept, however many processes there are. None is the
    number that suits the model on a CPU, or as many as there are processes."""
    cache: Path | None = None
    """Folder in which the Gram matrix of neutral captions is kept for the next training; not kept when None."""
    seed: int = 0
    run_folder: Path | None = None
    """Where config.json, log.jsonl and the resumable state.pt are written; None keeps no records."""
    checkpoint_steps: int = 50
    """Number of steps between two saved states. The state is also saved when the run is interrupted."""
    save_every: int | None = None
    """Number of steps between two concepts that are kept in the run folder; None keeps none."""
    keep_best: bool = False
    """Whether the result is the kept concept with the lowest loss of held-out pictures, not that of the last step."""
    report_steps: int | None = None
    """Number of steps between two readings of the losses, after which `on_step` is called for each of these steps.
    None is 1 on a CPU, and 10 on a GPU, which a reading makes wait."""
    look_steps: int = 0
    """Number of steps between those after which `on_step` looks at the weights, so that losses are read there too;
    0 if it never does."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass: less memory, more time, the same result."""
    resume: bool = False
    """Whether the run in `run_folder` is continued: from its last state, or from the beginning if it saved none."""
    overwrite: bool = False
    """Whether another run in `run_folder` may be replaced."""

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_steps", "save_every", "resolution_px", "shards", "report_steps"):
            check_count(name, getattr(self, name))
        check_count("batch", self.batch, at_most=MAX_BATCH)
        if self.rare_token is not None and self.rare_token < 0:
            raise OptionError(f"rare_token is {self.rare_token}; it must be at least 0.")
        for name, usual in (("lr_per_picture", "1e-5"), ("learning_rate", "8e-5")):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise OptionError(f"{name} is {value}; it must be between 0 and 1, such as {usual}.")
        if self.token_lr_scale is not None and not 0 < self.token_lr_scale < math.inf:
            raise OptionError(f"token_lr_scale is {self.token_lr_scale}; it must be above 0, such as 1.")
        if self.neutral_decay is not None and not 0 <= self.neutral_decay < math.inf:
            raise OptionError(f"neutral_decay is {self.neutral_decay}; it must be 0 or more, such as 0.003.")
        if self.learning_rate is not None and self.lr_per_picture is not None:
            raise OptionError(
                f"learning_rate is {self.learning_rate} and lr_per_picture {self.lr_per_picture}, but one of them "
                "decides. Leave one out: learning_rate is that of a whole step, lr_per_picture that of each picture."
            )
        if self.initializer_token and self.rare_token is not None:
            raise OptionError(
                f"New tokens begin as {', '.join(self.initializer_token)} or as a rare token. Leave out "
                "initializer_token or rare_token."
            )
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"Unknown optimizer {self.optimizer!r}. Known: {', '.join(OPTIMIZERS)}.")
        if self.resume and self.run_folder is None:
            raise OptionError("resume needs a run_folder: the one in which the interrupted run left its state.pt.")
        if self.save_every is not None and self.run_folder is None:
            raise OptionError("save_every needs a run_folder, in which the concepts are kept.")
        if self.keep_best and self.save_every is None:
            raise OptionError("keep_best needs save_every: the best of the concepts that are kept becomes the result.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A training run, resolved and checked. `Plan.of` makes one."""

    backbone: Backbone
    subjects: tuple[Subject, ...]
    """The subjects to teach, with their captions as the method words them."""
    regularization: tuple[Regularization, ...]
    """One set of pictures for each subject, or none if the method's prior weight is 0."""
    method: Method
    held_out: tuple[Subject, ...]
    """Further pictures of the subjects, which judge the kept concepts; none if there are none to judge."""
    start_from: Concept | None
    """The concept that sequential training continues from."""
    options: TrainOptions
    """Settings that need no resolution are read from here: seed, flips, recomputation, and the run folder."""
    first_rows: Mapping[str, Float[Tensor, " width"]]
    """The embedding rows that the new tokens begin with, by token."""
    rare_token: int
    """Index of the backbone's rare token that the first new token begins as."""
    steps: int
    """Optimizer steps."""
    targets_per_step: int
    """Target pictures of a step."""
    learning_rate: float
    """Learning rate of the weights, for all pictures of a step together."""
    resolution_px: int
    """Side of the training pictures in pixels."""
    shards: int
    """Equal parts of a step, whose gradients are added in their order."""

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        subjects: Sequence[Subject],
        regularization: Sequence[Regularization] | None,
        method: Method,
        *,
        options: TrainOptions | None = None,
        start_from: Concept | None = None,
        held_out: Sequence[Subject] = (),
        processes: int | None = None,
    ) -> Self:
        """Resolve and check everything that a run needs. Nothing is written and no model is run.

        Args:
            backbone: The model to train.
            subjects: The subjects to teach together.
            regularization: A set of pictures for each subject, or none if the prior weight is 0. None checks the rest.
            method: What is trained, and how fast.
            options: Length and batch size of the run, its seed and its folder.
            start_from: The concept that sequential training continues from.
            held_out: Further pictures of the subjects, which judge the kept concepts.
            processes: How many will train together; None is how many have joined.

        Raises:
            OptionError: A number is out of range, the concept to start from does not suit the method, something is
                missing, or the run folder holds a run already.
            MissingLibrary: The optimizer is not installed.
            TokenError: A token cannot be used, two subjects have the same name, or a caption is cut before the token.
            BaseMismatchError: The concept to start from was made for another backbone.
        """
        options = options or TrainOptions()
        _check_options(options, held_out)
        _check_subjects(backbone, subjects, method, start_from)
        first_rows = _first_rows(backbone, subjects, method, options, rare_token := _rare_token(options, start_from))
        if regularization is not None:
            _check_regularization(subjects, regularization, method)
        worded, judges = (tuple(_worded(subject, method) for subject in some) for some in (subjects, held_out))
        with backbone.tokens({**(start_from.tokens if start_from else {}), **first_rows}):
            _check_captions(backbone, (*worded, *judges), regularization or (), method)
        targets_per_step = options.batch or method.targets_per_step
        plan = cls(
            backbone=backbone,
            subjects=worded,
            regularization=tuple(regularization or ()),
            method=method,
            held_out=judges,
            start_from=start_from,
            options=options,
            first_rows=first_rows,
            rare_token=rare_token,
            steps=options.steps or usual_steps(backbone.settings, method, len(subjects)),
            targets_per_step=targets_per_step,
            learning_rate=_learning_rate(options, method, backbone, _pictures_per_step(targets_per_step, method)),
            resolution_px=_resolution_px(options, backbone),
            shards=_shards(targets_per_step, options.shards, backbone, processes or Ranks.current().count),
        )
        if options.run_folder and regularization is not None:
            check_run(options.run_folder, plan.config, resume=options.resume, overwrite=options.overwrite)
        return plan

    @property
    def pictures_per_step(self) -> int:
        """Target and regularization pictures of a step."""
        return _pictures_per_step(self.targets_per_step, self.method)

    @property
    def token_learning_rate(self) -> float:
        """Learning rate of the new tokens, for all pictures of a step together."""
        return self.learning_rate * (self.options.token_lr_scale or self.backbone.settings.token_lr_scale)

    @property
    def neutral_decay(self) -> float:
        """Strength of the decay that returns neutral captions to the base; 0 is none."""
        if self.options.neutral_decay is not None:
            return self.options.neutral_decay
        return self.backbone.settings.neutral_decay if self.method.weights == "cross-attention-kv" else 0.0

    def keeps(self, step: int) -> bool:
        """Return whether the concept after a step, counted from 1, is kept: every `save_every` steps, and the last."""
        every = self.options.save_every
        return every is not None and (step % every == 0 or step == self.steps)

    def reports(self, step: int) -> bool:
        """Return whether losses are read after a step, counted from 1."""
        every = self.options.report_steps or (1 if self.backbone.device.type == "cpu" else 10)
        looks = self.options.look_steps
        return step % every == 0 or self.keeps(step) or (looks > 0 and step % looks == 0)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that decides the result of the run, as plain JSON."""
        config = {
            "backbone": self.backbone.name,
            "fingerprint": self.backbone.fingerprint.short,
            "dtype": str(self.backbone.dtype),
            "device": self.backbone.device.type,
            "subjects": [
                {
                    "category": subject.category,
                    "token": subject.token,
                    "captions": list(subject.captions),
                    "pictures": subject.hash,
                    "held_out": list(subject.held_out),
                }
                for subject in self.subjects
            ],
            "regularization": [
                {"source": prior.source, "pictures": len(prior.pictures), "content": prior.hash}
                for prior in self.regularization
            ],
            "method": dataclasses.asdict(self.method),
            "batch": self.targets_per_step,
            "flips": self.options.flips,
            "seed": self.options.seed,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "rare_token": self.rare_token,
        }
        chosen = {  # entries of options that most runs leave alone, so that runs of earlier versions can be resumed
            "started_from": self.start_from.hash if self.start_from else None,
            "token_learning_rate": self.token_learning_rate if self.token_learning_rate != self.learning_rate else None,
            "neutral_decay": self.neutral_decay,
            "resolution_px": self.options.resolution_px,
            "initializer_token": list(self.options.initializer_token),
            "optimizer": self.options.optimizer if self.options.optimizer != "adamw" else None,
            "shard": self.targets_per_step // self.shards if self.shards > 1 else None,
            "judged_by": [subject.hash for subject in self.held_out],
        }
        return config | {key: value for key, value in chosen.items() if value}


def _shards(targets_per_step: int, wanted: int | None, backbone: Backbone, processes: int) -> int:
    """Return the number of shards of a step, which must be equal, and of which each process gets as many.

    What suits the model does not depend on this machine, and its concepts neither.
    """
    suits = math.gcd(targets_per_step, backbone.settings.shards if backbone.device.type == "cpu" else 1)
    shards = wanted or (suits if suits % processes == 0 else processes)
    if targets_per_step % shards:
        raise OptionError(
            f"{targets_per_step} target pictures of a step cannot be divided into {shards} equal shards. Choose a "
            f"--batch that is a multiple of {shards}, or other numbers of --accumulate and of processes."
        )
    if shards % processes:
        raise OptionError(
            f"{shards} shards of a step cannot be divided among {processes} processes. Choose another number of "
            "processes, or of shards (--accumulate)."
        )
    return shards


def _pictures_per_step(targets_per_step: int, method: Method) -> int:
    return targets_per_step * (2 if method.prior_weight else 1)


def _check_subjects(
    backbone: Backbone, subjects: Sequence[Subject], method: Method, start_from: Concept | None
) -> None:
    if not subjects:
        raise OptionError("There is no subject to train on. Give at least one.")
    tokens = [subject.token for subject in subjects if subject.token]
    for token in tokens:
        backbone.check_token(token)
    names = [*(start_from.tokens if start_from else ())]
    names += [record.category for record in (start_from.subjects if start_from else ()) if not record.token]
    names += [subject.token or subject.category for subject in subjects]
    for index, name in enumerate(names):
        for earlier in names[:index]:
            if folded(earlier) == folded(name):
                called = f"both called {name!r}" if earlier == name else f"called {earlier!r} and {name!r}"
                why = "" if earlier == name else ", which the text encoder reads as one word"
                raise TokenError(f"Two subjects are {called}{why}. Give each a token of its own.")
    if method.weights is None and not tokens:
        raise TokenError(f"The method {method.name!r} trains only tokens, but no subject has one. Give a token.")
    if start_from:
        _check_start(start_from, backbone, method)


def _check_captions(
    backbone: Backbone, subjects: Sequence[Subject], regularization: Sequence[Regularization], method: Method
) -> None:
    """Check that the text encoder reads what captions are to teach, and warn of what else it does not read.

    The tokens must be in use. Augmentation puts a phrase before a caption, which may move its end behind the limit.
    """
    phrases = ["", *(phrase for size in PHRASES.values() for phrase in size)] if method.augments else [""]
    for subject in subjects:
        name = subject.token or subject.category
        for caption in dict.fromkeys(subject.captions):
            for phrase in phrases:
                longer = f"{phrase} {caption}".strip()
                lost = backbone.cut_off(longer)
                if lost and name.lower() in longer.lower() and name.lower() not in longer.removesuffix(lost).lower():
                    before = f" with {phrase!r} before it" if phrase else ""
                    raise TokenError(
                        f"The caption {shortened(caption)!r}{before} is longer than the text encoder reads. Its end "
                        f"with {name!r} would be cut off and not be learned. Shorten it, or begin it with {name!r}."
                    )
            if unknown := backbone.unknown_tokens(caption):
                warn(f"{unknown[0]!r} in the caption {caption!r} is not a trained token; it is read as letters.")
    _warn_of_cut_captions(backbone, "", [caption for subject in subjects for caption in subject.captions])
    _warn_of_cut_captions(backbone, "regularization ", [text for prior in regularization for text in prior.captions])


def _warn_of_cut_captions(backbone: Backbone, kind: str, captions: Sequence[str]) -> None:
    """Warn of captions whose end the text encoder does not read, with the part of the first one."""
    cut = {caption: backbone.cut_off(caption) for caption in dict.fromkeys(captions)}
    cut = {caption: lost for caption, lost in cut.items() if lost}
    if cut:
        first = next(iter(cut))
        warn(
            f"{len(cut)} {kind}captions are longer than the text encoder reads. Of {shortened(first)!r} this end has "
            f"no effect: {shortened(cut[first])!r}."
        )


def _check_start(start_from: Concept, backbone: Backbone, method: Method) -> None:
    start_from.check_base(backbone)
    trained = backbone.weights(method.weights) if method.weights else {}
    if fixed := sorted(set(start_from.deltas) - set(trained)):
        raise OptionError(
            f"The concept to start from changes {fixed[0]!r}, which the method {method.name!r} does not train. "
            f"Use the method it was made by, {start_from.method!r}."
        )


def _check_regularization(
    subjects: Sequence[Subject], regularization: Sequence[Regularization], method: Method
) -> None:
    if method.prior_weight and len(regularization) != len(subjects):
        raise OptionError(
            f"The number of subjects is {len(subjects)}, but {len(regularization)} sets of regularization pictures "
            "were given. Give one set for each subject, or choose a method with a prior weight of 0."
        )
    if regularization and not method.prior_weight:
        raise OptionError(
            f"The method {method.name!r} uses no regularization pictures, but some were given. Leave them out, or "
            "choose a method with a prior weight above 0."
        )


def _first_rows(
    backbone: Backbone, subjects: Sequence[Subject], method: Method, options: TrainOptions, rare_token: int
) -> dict[str, Float[Tensor, " width"]]:
    categories = {subject.token: subject.category for subject in subjects if subject.token}
    generator = seeded(options.seed, "rows")
    return initial_rows(backbone, categories, method, generator, first=rare_token, words=options.initializer_token)


def _check_options(options: TrainOptions, held_out: Sequence[Subject]) -> None:
    check_optimizer(options.optimizer)
    if held_out and options.save_every is None:
        raise OptionError("Held-out pictures judge the concepts that are kept. Give save_every, or leave them out.")
    if options.keep_best and not held_out:
        raise OptionError("keep_best needs held-out pictures, by which the kept concepts are judged. Give some.")


def _learning_rate(options: TrainOptions, method: Method, backbone: Backbone, pictures: int) -> float:
    """Return the learning rate of a whole step with this number of pictures."""
    if options.learning_rate is not None:
        return options.learning_rate
    return (options.lr_per_picture or method.lr_per_picture * backbone.settings.lr_scale) * pictures


def _resolution_px(options: TrainOptions, backbone: Backbone) -> int:
    """Return the side of the training pictures, from a quarter to four times that of the model."""
    own, cell = backbone.resolution_px, backbone.latent_scale
    side = options.resolution_px or own
    if side % cell or not own / 4 <= side <= 4 * own:
        raise OptionError(
            f"resolution is {side} px. It must be a multiple of {cell} between {own // 4} and {4 * own}; the model was "
            f"trained on {own}."
        )
    return side


def _rare_token(options: TrainOptions, start_from: Concept | None) -> int:
    """Return the index of the first rare token to use: the one asked for, or the first that is free."""
    free = free_rare_token(start_from.record, len(start_from.tokens)) if start_from else 0
    return free if options.rare_token is None else options.rare_token


def _worded(subject: Subject, method: Method) -> Subject:
    captions = [method.worded(caption, token=subject.token, category=subject.category) for caption in subject.captions]
    return dataclasses.replace(subject, captions=tuple(captions))
