"""The command `moongate generate`."""

import contextlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from moongate.cli.options import (
    WITHOUT_DEFAULT,
    Drawing,
    DrawingOptions,
    Dtype,
    Flag,
    Model,
    ModelOptions,
    OptionalInt,
    OptionalPath,
    Texts,
    cache_folder,
    lines_of,
    read_concepts,
)
from moongate.cli.terminal import progress_bar, say
from moongate.errors import OptionError, warn

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.sampling import Sample, SampleOptions

__all__ = ["Generate"]

METADATA_KEY = "moongate"
SHEET = "contact-sheet.png"
SHEET_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw pictures with any number of concepts."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, WITHOUT_DEFAULT] = ()
    """What to draw, such as "photo of a <bear> teddy bear on the beach"."""
    prompts_file: OptionalPath = None
    """Text file of further prompts, one per line."""
    concept: Texts = ()
    """Concept files of any format. FILE:0.8 applies a concept at strength 0.8."""
    library: OptionalPath = None
    """Folder of concept files from which the prompts take those whose tokens they name."""
    together: Literal["merge", "add", "refuse"] = "merge"
    """How to combine several concepts: merge them in memory, add their changes, or refuse."""
    count: int = 8
    """Pictures for each prompt. Their seeds are --seed, --seed + 1, and so on."""
    seed: int = 0
    """Seed of the first picture of each prompt."""
    drawing: Drawing = field(default_factory=DrawingOptions)
    negative_prompt: str = ""
    """What the pictures should not show."""
    width: OptionalInt = None
    """Width in pixels. Default: the model's own."""
    height: OptionalInt = None
    """Height in pixels. Default: the model's own."""
    out: Path = Path("pictures")
    """Folder for the pictures."""
    overwrite: Flag = False
    """Replace existing pictures."""
    model: Model = field(default_factory=ModelOptions)
    dtype: Dtype = "float32"

    def __call__(self, console: Console) -> None:
        from moongate.files import write_atomically
        from moongate.sampling import sample

        prompts = self._all_prompts()
        if self.count < 1:
            raise OptionError(f"count is {self.count}; it must be at least 1.")
        options = self.drawing.sample_options(
            negative_prompt=self.negative_prompt, width_px=self.width, height_px=self.height
        )
        paths = self._paths(prompts)
        chosen, kept = self._chosen(prompts)
        backbone, concepts = read_concepts([file for file, _ in chosen], self.model, console, dtype=self.dtype)
        options = options.for_model(backbone)
        strengths = [strength for _, strength in chosen]
        jobs = [(prompt, seed) for prompt in prompts for seed in self._seeds]
        with contextlib.ExitStack() as stack:
            if self.together == "merge" and len(concepts) > 1:
                applied = [_merged(backbone, concepts, strengths, console)]
                if kept:
                    write_atomically(kept, applied[0].file_bytes)
                stack.enter_context(applied[0].applied(backbone))
            else:
                applied = concepts
                for concept, strength in zip(concepts, strengths, strict=True):
                    stack.enter_context(concept.applied(backbone, strength=strength))
            samples = sample(
                backbone,
                [_spelled(prompt, applied) for prompt, _ in jobs],
                seeds=[seed for _, seed in jobs],
                options=options,
            )
            self._save(samples, paths, self._record(backbone, concepts, strengths, options), console)

    @property
    def _seeds(self) -> range:
        """The seeds of the pictures of each prompt."""
        return range(self.seed, self.seed + self.count)

    def _all_prompts(self) -> list[str]:
        prompts = list(self.prompts)
        if self.prompts_file:
            prompts += lines_of(self.prompts_file, "prompts")
        if not prompts:
            raise OptionError("There is no prompt. Give one in quotation marks, or a file with --prompts-file.")
        return prompts

    def _chosen(self, prompts: Sequence[str]) -> tuple[list[tuple[Path, float]], Path | None]:
        """Return the concept files with their strengths, and where the merge of a library's files is to be kept."""
        chosen = [_split_strength(text) for text in self.concept]
        kept: Path | None = None
        if self.library and chosen:
            raise OptionError("Give either --concept or --library, which finds the concepts by their tokens.")
        if self.library:
            from moongate.merging.library import Library, merge_file

            library = Library.open(self.library)
            for sentence in library.broken:
                warn(sentence)
            named = library.named_in(prompts)
            if self.together == "merge" and len(named) > 1:
                kept = merge_file(named, cache_folder())
                if kept.exists():
                    return [(kept, 1.0)], None
            chosen = [(path, 1.0) for path in library.paths(named)]
        if self.together == "refuse" and len(chosen) > 1:
            raise OptionError(
                f"{len(chosen)} concepts were given, but --together refuse allows one. Merge them into one file with "
                "`moongate merge`."
            )
        return chosen, kept

    def _paths(self, prompts: Sequence[str]) -> list[Path]:
        """Return the picture files, one for each prompt and seed, named after them."""
        from moongate.files import file_name

        names = [file_name(prompt.lower()) for prompt in prompts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise OptionError(
                f"Two prompts are the same, or so similar that both give the file name {twice[0]!r}. Give each once, "
                "or draw them into two folders (--out)."
            )
        paths = [self.out / f"{name}-{seed}.png" for name in names for seed in self._seeds]
        existing = [path for path in [*paths, self.out / SHEET] if path.exists()]
        if existing and not self.overwrite:
            raise OptionError(f"{existing[0]} exists already. Choose another --out, or allow --overwrite.")
        return paths

    def _record(
        self, backbone: "Backbone", concepts: "Sequence[Concept]", strengths: Sequence[float], options: "SampleOptions"
    ) -> dict[str, object]:
        """Return what each picture keeps of how it was made, in addition to its prompt and seed."""
        return {
            "model": backbone.name,
            "concepts": [
                {"hash": concept.hash, "strength": strength}
                for concept, strength in zip(concepts, strengths, strict=True)
            ],
            "steps": options.steps,
            "guidance": options.guidance,
            "scheduler": options.scheduler,
            "together": self.together,
            "negative_prompt": self.negative_prompt,
        }

    def _save(
        self, samples: "Iterator[Sample]", paths: Sequence[Path], record: dict[str, object], console: Console
    ) -> None:
        """Write each picture as it is drawn, then the contact sheet of all."""
        from moongate.files import check_writable, write_atomically
        from moongate.pages import contact_sheet, png_bytes

        self.out.mkdir(parents=True, exist_ok=True)
        images, labels = [], []
        with progress_bar(console) as progress:
            task = progress.add_task("Drawing", total=len(paths), note="")
            for index, (drawn, path) in enumerate(zip(samples, paths, strict=True)):
                check_writable(path, overwrite=self.overwrite)
                _save_png(drawn, path, record)
                images.append(drawn.image)
                labels.append("" if index % self.count else drawn.prompt)
                progress.advance(task)
        sheet = contact_sheet(images, columns=min(self.count, SHEET_COLUMNS), labels=labels)
        write_atomically(self.out / SHEET, png_bytes(sheet))
        pictures = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
        say(console, f"Wrote {pictures} and {SHEET} to {self.out}.")


def _spelled(prompt: str, concepts: "Sequence[Concept]") -> str:
    """Return a prompt in which each word of several vectors is followed by its further tokens."""
    for concept in concepts:
        prompt = concept.spelled(prompt)
    return prompt


def _merged(
    backbone: "Backbone", concepts: "Sequence[Concept]", strengths: Sequence[float], console: Console
) -> "Concept":
    """Merge concepts at their strengths in memory, and print the verdict."""
    from moongate.merging import MergeOptions, merge
    from moongate.merging.page import verdict

    scaled = [concept.scaled(strength) for concept, strength in zip(concepts, strengths, strict=True)]
    merged = merge(backbone, scaled, options=MergeOptions(cache=cache_folder()))
    for line in verdict(merged.report):
        say(console, line)
    return merged.concept


def _split_strength(text: str) -> tuple[Path, float]:
    """Read FILE or FILE:STRENGTH."""
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        strength = float(number)
    except ValueError:
        return Path(text), 1.0
    if not math.isfinite(strength):
        raise OptionError(f"The strength of {path} is {number}. Give a number such as 0.8.")
    return Path(path), strength


def _save_png(drawn: "Sample", path: Path, record: dict[str, object]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from moongate.files import write_atomically

    info = PngInfo()
    info.add_itxt("prompt", drawn.prompt)
    info.add_itxt("seed", str(drawn.seed))
    info.add_itxt(METADATA_KEY, json.dumps(record))
    buffer = io.BytesIO()
    Image.fromarray(drawn.image).save(buffer, format="PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())
