"""The command `moongate train`."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.holdout import Holdout, holdouts
from moongate.cli.launch import launched
from moongate.cli.options import (
    WITHOUT_DEFAULT,
    Code,
    Dtype,
    Flag,
    Model,
    ModelOptions,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalStr,
    Output,
    OutputOptions,
    cache_folder,
    check_concept_file,
    read_concepts,
)
from moongate.cli.subjects import SubjectOptions, subjects_from_file, subjects_from_options
from moongate.cli.terminal import bytes_of, plain, progress_bar, readable, say, say_notes, training_bar
from moongate.cli.watching import Watch, interruption_explained, say_best, say_memory, say_written
from moongate.errors import OptionError, warn
from moongate.limits import check_count

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept, SubjectRecord
    from moongate.data import Preset, Regularization, Subject
    from moongate.ranks import Ranks
    from moongate.regularization import RegularizationOptions
    from moongate.training import TrainOptions
    from moongate.training.method import Method

__all__ = ["Train"]

OptionalTracker = Annotated[Literal["tensorboard", "wandb"] | None, WITHOUT_DEFAULT]
RESULT = "result.json"
"""File in a run folder with the digest of the concept file that the run wrote, which it may replace when resumed."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Teach a model one or several subjects from a few pictures."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, WITHOUT_DEFAULT] = ()
    """Folder or files of pictures. photo.txt or photo.caption next to photo.jpg holds its caption, or metadata.jsonl.
    For several subjects give one folder, --category and --token for each, in the same order."""
    category: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What the pictures show, in one or two words that the model knows, such as "teddy bear"."""
    token: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """New word for the subject, such as "<bear>". Without one the words of the category are trained.
    "none" gives one of several subjects no token."""
    concepts: OptionalPath = None
    """YAML or JSON file that lists the subjects: pictures, category, token and regularization of each.
    The concepts_list.json of diffusers' scripts is read too. Replaces PICTURES, --category and --token.
    Paths in the file are relative to it."""
    start_from: OptionalPath = None
    """Concept file of any format to continue from. The result also holds its subjects (sequential training)."""
    preset: Literal["object", "style", "scene", "face"] = "object"
    """Kind of subject. Sets the caption of pictures without one, such as "photo of a ...", and the method."""
    alpha_is_mask: Flag = False
    """Train only on opaque pixels. Otherwise transparent pixels become white.
    A mask photo.mask.png (or photo-masklabel.png) next to photo.jpg, white where the subject is, is always used."""
    holdout: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Pictures to hold out from training: a number, the last ones of each subject, or a folder with further pictures.
    One value holds for all subjects, or give one for each. With --save-every they judge the concepts that are kept."""
    regularization: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Where regularization pictures come from: one value for all subjects, or one for each.
    retrieved: the nearest captions of --collection, or of pocket's pool without one.
    pool: the pictures of pocket's pool whose captions name the category.
    generated: the model draws them. none: no such pictures. A folder: your own pictures.
    auto, the default: retrieved if there is a --collection, otherwise what suits the model and the method."""
    regularization_count: int = 200
    """Maximum number of regularization pictures of each category."""
    collection: OptionalStr = None
    """Collection to retrieve from, made by `moongate retrieve index`."""
    threshold: OptionalFloat = None
    """Minimum similarity of a retrieved caption. Default: 0.85 as in the paper, or the value measured for the model."""
    out: OptionalPath = None
    """Concept file to write. Default: named after the tokens or categories."""
    run: OptionalPath = None
    """Folder for the configuration, the log and the resumable state. Default: next to the concept file."""
    method: OptionalStr = None
    """custom-diffusion, fine-tune-all, dreambooth, textual-inversion, or a variant. An unknown name lists all.
    Default: the method of the preset, or the one that suits the model."""
    steps: OptionalInt = None
    """Optimizer steps. Default: for each subject 250 with custom-diffusion; on pocket 150, or 75 each for several."""
    batch: OptionalInt = None
    """Target pictures in each step (default: 4, or 8 without regularization); as many regularization pictures join."""
    accumulate: OptionalInt = None
    """Equal shards of a step that are computed one after the other: less memory, the same step up to rounding.
    Several processes share them. Default: what suits the model on a CPU, or as many as torchrun starts processes."""
    processes: OptionalInt = None
    """Processes of one thread each that share the shards, on a CPU under Linux, with the same result.
    Default: as many as there are cores and shards for a model that sets its shards; else one with all threads."""
    lr_per_picture: OptionalFloat = None
    """Learning rate for each picture of a step. Default: that of the method, scaled for the model."""
    learning_rate: OptionalFloat = None
    """Learning rate of a whole step, as other trainers count it, in place of --lr-per-picture."""
    token_lr_scale: OptionalFloat = None
    """Learning rate of the new tokens as a multiple of that of the weights. Default: what suits the model, or 1."""
    neutral_decay: OptionalFloat = None
    """Strength of the decay that returns neutral captions to the base, such as 0.003. Default: what suits the model."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit takes a quarter of the memory for its state. It needs bitsandbytes and a CUDA device."""
    resolution: OptionalInt = None
    """Side of the training pictures in pixels. Default: the model's own."""
    rare_token: OptionalInt = None
    """Index of the rare token from which the first new token starts. Concepts to be merged should differ in it.
    Default: 0, or the first that --start-from leaves free."""
    initializer_token: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Word, one token of the model, from which a new token starts instead of a rare one. Give one for each --token."""
    energy: OptionalFloat = None
    """Share of the singular values of each change to keep in the file, above 0 and at most 1.
    Default: 1, which keeps all; 0.6 for SDXL, whose changes take more than a gigabyte."""
    recompute: Flag = False
    """Recompute activations in the backward pass: less memory, more time, the same concept."""
    ignore_memory: Flag = False
    """Train even if the memory, as computed before the training, does not suffice."""
    flips: Flag = False
    """Mirror target pictures at random."""
    seed: int = 0
    """Seed of the training. The same seed gives the same concept on the same machine."""
    validate_every: int = 0
    """Steps between validation pictures, which the page of the run shows. 0 draws none."""
    validation_prompt: OptionalStr = None
    """Prompt of the validation pictures. Default: what all captions begin with, or else the words of the concept."""
    page: Flag = True
    """Write no index.html into the run folder, which shows losses and pictures, at the end twenty beside the base's."""
    tracker: OptionalTracker = None
    """tensorboard or wandb: where losses and validation pictures go in addition to the run folder."""
    save_every: OptionalInt = None
    """Steps between concepts that are kept in the folder "concepts" of the run folder. Default: none are kept."""
    keep_best: Flag = False
    """Write the kept concept with the lowest loss of the --holdout pictures to --out, not that of the last step."""
    resume: Flag = False
    """Continue an interrupted run."""
    overwrite: Flag = False
    """Replace an existing concept file and run folder."""
    model: Model = field(default_factory=ModelOptions)
    dtype: Dtype = "auto"
    output: Output = field(default_factory=OutputOptions)
    subjects: Code[tuple[SubjectOptions, ...]] = ()
    """The subjects, where they are known already."""
    on_step: Code[Callable[[Any], None] | None] = None
    """Called with the `Step` after each step."""

    def __call__(self, console: Console) -> dict[str, Any] | None:
        with launched(self.model.device, console) as (ranks, own_console):
            return self._train(own_console, ranks)

    def _train(self, console: Console, ranks: "Ranks") -> dict[str, Any] | None:
        from moongate.data import PRESETS, without_tokens
        from moongate.run_page import caption_template, compared
        from moongate.sampling import check_prompt
        from moongate.training import Plan, train
        from moongate.training.processes import processes_for, together

        # Check everything that needs no model.
        preset = PRESETS[self.preset]
        chosen, aside, out, run, options = self.checked()
        subjects = [self._load(each, preset, held.count) for each, held in zip(chosen, aside, strict=True)]
        held_out = self._held_out(chosen, aside, preset)

        # Load the model, and check the plan before regularization pictures are drawn.
        backbone, concepts = read_concepts([*filter(None, [self.start_from])], self.model, console, dtype=self.dtype)
        method = self._method(backbone, preset.method, chosen)
        wanted = [self._wanted(subject, method) for subject in chosen]
        self._check_regularization(wanted, method)
        earlier = concepts[0] if concepts else None
        common: dict[str, Any] = {"options": options, "start_from": earlier, "held_out": held_out}
        plan = Plan.of(backbone, subjects, None, method, processes=self.processes, **common)
        _warn_of_sizes(subjects, plan.resolution_px)
        processes = processes_for(plan, self.processes)
        opening = caption_template(subjects) if method.names_category else None
        wording = replace(preset, caption=opening) if opening else preset
        words = wording.describe(*_words_of(subjects, method))
        prompt = self.validation_prompt or words
        with backbone.tokens({**(earlier.tokens if earlier else {}), **plan.first_rows}):
            if self.validate_every:
                check_prompt(backbone, prompt, kind="validation prompt")
            pairs = compared(backbone, without_tokens(words, subjects), words)
        say_memory(plan, console, is_ignored=self.ignore_memory, processes=processes)
        sources = zip(chosen, wanted, strict=True) if method.prior_weight else ()
        with ranks.first_alone():
            sets = [self._regularization(backbone, *each, method, preset, run, console) for each in sources]

        # Train and write the concept.
        with training_bar(console) as show, interruption_explained(run, console):
            base_prompt = without_tokens(prompt, (*subjects, *(earlier.subjects if earlier else ())))
            watch = Watch(
                *(backbone, run, console, show, (prompt, base_prompt)),
                every=self.validate_every,
                has_page=self.page,
                tracker_name=self.tracker,
                also=self.on_step,
            )
            with watch.following(subjects, resume=self.resume):
                work = partial(train, backbone, subjects, sets, method, on_step=watch, **common)
                concept = together(work, processes=processes)
        if not ranks.is_first:
            return None
        concept = _cut_to_size(concept, self.energy or (1.0 if method.weights == "denoiser" else None), console)
        self._save(concept, out, run)
        say_best(run, console, keep_best=self.keep_best)
        example = wording.describe(*_words_of(concept.subjects, method)) + " on the beach"
        say_written(out, example, console)
        watch.finish(concept, pairs)
        return {"out": str(out), "run": str(run), "bytes": bytes_of(out), "prompt": example, **concept.record}

    def checked(self) -> "tuple[Sequence[SubjectOptions], Sequence[Holdout], Path, Path, TrainOptions]":
        """Return the subjects, what is held out of each, the concept file, the run folder and the library's options.

        Raises:
            OptionError: One of them cannot be used; nothing but small files was read.
        """
        from moongate.compression import check_energy
        from moongate.extras import library
        from moongate.regularization import RegularizationOptions
        from moongate.training.method import named_method

        if self.energy is not None:
            check_energy(self.energy)
        if self.tracker:
            library(self.tracker)
        for name in ("accumulate", "processes"):
            check_count(name, getattr(self, name))
        if self.validate_every < 0:
            raise OptionError(f"validate_every is {self.validate_every}; it must be at least 0.")
        if self.validation_prompt and not self.validate_every:
            raise OptionError("--validation-prompt would be ignored. Say with --validate-every how often it is drawn.")
        if self.method is not None:
            named_method(self.method)
        chosen = self.subjects or self._chosen_subjects()
        aside = holdouts(self.holdout, len(chosen), are_judging=self.save_every is not None)
        for source in map(self._choice, chosen):
            RegularizationOptions(choice=source, count=self.regularization_count, threshold=self.threshold)
        self.model.check()
        out, run = self._paths(chosen)
        return chosen, aside, out, run, self._options(run)

    def _paths(self, chosen: Sequence[SubjectOptions]) -> tuple[Path, Path]:
        """Return the concept file and the run folder. Raises OptionError if one may not be written."""
        from moongate.training.runs import check_free

        out = self.out or Path("-".join(subject.file_name for subject in chosen) + ".safetensors")
        run = self.run or out.with_suffix(".run")
        check_concept_file(out, overwrite=self.overwrite or (self.resume and _is_result(out, run)))
        check_free(run, resume=self.resume, overwrite=self.overwrite)
        return out, run

    def _save(self, concept: "Concept", out: Path, run: Path) -> None:
        """Write the concept; a file that appeared during the training and is no result of this run stays."""
        from moongate.files import digest, write_atomically

        own = self.resume and _is_result(out, run)
        if out.exists() and not (self.overwrite or own):
            raise OptionError(
                f"{out} appeared during the training and is not replaced. The training is kept in {run}: give the same "
                f"command with --resume, --run {shlex.quote(str(run))} and another --out."
            )
        result = {"sha256": digest(concept.file_bytes, length=64)}
        write_atomically(run / RESULT, json.dumps(result).encode())
        concept.save(out, overwrite=self.overwrite or own)

    def _chosen_subjects(self) -> Sequence[SubjectOptions]:
        if self.concepts is None:
            return subjects_from_options(self.pictures, self.category, self.token, self.regularization)
        if self.pictures or self.category or self.token:
            raise OptionError(f"{self.concepts} says what to teach: leave out pictures, --category and --token.")
        if len(self.regularization) > 1:
            raise OptionError(
                f"With --concepts one --regularization holds for all, but {len(self.regularization)} were given. Write "
                "those that differ into the file."
            )
        return subjects_from_file(self.concepts)

    def _options(self, run: Path) -> "TrainOptions":
        from moongate.training import TrainOptions

        same = {each.name for each in fields(TrainOptions)} & {each.name for each in fields(self)}
        return TrainOptions(
            **{name: getattr(self, name) for name in same},
            resolution_px=self.resolution,
            shards=self.accumulate,
            look_steps=self.validate_every,
            cache=cache_folder(),
            run_folder=run,
        )

    def _held_out(
        self, chosen: Sequence[SubjectOptions], aside: Sequence[Holdout], preset: "Preset"
    ) -> "list[Subject]":
        """Return the held-out pictures if there are kept concepts that they judge."""
        if self.save_every is None:
            return []
        loaded = [held.load(each, preset) for each, held in zip(chosen, aside, strict=True)]
        return [subject for subject in loaded if subject]

    def _load(self, chosen: SubjectOptions, preset: "Preset", holdout: int) -> "Subject":
        """Read the pictures of a subject, and warn of poor ones."""
        from moongate.data import Subject
        from moongate.data.pictures import remarks

        subject = Subject.load(
            chosen.pictures,
            category=chosen.category,
            token=chosen.token,
            preset=replace(preset, caption=chosen.caption or preset.caption),
            holdout=holdout,
            alpha_is_mask=self.alpha_is_mask,
        )
        for remark in remarks(subject.pictures, subject.names):
            warn(remark)
        return subject

    def _regularization(
        self,
        backbone: "Backbone",
        chosen: SubjectOptions,
        wanted: "RegularizationOptions",
        method: "Method",
        preset: "Preset",
        run: Path,
        console: Console,
    ) -> "Regularization":
        """Return the regularization pictures of a subject, with a bar while they are drawn or retrieved."""
        from moongate.regularization import choose

        with progress_bar(console) as progress:
            task = progress.add_task("Regularization pictures", total=None, note="", visible=False)

            def show(stage: str, done: int, total: int) -> None:
                text = plain(f"{stage} {chosen.category}")
                progress.update(task, description=text, completed=done, total=total, visible=True)

            found = choose(
                *(backbone, chosen.category),
                folder=run / "regularization" / chosen.folder_name,
                options=wanted,
                method=method,
                preset=replace(preset, caption=chosen.class_caption or preset.caption),
                resumes=self.resume,
                on_progress=show,
            )
        say_notes(console, found.notes)
        assert found.pictures is not None  # the method has regularization pictures
        return found.pictures

    def _choice(self, subject: SubjectOptions) -> str:
        return subject.regularization or next(iter(self.regularization), "auto")

    def _wanted(self, subject: SubjectOptions, method: "Method") -> "RegularizationOptions":
        """Return where the regularization pictures of a subject come from; how to retrieve only if they may be."""
        from moongate.regularization import RegularizationOptions

        choice = self._choice(subject)
        choice = "generated" if choice == "auto" and method.generates_prior else choice
        wanted = RegularizationOptions(
            choice=choice, count=self.regularization_count, collection=self.collection, threshold=self.threshold
        )
        return wanted if wanted.is_retrieved else replace(wanted, collection=None, threshold=None)

    def _check_regularization(self, wanted: "Sequence[RegularizationOptions]", method: "Method") -> None:
        """Refuse regularization pictures for a method without any, and options of retrieval if nothing is retrieved."""
        given = [source.choice for source in wanted if source.choice not in ("auto", "none")]
        if given and not method.prior_weight:
            raise OptionError(f"--regularization {given[0]} would be ignored: {method.name} uses none. Leave it out.")
        if method.prior_weight and any(source.is_retrieved for source in wanted):
            return
        for name, value in (("--collection", self.collection), ("--threshold", self.threshold)):
            if value is not None:
                raise OptionError(
                    f"{name} {value} would be ignored, because no regularization pictures are retrieved. Leave it "
                    "out, or choose --regularization retrieved and a method that uses such pictures."
                )

    def _method(self, backbone: "Backbone", usual: str | None, chosen: Sequence[SubjectOptions]) -> "Method":
        """Return the method, or its variant without regularization if no subject has any."""
        from moongate.training.method import method_for

        method = method_for(backbone, self.method or usual)
        without = [subject for subject in chosen if self._choice(subject) == "none"]
        if not without or not method.prior_weight:
            return method
        if len(without) < len(chosen):
            raise OptionError(
                f"The {without[0].category} has no regularization pictures, but other subjects have. Give all of them "
                "some, or choose --regularization none for all."
            )
        return method.without_regularization()


