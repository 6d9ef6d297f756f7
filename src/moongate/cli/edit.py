"""The command `moongate edit`."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.options import (
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
    Texts,
    flat,
    read_concepts,
)
from moongate.cli.terminal import progress_bar, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.concept import Concept
    from moongate.editing import Edit as OneEdit
    from moongate.editing import Edited, EditOptions
    from moongate.sampling import SampleOptions

__all__ = ["Edit"]

FILES = ("source.png", "edit.png", "sheet.png", "edit.json")
FORM = 'Write: moongate edit [PICTURE] "prompt of the picture" "changed prompt".'


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Edit a photo or a drawn picture by the words of its prompt."""

    words: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PICTURE] SOURCE TARGET")]
    """A photo, if one is to be edited; the prompt of the picture; and the changed prompt."""
    concept: OptionalPath = None
    """Concept file of any format. It acts only on the edit, unless the source prompt has its token."""
    strength: float = 1.0
    """Strength of the concept."""
    seed: OptionalInt = None
    """Seed of the noise. Required without a photo; else 0."""
    reweight: Texts = ()
    """Words of the target with a factor on the attention to them: "red=2.0". 0 removes a word from the attention."""
    blend: Texts = ()
    """Words of either prompt. The picture changes only where it attends to one of them."""
    mask: OptionalPath = None
    """Picture of the same size, white where the picture may change."""
    cross_share: float = 0.8
    """Share of the steps in which words look where they look in the source."""
    self_share: float = 0.4
    """Share of the steps in which parts of the picture relate to one another as in the source."""
    inversion: Literal["direct", "edit-friendly"] = "direct"
    """How a photo is turned into noise.
    direct: DDIM backwards, corrected in each step.
    edit-friendly: separate noise for each step of DDPM, which keeps more of the photo."""
    skip: float = 0.36
    """For edit-friendly, the share of the steps left out at the beginning. More keeps more of the photo."""
    steps: int = 50
    """Denoising steps."""
    guidance: OptionalFloat = None
    """Scale of classifier-free guidance. 1 or less, such as 0, turns it off. Default: the model's own, or else 6."""
    scheduler: OptionalStr = None
    """ddpm, ddim, euler, euler-ancestral, dpm++, unipc, or a scheduler class of diffusers.
    Default: ddim, or ddpm for edit-friendly."""
    negative_prompt: str = ""
    """What the pictures should not show."""
    width: OptionalInt = None
    """Width in pixels of a drawn picture. Default: the model's own."""
    height: OptionalInt = None
    """Height in pixels of a drawn picture. Default: the model's own."""
    out: Path = Path("edited")
    """Folder for source.png, edit.png, sheet.png with both, and edit.json with how they were made."""
    overwrite: Flag = False
    """Replace existing files."""
    model: Model = field(default_factory=ModelOptions)
    dtype: Dtype = "float32"
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.editing import EditOptions, edit

        options = EditOptions(
            cross_share=self.cross_share, self_share=self.self_share, inversion=self.inversion, skip=self.skip
        )
        if not math.isfinite(self.strength):
            raise OptionError(f"strength is {self.strength}. Give a number such as 0.8.")
        one, sampling = self._edit(), self._sampling(options)
        self._check_out()
        backbone, concepts = read_concepts(
            [self.concept] if self.concept else [], self.model, console, dtype=self.dtype
        )
        concept = concepts[0].scaled(self.strength) if concepts else None
        sampling = sampling.for_model(backbone)
        if concept:
            one = _spelled(one, concept)
        with progress_bar(console) as progress:
            task = progress.add_task("Editing", total=sampling.steps, note="")
            (edited,) = edit(
                backbone,
                [one],
                concept=concept,
                options=options,
                sampling=sampling,
                on_step=lambda: progress.advance(task),
            )
            progress.update(task, total=progress.tasks[0].completed)  # some steps of a photo may be left out
        facts = {"model": backbone.name, "concept": concept and concept.hash, **self._facts(edited, options, sampling)}
        self._save(edited, facts, concepts[0].hash if concepts else None)
        say(console, f"Wrote {', '.join(FILES)} to {self.out}.")
        return facts

    def _edit(self) -> "OneEdit":
        """Return the edit that the words and files ask for."""
        from moongate.data.pictures import read_mask, read_picture
        from moongate.editing import Edit as OneEdit
        from moongate.files import is_file

        if not 2 <= len(self.words) <= 3:
            raise OptionError(f"{len(self.words)} arguments were given, where two or three are needed. {FORM}")
        *picture, source, target = self.words
        if not (source.strip() and target.strip()):
            raise OptionError(f"A prompt is empty. {FORM}")
        if not picture and self.seed is None:
            if is_file(Path(source)):
                raise OptionError(f"A picture and one prompt were given, but an edit has two prompts. {FORM}")
            raise OptionError("Without a picture, the source is drawn from a seed. Give one, such as --seed 1.")
        if picture and (self.width or self.height):
            raise OptionError("A photo has its own size. Leave out --width and --height.")
        return OneEdit(
            source=source,
            target=target,
            seed=self.seed or 0,
            picture=read_picture(Path(picture[0])) if picture else None,
            mask=read_mask(self.mask, is_taught=False) if self.mask else None,
            reweight=dict(map(_weight, flat(self.reweight))),
            blend=tuple(flat(self.blend)),
        )

    def _sampling(self, options: "EditOptions") -> "SampleOptions":
        from moongate.sampling import SampleOptions, check_scheduler, check_seeds

        check_seeds([self.seed or 0])
        if self.scheduler is not None:
            check_scheduler(self.scheduler)
        return SampleOptions(
            steps=self.steps,
            guidance=self.guidance,
            scheduler=self.scheduler or options.scheduler,
            negative_prompt=self.negative_prompt,
            width_px=self.width,
            height_px=self.height,
        )

    def _check_out(self) -> None:
        from moongate.files import check_writable

        for name in FILES:
            check_writable(self.out / name, overwrite=self.overwrite)

    def _facts(self, edited: "Edited", options: "EditOptions", sampling: "SampleOptions") -> dict[str, Any]:
        """Return how the edit was made, as plain JSON."""
        one = edited.edit
        return {
            "source": one.source,
            "target": one.target,
            "picture": self.words[0] if len(self.words) == 3 else None,
            "seed": one.seed,
            "reweight": dict(one.reweight),
            "blend": list(one.blend),
            "mask": str(self.mask) if self.mask else None,
            "size": {"width_px": edited.image.shape[1], "height_px": edited.image.shape[0]},
            "strength": self.strength,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "scheduler": sampling.scheduler,
            "negative_prompt": sampling.negative_prompt,
            **dataclasses.asdict(options),
            "files": [str(self.out / name) for name in FILES],
        }

    def _save(self, edited: "Edited", facts: dict[str, Any], concept: str | None) -> None:
        from moongate.files import write_atomically
        from moongate.pages import contact_sheet, png_bytes

        pictures = [edited.source, edited.image]
        sheet = contact_sheet(pictures, columns=2, labels=[edited.edit.source, edited.edit.target])
        text = (json.dumps(facts, indent=1) + "\n").encode()
        drawn = [png_bytes(edited.source), png_bytes(edited.image, texts=self._texts(facts, concept))]
        for name, content in zip(FILES, [*drawn, png_bytes(sheet), text], strict=True):
            write_atomically(self.out / name, content)

    def _texts(self, facts: dict[str, Any], concept: str | None) -> dict[str, str]:
        """Return what the PNG file of the edit says of itself, by the names that `moongate generate` uses."""
        used = {"file": self.concept and self.concept.name, "hash": concept, "strength": self.strength}
        said = {
            "prompt": facts["target"],
            "source": facts["source"],
            **{name: facts[name] for name in ("seed", "model", "steps", "scheduler", "guidance", "negative_prompt")},
            "concepts": [used] if concept else [],
        }
        return {"moongate": json.dumps(said, ensure_ascii=False)}


def _spelled(one: "OneEdit", concept: "Concept") -> "OneEdit":
    """Return an edit in which each word of several vectors is followed by its further tokens, as in its prompts."""
    return dataclasses.replace(
        one,
        source=concept.spelled(one.source),
        target=concept.spelled(one.target),
        reweight={concept.spelled(words): factor for words, factor in one.reweight.items()},
        blend=tuple(map(concept.spelled, one.blend)),
    )


def _weight(text: str) -> tuple[str, float]:
    """Read "red=2.0"."""
    words, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not (words.strip() and math.isfinite(factor)):
        raise OptionError(f'--reweight {text!r} is not words and a number. Write it as "red=2.0".')
    return words.strip(), factor
