"""The command `moongate train`."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from ..errors import OptionError
from .regularisation import Wanted, regularisation_pictures
from .terminal import load, say, size_of, training_bar

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..data import Preset, Regularisation, Subject
    from ..method import Method
    from ..training import Step

__all__ = ["Train"]

VALIDATION_PICTURES = 4


@dataclass(frozen=True, kw_only=True)
class Train:
    """Teach a model one thing from a few pictures, and write the concept file."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A folder, or picture files; a .txt beside a picture is its caption."""
    category: str
    """What the pictures show, in a word or two the model knows: "teddy bear"."""
    token: str | None = None
    """New word for this very thing, such as "<bear>"; none teaches the category words themselves."""
    preset: Literal["object", "style", "scene", "face"] = "object"
    """What kind of thing it is: the caption of pictures without one ("photo of a ...", "painting in the style of ..."),
    and the method."""
    alpha_is_mask: bool = False
    """Learn only from what is not transparent in the pictures; a photo.mask.png beside photo.jpg, white where the thing
    is, always counts. By default transparent parts are white."""
    holdout: int = 0
    """Keep so many of the pictures, the last ones, from training, to judge by."""
    model: str = "pocket"
    """pocket, a folder in diffusers' layout, or a model id of the hub."""
    regularization: str = "auto"
    """retrieved (the nearest captions of --collection, or of the pool that comes with pocket), pool (what names the
    category there), generated, none, or a folder. auto: retrieved where there is a --collection, else pool for pocket
    and generated for other models."""
    regularization_count: int = 200
    """At most so many regularisation pictures."""
    collection: str | None = None
    """Collection to retrieve from, made by `moongate retrieve index`."""
    threshold: float | None = None
    """Least similarity of a retrieved caption; 0.85 as in the paper, or what was measured for the model."""
    out: Path | None = None
    """Concept file to write; named after the token or category by default."""
    run: Path | None = None
    """Folder for config, log and resumable state; beside the concept file by default."""
    method: str | None = None
    """custom-diffusion, or one of its variants; the preset's by default."""
    steps: int | None = None
    """Optimiser steps; 250 by default."""
    batch: int = 4
    """Target pictures per step; as many regularisation pictures join them."""
    lr_per_picture: float | None = None
    """Learning rate for each picture of a step; 1e-5, scaled for the model, by default."""
    rare_token: int = 0
    """Which of the model's rare tokens the new token begins as; give concepts that you will merge different ones."""
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
        from ..concept import check_writable
        from ..data import PRESETS
        from ..runs import STATE, check_free
        from ..training import TrainOptions, train

        preset = PRESETS[self.preset]
        method = self._method(preset.method)
        subject = self._subject(preset, console)
        out = self.out or Path(re.sub(r"\W+", "-", self.token or self.category).strip("-") + ".safetensors")
        check_writable(out, overwrite=self.overwrite or self.resume)
        run = self.run or out.with_suffix(".run")
        check_free(run, resume=self.resume, overwrite=self.overwrite)
        options = TrainOptions(
            steps=self.steps,
            batch=self.batch,
            lr_per_picture=self.lr_per_picture,
            rare_token=self.rare_token,
            flips=self.flips,
            seed=self.seed,
            run_folder=run,
            resume=self.resume,
            overwrite=self.overwrite,
        )
        backbone = load(self.model, self.device, self.dtype)
        if self.token:
            backbone.check_token(self.token)
        regularisation = [self._regularisation(backbone, preset, run, console)] if method.prior_weight else []
        prompt = self.validation_prompt or preset.describe(" ".join(filter(None, (self.token, self.category))))
        with training_bar(console) as show:

            def on_step(step: "Step") -> None:
                show(step)
                if self.validate_every and step.index % self.validate_every == 0:
                    _validate(backbone, prompt, run / "validation" / f"{step.index:05d}.png")

            try:
                concept = train(backbone, [subject], regularisation, method, options=options, on_step=on_step)
            except KeyboardInterrupt:
                kept = f"The state is in {run}; the same command with --resume continues."
                say(console, f"Stopped. {kept if (run / STATE).exists() else 'No step was done, nothing is kept.'}")
                raise
        concept.save(out, overwrite=True)
        example = f'moongate generate "{preset.describe(concept.subjects[0].words)} on the beach" --concept {out}'
        say(console, f"Wrote {out} ({size_of(out)}). Draw it with:\n  {example}")

    def _subject(self, preset: "Preset", console: Console) -> "Subject":
        from ..data import Subject
        from ..pictures import remarks

        subject = Subject.load(
            self.pictures,
            category=self.category,
            token=self.token,
            preset=preset,
            holdout=self.holdout,
            alpha_is_mask=self.alpha_is_mask,
        )
        for remark in remarks(subject.pictures, subject.names):
            say(console, f"warning: {remark}", style="yellow")
        return subject

    def _regularisation(self, backbone: "Backbone", preset: "Preset", run: Path, console: Console) -> "Regularisation":
        wanted = Wanted(
            choice=self.regularization,
            count=self.regularization_count,
            collection=self.collection,
            threshold=self.threshold,
        )
        folder = run / "regularization"
        return regularisation_pictures(backbone, self.category, wanted, preset=preset, folder=folder, console=console)

    def _method(self, usual: str) -> "Method":
        from ..method import METHODS

        name = self.method or usual
        if name not in METHODS:
            raise OptionError(f"Unknown method {name!r}. Known: {', '.join(METHODS)}.")
        if self.regularization != "none" or not METHODS[name].prior_weight:
            return METHODS[name]
        return dataclasses.replace(METHODS[name], name=f"{name}-without-regularisation", prior_weight=0.0)


def _validate(backbone: "Backbone", prompt: str, path: Path) -> None:
    from ..sampling import contact_sheet, sample

    drawn = sample(backbone, [prompt] * VALIDATION_PICTURES, seeds=range(VALIDATION_PICTURES))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([picture.image for picture in drawn], columns=VALIDATION_PICTURES).save(path)
