"""The command line: `moongate train | merge | compress | generate | info | demo`.

It parses, calls the library and prints.
"""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ..errors import MoongateError, OptionError
from .compose import Compress, Merge, gram_cache
from .terminal import load, progress_bar, say, size_of, training_bar

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..concept import Concept
    from ..data import Regularisation
    from ..sampling import Sample, SampleOptions
    from ..training import Step

__all__ = ["Compress", "Demo", "Generate", "Info", "Merge", "Train", "main"]

METADATA_KEY = "moongate"
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
    model: str = "pocket"
    """pocket, a folder in diffusers' layout, or a model id of the hub."""
    regularization: str | None = None
    """pool (shipped with pocket), generated, none, or a folder of pictures of the category. Default: pool for
    pocket, generated for other models."""
    regularization_count: int = 200
    """At most so many regularisation pictures."""
    out: Path | None = None
    """Concept file to write; named after the token or category by default."""
    run: Path | None = None
    """Folder for config, log and resumable state; beside the concept file by default."""
    method: str = "custom-diffusion"
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
        from ..data import Subject, photo_of
        from ..method import METHODS
        from ..runs import STATE, check_free
        from ..training import TrainOptions, train

        if self.method not in METHODS:
            raise OptionError(f"Unknown method {self.method!r}. Known: {', '.join(METHODS)}.")
        method = METHODS[self.method]
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
            flips=self.flips,
            seed=self.seed,
            run_folder=run,
            resume=self.resume,
            overwrite=self.overwrite,
        )
        backbone = load(self.model, self.device, self.dtype)
        if self.token:
            backbone.check_token(self.token)
        regularisation = self._regularisation(backbone, run, console) if method.prior_weight else []
        prompt = self.validation_prompt or photo_of(" ".join(filter(None, (self.token, self.category))))
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
        example = f'moongate generate "{photo_of(concept.subjects[0].words)} on the beach" --concept {out}'
        say(console, f"Wrote {out} ({size_of(out)}). Draw it with:\n  {example}")

    def _regularisation(self, backbone: "Backbone", run: Path, console: Console) -> "list[Regularisation]":
        from .. import pocket
        from ..data import Regularisation

        choice = self.regularization or ("pool" if self.model == "pocket" else "generated")
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


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw pictures, with any number of concepts."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to draw, such as "photo of a <bear> teddy bear on the beach"."""
    prompts_file: Path | None = None
    """Further prompts, one in each line."""
    concept: tuple[str, ...] = ()
    """Concept files to apply; FILE:0.8 applies one at that strength."""
    together: Literal["merge", "add", "refuse"] = "merge"
    """What to do with several concepts: merge them in memory, add their changes up, or refuse."""
    model: str | None = None
    """The model; the first concept's own, or pocket, by default."""
    count: int = 8
    """Pictures for each prompt, with the seeds seed, seed + 1, ..."""
    seed: int = 0
    steps: int = 50
    guidance: float = 6.0
    scheduler: str = "ddpm"
    """ddpm, ddim, euler, euler-ancestral, dpm++, unipc, or a scheduler class of diffusers."""
    negative_prompt: str = ""
    width: int | None = None
    """Width in pixels; the model's own by default."""
    height: int | None = None
    batch: int = 8
    """Pictures drawn at once."""
    out: Path = Path("pictures")
    overwrite: bool = False
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __call__(self, console: Console) -> None:
        from ..concept import Concept
        from ..sampling import SampleOptions

        prompts = self._all_prompts()
        if self.count < 1:
            raise OptionError(f"count is {self.count}; it must be at least 1.")
        options = SampleOptions(
            steps=self.steps,
            guidance=self.guidance,
            scheduler=self.scheduler,
            negative_prompt=self.negative_prompt,
            width_px=self.width,
            height_px=self.height,
            batch=self.batch,
        )
        paths = self._paths(prompts)
        chosen = [_split_strength(text) for text in self.concept]
        if self.together == "refuse" and len(chosen) > 1:
            raise OptionError(
                f"{len(chosen)} concepts are given, and --together refuse allows one. Write one file of them with "
                "`moongate merge`."
            )
        concepts = [(Concept.load(path), strength) for path, strength in chosen]
        backbone = load(self.model or (concepts[0][0].base if concepts else "pocket"), self.device, self.dtype)
        with contextlib.ExitStack() as stack:
            if self.together == "merge" and len(concepts) > 1:
                stack.enter_context(_merged(backbone, concepts, console).applied(backbone))
            else:
                for concept, strength in concepts:
                    stack.enter_context(concept.applied(backbone, strength=strength))
            self._draw(backbone, prompts, paths, options, concepts, console)

    def _all_prompts(self) -> list[str]:
        prompts = list(self.prompts)
        if self.prompts_file:
            if not self.prompts_file.is_file():
                raise OptionError(f"There is no file of prompts {self.prompts_file}. Check the path.")
            lines = self.prompts_file.read_text(encoding="utf-8").splitlines()
            prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise OptionError("There is no prompt. Give one in quotation marks, or a file with --prompts-file.")
        return prompts

    def _paths(self, prompts: Sequence[str]) -> list[Path]:
        seeds = range(self.seed, self.seed + self.count)
        names = [re.sub(r"[^\w<>]+", "-", prompt.lower()).strip("-<>")[:80] for prompt in prompts]
        names = [name.replace("<", "").replace(">", "") for name in names]
        paths = [self.out / f"{name}-{seed}.png" for name in dict.fromkeys(names) for seed in seeds]
        if len(paths) < len(prompts) * self.count:
            raise OptionError("Two prompts are the same, or begin with the same 80 characters. Give each once.")
        existing = [path for path in [*paths, self.out / "contact-sheet.png"] if path.exists()]
        if existing and not self.overwrite:
            raise OptionError(f"{existing[0]} exists already. Choose another --out, or allow --overwrite.")
        return paths

    def _draw(
        self,
        backbone: "Backbone",
        prompts: Sequence[str],
        paths: Sequence[Path],
        options: "SampleOptions",
        concepts: "Sequence[tuple[Concept, float]]",
        console: Console,
    ) -> None:
        from ..sampling import contact_sheet, sample

        each = [(prompt, seed) for prompt in prompts for seed in range(self.seed, self.seed + self.count)]
        record = {
            "model": backbone.name,
            "concepts": [{"hash": concept.hash, "strength": strength} for concept, strength in concepts],
            "steps": options.steps,
            "guidance": options.guidance,
            "scheduler": options.scheduler,
            "together": self.together,
            "negative_prompt": options.negative_prompt,
        }
        images = []
        samples = sample(backbone, [p for p, _ in each], seeds=[s for _, s in each], options=options)
        self.out.mkdir(parents=True, exist_ok=True)
        with progress_bar(console) as progress:
            task = progress.add_task("Drawing", total=len(each), note="")
            for drawn, path in zip(samples, paths, strict=True):
                _save_png(drawn, path, record)
                images.append(drawn.image)
                progress.advance(task)
        labels = [prompt if index % self.count == 0 else "" for index, (prompt, _) in enumerate(each)]
        sheet = contact_sheet(images, columns=min(self.count, 8), labels=labels)
        sheet.save(self.out / "contact-sheet.png")
        say(console, f"Wrote {len(paths)} pictures and contact-sheet.png to {self.out}.")


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what is in a concept file."""

    file: Annotated[Path, tyro.conf.Positional]
    json: bool = False
    """Print JSON instead of a table."""

    def __call__(self, console: Console) -> None:
        from ..concept import Concept

        facts = _facts(Concept.load(self.file), self.file)
        if self.json:
            console.print_json(json.dumps(facts))
            return
        table = Table(show_header=False, title=str(self.file), title_justify="left")
        for key, value in facts.items():
            table.add_row(key, "\n".join(value) if isinstance(value, list) else str(value))
        console.print(table)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Teach pocket a held-out example, draw it in new places, and write one page with all pictures."""

    example: str = "teddyBear"
    """Which example concept; a wrong name lists them all."""
    out: Path = Path("demo")
    """Folder for index.html and the concept file; an earlier demo there is replaced."""
    steps: int | None = None
    seed: int = 0

    def __call__(self, console: Console) -> None:
        from ..pocket.demo import make_demo

        with training_bar(console) as show:
            page = make_demo(
                self.example,
                out=self.out,
                steps=self.steps,
                seed=self.seed,
                on_step=show,
                on_stage=lambda text: say(console, text),
            )
        say(console, f"Open {page}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors are printed without a traceback and exit with status 2."""
    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "merge": Merge,
        "compress": Compress,
        "generate": Generate,
        "info": Info,
        "demo": Demo,
    }
    console = Console()
    command = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="moongate",
        description="Teach a text-to-image diffusion model your own things from a few photos.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        command(console)
    except MoongateError as error:
        say(Console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _merged(backbone: "Backbone", concepts: "Sequence[tuple[Concept, float]]", console: Console) -> "Concept":
    """Merge concepts at their strengths in memory, and say what the user should know."""
    from ..merge_page import verdict
    from ..merging import MergeOptions, merge

    scaled = [concept.scaled(strength) for concept, strength in concepts]
    merged = merge(backbone, scaled, options=MergeOptions(cache=gram_cache()))
    for line in verdict(merged.report):
        say(console, line)
    return merged.concept


def _split_strength(text: str) -> tuple[Path, float]:
    """Read FILE or FILE:STRENGTH."""
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(number)
    except ValueError:
        return Path(text), 1.0


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


def _save_png(drawn: "Sample", path: Path, record: dict[str, object]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("prompt", drawn.prompt)
    info.add_itxt("seed", str(drawn.seed))
    info.add_itxt(METADATA_KEY, json.dumps(record))
    Image.fromarray(drawn.image).save(path, pnginfo=info)


def _facts(concept: "Concept", file: Path) -> dict[str, object]:
    ranks = [change.rank for change in concept.deltas.values()]
    low = [rank for rank in ranks if rank is not None]
    stored = f"dense: {len(ranks) - len(low)}, low rank: {len(low)}" + (f" (up to {max(low)})" if low else "")
    numbers = sum(change.full().numel() for change in concept.deltas.values())
    return {
        "base": concept.base,
        "fingerprint": concept.fingerprint.short,
        "hash": concept.hash,
        "tokens": list(concept.tokens) or "none",
        "class words": [subject.category for subject in concept.subjects],
        "prompts": [prompt for subject in concept.subjects for prompt in subject.prompts],
        "method": concept.method,
        "layers": f"{len(ranks)} weights, {numbers:,} numbers; {stored}",
        "size": size_of(file),
        **{key: str(value) for key, value in concept.record.items()},
    }