def _is_result(out: Path, run: Path) -> bool:
    """Return whether the file is the one that a run wrote last."""
    from moongate.files import digest

    try:
        recorded = json.loads((run / RESULT).read_bytes())["sha256"]
        return bool(recorded == digest(out.read_bytes(), length=64))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _warn_of_sizes(subjects: "Sequence[Subject]", side_px: int) -> None:
    """Warn of pictures that must be enlarged to the side at which they are trained on."""
    from moongate.data.pictures import size_remarks

    for subject in subjects:
        for remark in size_remarks(subject.pictures, subject.names, side_px):
            warn(remark)


def _words_of(subjects: "Sequence[Subject | SubjectRecord]", method: "Method") -> list[str]:
    """Return the words for each subject in a prompt, as the method words them."""
    return [method.worded(subject.words, token=subject.token, category=subject.category) for subject in subjects]


def _cut_to_size(concept: "Concept", energy: float | None, console: Console) -> "Concept":
    """Cut the changes to low rank if `energy` says so, or if they are large; print sizes and error."""
    from moongate.compression import compress, usual_energy

    energy = energy or usual_energy(concept)
    if energy == 1:
        return concept
    say(console, f"Keeping {energy:.0%} of the singular values of {len(concept.deltas)} changes.")
    compressed = compress(concept, energy=energy)
    before, after = (readable(size) for size in (compressed.report.bytes_before, compressed.report.bytes_after))
    cut = f"{compressed.report.error:.1%} of the change was cut away"
    say(console, f"{before} became {after}; {cut}. Keep more with --energy, or all with --energy 1.")
    return compressed.concept
