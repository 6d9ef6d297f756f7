"""The command `moongate train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from ..errors import OptionError
from .lessons import Lesson, lessons_from_file, lessons_from_options
from .terminal import load, progress_bar, readable, say, size_of, training_bar

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..concept import Concept
    from ..data import Regularisation
    from ..training import Step, TrainOptions

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
    """Concept file to go on from: the result holds its things too (sequential training)."""
    model: str | None = None
    """pocket, a folder in diffusers' layout, a single file (.safetensors, .ckpt), or a model id of the hub; by default
    pocket, or what --start-from was made for."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    regularization: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """pool (shipped with pocket), generated, none, or a folder of pictures of the category; one for all things or
    one for each. Default: pool for pocket, generated for other models."""
    regularization_count: int = 200
    """At most so many regularisation pictures of each category."""
    out: Path | None = None
    """Concept file to write; named after the tokens or categories by default."""
    run: Path | None = None
    """Folder for config, log and resumable state; beside the concept file by default."""
    method: str = "custom-diffusion"
    steps: int | None = None
    """Optimiser steps; 250 for each thing by default."""
    batch: int = 4
    """Target pictures per step, of all things in turn; as many regularisation pictures join them."""
    lr_per_picture: float | None = None
    """Learning rate for each picture of a step; 1e-5, scaled for the model, by default."""
    rare_token: int | None = None
    """Which of the model's rare tokens the first new token begins as; give concepts that you will merge different
    ones. By default 0, or the first that --start-from leaves free."""
    energy: float | None = None
    """Share of the singular values that the file keeps of each change; 1 keeps all, as does the default except for
    SDXL, whose changes would take more than a gigabyte: 0.6."""
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
        from ..compression import check_energy
        from ..concept import Concept, check_writable
        from ..data import Subject, photo_of
        from ..method import METHODS
        from ..runs import STATE, check_free
        from ..training import check_subjects, train

        if self.method not in METHODS:
            raise OptionError(f"Unknown method {self.method!r}. Known: {', '.join(METHODS)}.")
        method = METHODS[self.method]
        if self.energy is not None:
            check_energy(self.energy)
        lessons = self._lessons()
        subjects = [Subject.load(each.pictures, category=each.category, token=each.token) for each in lessons]
        out = self.out or Path("-".join(lesson.file_name for lesson in lessons) + ".safetensors")
        check_writable(out, overwrite=self.overwrite or self.resume)
        run = self.run or out.with_suffix(".run")
        check_free(run, resume=self.resume, overwrite=self.overwrite)
        options = self._options(run)
        earlier = Concept.load(self.start_from) if self.start_from else None
        model = self.model or (earlier.base if earlier else "pocket")
        backbone = load(model, self.device, self.dtype, self.config)
        check_subjects(backbone, subjects, method, options=options, start_from=earlier)
        sets = [self._regularisation(backbone, each, run, console) for each in lessons] if method.prior_weight else []
        prompt = self.validation_prompt or photo_of(*(lesson.words for lesson in lessons))
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
        concept = _cut_to_size(concept, self.energy, console)
        concept.save(out, overwrite=True)
        example = photo_of(*(subject.words for subject in concept.subjects)) + " on the beach"
        say(
            console,
            f'Wrote {out} ({size_of(out)}). Draw it with:\n  moongate generate "{example}" --concept {out}',
        )

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
        from ..training import TrainOptions

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

    def _regularisation(self, backbone: "Backbone", lesson: Lesson, run: Path, console: Console) -> "Regularisation":
        from .. import pocket
        from ..data import Regularisation

        usual = "pool" if backbone.name == "pocket" else "generated"
        choice = lesson.regularization or next(iter(self.regularization), usual)
        if choice == "none":
            raise OptionError(
                "The chosen method needs regularisation pictures. Give a folder, 'pool' or 'generated', or take "
                "--method custom-diffusion-without-regularisation."
            )
        drawn = run / "regularization" / lesson.category.strip().replace(" ", "-")
        folder = {"pool": pocket.pool_folder(), "generated": drawn}.get(choice, Path(choice))
        if choice == "generated":
            _draw_regularisation(backbone, lesson.category, folder, self.regularization_count, console)
        return Regularisation.load(
            folder,
            category=lesson.category,
            only_category=choice == "pool",
            at_most=self.regularization_count,
        )


def _cut_to_size(concept: "Concept", energy: float | None, console: Console) -> "Concept":
    """Cut the changes to low rank where asked for, or where they are large, and say what it gave and cost."""
    from ..compression import compress

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
    from ..sampling import contact_sheet, sample

    drawn = sample(backbone, [prompt] * VALIDATION_PICTURES, seeds=range(VALIDATION_PICTURES))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([picture.image for picture in drawn], columns=VALIDATION_PICTURES).save(path)


def _draw_regularisation(backbone: "Backbone", category: str, folder: Path, count: int, console: Console) -> None:
    """Draw the missing ones of `count` pictures of the category, with their captions, into `folder`."""
    from PIL import Image

    from ..data import photo_of
    from ..sampling import sample

    prompt = photo_of(category)
    missing = [seed for seed in range(count) if not (folder / f"{seed:04d}.png").exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(console) as progress:
        task = progress.add_task(
            "Drawing regularisation pictures", total=count, completed=count - len(missing), note=""
        )
        for drawn in sample(backbone, [prompt] * len(missing), seeds=missing):
            path = folder / f"{drawn.seed:04d}.png"
            path.with_suffix(".txt").write_text(prompt)
            partial = path.with_suffix(".partial")
            Image.fromarray(drawn.image).save(partial, format="PNG")
            partial.replace(path)
            progress.advance(task)
