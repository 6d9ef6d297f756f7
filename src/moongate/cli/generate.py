"""The command `moongate generate`."""

import contextlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from moongate.cli.merge import gram_cache
from moongate.cli.terminal import lines_of, open_concepts, progress_bar, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.sampling import Sample, SampleOptions

__all__ = ["Generate"]

METADATA_KEY = "moongate"


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw pictures, with any number of concepts."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to draw, such as "photo of a <bear> teddy bear on the beach"."""
    prompts_file: Path | None = None
    """Further prompts, one in each line."""
    concept: tuple[str, ...] = ()
    """Concepts to apply, files of any format; FILE:0.8 applies one at that strength."""
    together: Literal["merge", "add", "refuse"] = "merge"
    """What to do with several concepts: merge them in memory, add their changes up, or refuse."""
    model: str | None = None
    """The model; by default the first that a concept's file names, or pocket."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
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
        from moongate.sampling import SampleOptions

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
        files = [path for path, _ in chosen]
        backbone, read = open_concepts(files, self.model, self.config, self.device, self.dtype, console)
        concepts = [(concept, strength) for concept, (_, strength) in zip(read, chosen, strict=True)]
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
            prompts += lines_of(self.prompts_file, "prompts")
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
        from moongate.pages import contact_sheet
        from moongate.sampling import sample

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
        pictures = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
        say(console, f"Wrote {pictures} and contact-sheet.png to {self.out}.")


def _merged(backbone: "Backbone", concepts: "Sequence[tuple[Concept, float]]", console: Console) -> "Concept":
    """Merge concepts at their strengths in memory, and say what the user should know."""
    from moongate.merging import MergeOptions, merge
    from moongate.merging.page import verdict

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
        strength = float(number)
    except ValueError:
        return Path(text), 1.0
    if not math.isfinite(strength):
        raise OptionError(f"The strength of {path} is {number}. Give a number such as 0.8.")
    return Path(path), strength


def _save_png(drawn: "Sample", path: Path, record: dict[str, object]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("prompt", drawn.prompt)
    info.add_itxt("seed", str(drawn.seed))
    info.add_itxt(METADATA_KEY, json.dumps(record))
    Image.fromarray(drawn.image).save(path, pnginfo=info)
