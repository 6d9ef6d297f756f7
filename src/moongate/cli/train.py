"""The command `moongate train`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from ..errors import OptionError
from .terminal import load, progress_bar, readable, say, size_of, training_bar

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..concept import Concept
    from ..data import Regularisation
    from ..method import Method
    from ..training import Step

__all__ = ["Train"]

VALIDATION_PICTURES = 4
LARGE = 100_000_000
"""Changes of more numbers than this (400 MB) are cut to low rank unless told otherwise; only SDXL has so many."""
LARGE_ENERGY = 0.6
"""What is kept of them: the paper's choice (App. C)."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Teach a model one thing from a few pictures, and write the concept file."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A folder, or picture files; a .txt beside a picture is its caption."""
    category: str
    """What the pictures show, in a word or two the model knows: "teddy bear"."""
    token: str | None = None
    """New word for this very thing, such as "<bear>"; none teaches the category words themselves."""
    model: str = "pocket"
    """pocket, a folder in diffusers' layout, a single file (.safetensors, .ckpt), or a model id of the hub."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    regularization: str | None = None
    """pool (shipped with pocket), generated, none, or a folder of pictures of the category. Default: pool for
    pocket, generated for other models and for methods that want them so."""
    regularization_count: int = 200
    """At most so many regularisation pictures."""
    out: Path | None = None
    """Concept file to write; named after the token or category by default."""
    run: Path | None = None
    """Folder for config, log and resumable state; beside the concept file by default."""
    method: str = "custom-diffusion"
    """custom-diffusion, fine-tune-all, dreambooth, textual-inversion, or an ablation; a wrong name lists them all."""
    steps: int | None = None
    """Optimiser steps; the method's by default, 250 for custom-diffusion."""
    batch: int | None = None
    """Target pictures per step, 4 by default; as many regularisation pictures join them. Methods without take 8."""
    lr_per_picture: float | None = None
    """Learning rate for each picture of a step; the method's (1e-5 for custom-diffusion), scaled for the model."""
    rare_token: int = 0
    """Which of the model's rare tokens the new token begins as; give concepts that you will merge different ones."""
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
        from ..compression import check_energy
        from ..concept import check_writable
        from ..data import Subject, photo_of
        from ..method import METHODS
        from ..runs import STATE, check_free
        from ..training import TrainOptions, train

        if self.method not in METHODS:
            raise OptionError(f"Unknown method {self.method!r}. Known: {', '.join(METHODS)}.")
        method = METHODS[self.method]
        if self.energy is not None:
            check_energy(self.energy)
        subject = Subject.load(self.pictures, category=self.category, token=self.token)
        out = self.out or Path(re.sub(r"\W+", "-", self.token or self.category).strip("-") + ".safetensors")
        check_writable(out, overwrite=self.overwrite or self.resume)
        run = self.run or out.with_suffix(".run")
        check_free(run, resume=self.resume, overwrite=self.overwrite)
        options = TrainOptions(
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
        backbone = load(self.model, self.device, self.dtype, self.config)
        if self.token:
            backbone.check_token(self.token)
        regularisation = self._regularisation(backbone, method, run, console) if method.prior_weight else []
        words = f"{self.token} {subject.category}" if self.token else subject.category
        words = method.worded(words, token=self.token, category=subject.category)
        prompt = self.validation_prompt or photo_of(words)
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
        concept = _cut_to_size(concept, self.energy or (1.0 if method.weights == "denoiser" else None), console)
        concept.save(out, overwrite=True)
        example = f'moongate generate "{photo_of(words)} on the beach" --concept {out}'
        say(console, f"Wrote {out} ({size_of(out)}). Draw it with:\n  {example}")

    def _regularisation(
        self, backbone: "Backbone", method: "Method", run: Path, console: Console
    ) -> "list[Regularisation]":
        from .. import pocket
        from ..data import Regularisation

        usual = "pool" if self.model == "pocket" and not method.generates_prior else "generated"
        choice = self.regularization or usual
        if choice == "none":
            raise OptionError(
                "The chosen method needs regularisation pictures. Give a folder, 'pool' or 'generated', or take "
                "--method custom-diffusion-without-regularisation."
            )
        folder = {"pool": pocket.pool_folder(), "generated": run / "regularization"}.get(choice, Path(choice))
        if choice == "generated":
            _draw_regularisation(backbone, self.category, folder, self.regularization_count, console)
        return [
            Regularisation.load(
                folder,
                category=self.category,
                only_category=choice == "pool",
                at_most=self.regularization_count,
            )
        ]


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
