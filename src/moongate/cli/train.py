"""The command `moongate train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from moongate.cli.regularization import Wanted, regularization_pictures
from moongate.cli.subjects import Lesson, lessons_from_file, lessons_from_options
from moongate.cli.terminal import open_concepts, readable, say, size_of, training_bar
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept, SubjectRecord
    from moongate.data import Preset, Subject
    from moongate.training import Step, TrainOptions
    from moongate.training.method import Method

__all__ = ["Train"]

VALIDATION_PICTURES = 4
LARGE = 100_000_000
"""Changes of more numbers than this (400 MB) are cut to low rank unless told otherwise; only SDXL has so many."""
LARGE_ENERGY = 0.6
"""What is kept of them: the paper's choice (App. C)."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Teach a model one thing, or several together, from a few pictures, and write the concept file."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """A folder, or picture files; a .txt beside a picture is its caption. To teach several things together, give a
    folder, a --category and perhaps a --token for each, in the same order."""
    category: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What the pictures show, in a word or two the model knows: "teddy bear"."""
    token: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """New word for this very thing, such as "<bear>"; without one the category words themselves are taught. "none"
    leaves one of several things without."""
    concepts: Path | None = None
    """YAML or JSON file with a list of things to teach instead: each with pictures (a folder or files, relative to
    the file), category, and perhaps token and regularization."""
    start_from: Path | None = None
    """Concept file of any format to go on from: the result holds its things too (sequential training)."""
    preset: Literal["object", "style", "scene", "face"] = "object"
    """What kind of thing it is: the caption of pictures without one ("photo of a ...", "painting in the style of ..."),
    and the method."""
    alpha_is_mask: bool = False
    """Learn only from what is not transparent in the pictures; a photo.mask.png beside photo.jpg, white where the thing
    is, always counts. By default transparent parts are white."""
    holdout: int = 0
    """Keep so many of the pictures of each thing, the last ones, from training, to judge by."""
    model: str | None = None
    """pocket, a folder in diffusers' layout, a single file (.safetensors, .ckpt), or a model id of the hub; by default
    pocket, or what --start-from was made for."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    regularization: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """retrieved (the nearest captions of --collection, or of the pool that comes with pocket), pool (what names the
    category there), generated, none, or a folder; one for all things or one for each. auto, the default: retrieved
    where there is a --collection, else pool for pocket and generated for other models
    and for methods that want them so."""
    regularization_count: int = 200
    """At most so many regularization pictures of each category."""
    collection: str | None = None
    """Collection to retrieve from, made by `moongate retrieve index`."""
    threshold: float | None = None
    """Least similarity of a retrieved caption; 0.85 as in the paper, or what was measured for the model."""
    out: Path | None = None
    """Concept file to write; named after the tokens or categories by default."""
    run: Path | None = None
    """Folder for config, log and resumable state; beside the concept file by default."""
    method: str | None = None
    """custom-diffusion, fine-tune-all, dreambooth, textual-inversion, or a variant or ablation, all of which a wrong
    name lists; the preset's by default."""
    steps: int | None = None
    """Optimizer steps; as many for each thing as the method wants by default, 250 for custom-diffusion."""
    batch: int | None = None
    """Target pictures per step, of all things in turn, 4 by default; as many regularization pictures join them.
    Methods without take 8."""
    lr_per_picture: float | None = None
    """Learning rate for each picture of a step; the method's (1e-5 for custom-diffusion), scaled for the model."""
    rare_token: int | None = None
    """Which of the model's rare tokens the first new token begins as; give concepts that you will merge different
    ones. By default 0, or the first that --start-from leaves free."""
    energy: float | None = None
    """Share of the singular values that the file keeps of each change; 1 keeps all, as does the default except for
    SDXL, whose changes would take more than a gigabyte: 0.6. Methods that train the whole denoiser keep all."""
    recompute: bool = False
    """Compute activations again instead of keeping them: less memory, more time, the same concept."""
    flips: bool = False
    """Mirror target pictures at random."""
    seed: int = 0
    validate_every: int = 0
    """Draw validation pictures into the run folder every so many steps; 0 never does."""
    validation_prompt: str | None = None
    """What to draw then; the concept's own words by default."""
    resume: bool = False
    """Continue an interrupted run."""
    overwrite: bool = False
    """Replace an existing concept file and run folder."""
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen model; what is trained is always float32."""

    def __call__(self, console: Console) -> None:
        from moongate.compression import check_energy
        from moongate.data import PRESETS
        from moongate.files import check_writable
        from moongate.training import Plan, train
        from moongate.training.runs import STATE, check_free

        preset = PRESETS[self.preset]
        if self.energy is not None:
            check_energy(self.energy)
        lessons = self._lessons()
        method = self._method(preset.method, lessons)
        wanted = [self._wanted(lesson, method) for lesson in lessons]
        self._check_retrieval(wanted, method)
        subjects = [self._subject(lesson, preset, console) for lesson in lessons]
        out = self.out or Path("-".join(lesson.file_name for lesson in lessons) + ".safetensors")
        check_writable(out, overwrite=self.overwrite or self.resume)
        run = self.run or out.with_suffix(".run")
        check_free(run, resume=self.resume, overwrite=self.overwrite)
        options = self._options(run)
        files = [self.start_from] if self.start_from else []
        backbone, concepts = open_concepts(files, self.model, self.config, self.device, self.dtype, console)
        earlier = concepts[0] if concepts else None
        # Check the plan before regularization pictures are drawn.
        Plan.of(backbone, subjects, None, method, options=options, start_from=earlier)
        sets = []
        for lesson, each in zip(lessons, wanted, strict=True) if method.prior_weight else ():
            folder = run / "regularization" / lesson.folder_name
            sets.append(
                regularization_pictures(backbone, lesson.category, each, preset=preset, folder=folder, console=console)
            )
        prompt = self.validation_prompt or preset.describe(*_called(subjects, method))
        with training_bar(console) as show:

            def on_step(step: "Step") -> None:
                show(step)
                if self.validate_every and step.index % self.validate_every == 0:
                    _validate(backbone, prompt, run / "validation" / f"{step.index:05d}.png")

            try:
                concept = train(backbone, subjects, sets, method, options=options, start_from=earlier, on_step=on_step)
            except KeyboardInterrupt:
                kept = f"The state is in {run}; the same command with --resume continues."
                say(console, f"Stopped. {kept if (run / STATE).exists() else 'No step was done, nothing is kept.'}")
                raise
        concept = _cut_to_size(concept, self.energy or (1.0 if method.weights == "denoiser" else None), console)
        concept.save(out, overwrite=True)
        example = preset.describe(*_called(concept.subjects, method)) + " on the beach"
        say(console, f'Wrote {out} ({size_of(out)}). Draw it with:\n  moongate generate "{example}" --concept {out}')

    def _lessons(self) -> Sequence[Lesson]:
        if self.concepts is None:
            return lessons_from_options(self.pictures, self.category, self.token, self.regularization)
        if self.pictures or self.category or self.token:
            raise OptionError(f"{self.concepts} says what to teach: leave out pictures, --category and --token.")
        if len(self.regularization) > 1:
            raise OptionError(
                f"With --concepts one --regularization is for all, but {len(self.regularization)} were given. Write "
                "those that differ into the file."
            )
        return lessons_from_file(self.concepts)

    def _options(self, run: Path) -> "TrainOptions":
        from moongate.training import TrainOptions

        return TrainOptions(
            steps=self.steps,
            batch=self.batch,
            lr_per_picture=self.lr_per_picture,
            rare_token=self.rare_token,
            recompute=self.recompute,
            flips=self.flips,
            seed=self.seed,
            run_folder=run,
            resume=self.resume,
            overwrite=self.overwrite,
        )

    def _subject(self, lesson: Lesson, preset: "Preset", console: Console) -> "Subject":
        from moongate.data import Subject
        from moongate.data.pictures import remarks

        subject = Subject.load(
            lesson.pictures,
            category=lesson.category,
            token=lesson.token,
            preset=preset,
            holdout=self.holdout,
            alpha_is_mask=self.alpha_is_mask,
        )
        for remark in remarks(subject.pictures, subject.names):
            say(console, f"warning: {remark}", style="yellow")
        return subject

    def _choice(self, lesson: Lesson) -> str:
        return lesson.regularization or next(iter(self.regularization), "auto")

    def _wanted(self, lesson: Lesson, method: "Method") -> Wanted:
        choice = self._choice(lesson)
        return Wanted(
            choice="generated" if choice == "auto" and method.generates_prior else choice,
            count=self.regularization_count,
            collection=self.collection,
            threshold=self.threshold,
        )

    def _check_retrieval(self, wanted: Sequence[Wanted], method: "Method") -> None:
        """Refuse what is said about retrieval where nothing is retrieved."""
        if method.prior_weight and any(each.is_retrieved for each in wanted):
            return
        for name, value in (("--collection", self.collection), ("--threshold", self.threshold)):
            if value is not None:
                raise OptionError(
                    f"{name} {value} would be ignored, because no regularization pictures are retrieved. Leave it "
                    "out, or take --regularization retrieved and a method that uses such pictures."
                )

    def _method(self, usual: str, lessons: Sequence[Lesson]) -> "Method":
        """Return the method, or its variant without regularization where no thing is to have any."""
        from moongate.training.method import METHODS

        name = self.method or usual
        if name not in METHODS:
            raise OptionError(f"Unknown method {name!r}. Known: {', '.join(METHODS)}.")
        without = [lesson for lesson in lessons if self._choice(lesson) == "none"]
        if not without or not METHODS[name].prior_weight:
            return METHODS[name]
        if len(without) < len(lessons):
            raise OptionError(
                f"The {without[0].category} is to have no regularization pictures, but others are. Give all of them "
                "some, or take --regularization none for all."
            )
        return METHODS[name].without_regularization()


def _called(subjects: "Sequence[Subject | SubjectRecord]", method: "Method") -> list[str]:
    """Return what calls each subject up in a prompt."""
    words = [f"{each.token} {each.category}" if each.token else each.category for each in subjects]
    return [method.worded(text, token=s.token, category=s.category) for text, s in zip(words, subjects, strict=True)]


def _cut_to_size(concept: "Concept", energy: float | None, console: Console) -> "Concept":
    """Cut the changes to low rank where asked for, or where they are large, and say what it gave and cost."""
    from moongate.compression import compress

    numbers = sum(change.full().numel() for change in concept.deltas.values())
    energy = energy or (LARGE_ENERGY if numbers > LARGE else 1)
    if energy == 1:
        return concept
    say(console, f"Keeping {energy:.0%} of the singular values of {len(concept.deltas)} changes.")
    compressed = compress(concept, energy=energy)
    before, after = (readable(size) for size in (compressed.report.bytes_before, compressed.report.bytes_after))
    cut = f"{compressed.report.error:.1%} of the change was cut away"
    say(console, f"{before} became {after}; {cut}. Keep more with --energy, or all with --energy 1.")
    return compressed.concept


def _validate(backbone: "Backbone", prompt: str, path: Path) -> None:
    from moongate.pages import contact_sheet
    from moongate.sampling import sample

    drawn = sample(backbone, [prompt] * VALIDATION_PICTURES, seeds=range(VALIDATION_PICTURES))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([picture.image for picture in drawn], columns=VALIDATION_PICTURES).save(path)
