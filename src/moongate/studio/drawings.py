"""The commands that draw, edit, merge and convert, as the pages start and show them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moongate.errors import OptionError
from moongate.limits import MAX_CAPTION_CHARACTERS
from moongate.studio.commands import Command
from moongate.studio.pictures import Picture

__all__ = [
    "Chosen",
    "checked_prompt",
    "edit_command",
    "generate_command",
    "merge_command",
    "merge_words",
    "redraw_command",
]

MAX_COUNT = 64
"""More pictures of a prompt at once are refused: the page shows all of them."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A concept file at a strength."""

    file: Path
    strength: float = 1.0

    @property
    def word(self) -> str:
        """As commands take it: FILE, or FILE:0.8."""
        return str(self.file) if self.strength == 1 else f"{self.file}:{self.strength:g}"


def merge_words(concepts: Sequence[Chosen]) -> list[str]:
    """Return the words of `moongate merge` without what it writes."""
    return ["merge", *(concept.word for concept in concepts)]


def merge_command(concepts: Sequence[Chosen], out: Path) -> Command:
    """Return the command that writes a merge."""
    return Command((*merge_words(concepts), "--out", str(out)))


def generate_command(
    prompts: Sequence[str],
    concepts: Sequence[Chosen],
    *,
    out: Path,
    seed: int,
    count: int,
    together: str = "merge",
    regions: Iterable[str] = (),
    more: Mapping[str, object] | None = None,
) -> Command:
    """Return the command that draws.

    Args:
        prompts: What to draw.
        concepts: With what.
        out: Folder for the pictures.
        seed: Seed of the first picture of each prompt.
        count: Pictures of each prompt.
        together: How several concepts are combined: merge or add.
        regions: Words and their rectangles, as `--region` takes them.
        more: Further options by name; those that are None or empty are left out.

    Raises:
        OptionError: A prompt, the seed or the count cannot be used.
    """
    if not 1 <= count <= MAX_COUNT:
        raise OptionError(f"The number of pictures is {count}; it must be from 1 to {MAX_COUNT}.")
    words = ["generate", *map(checked_prompt, prompts)]
    for concept in concepts:
        words += ["--concept", concept.word]
    if len(concepts) > 1:
        words += ["--together", together]
    words += [f"--region={region}" for region in regions]  # words may begin with a hyphen
    words += _options(more or {})
    return Command((*words, "--count", str(count), "--seed", str(seed), "--out", str(out)))


def redraw_command(picture: Picture, concepts: Sequence[Chosen], *, out: Path, model: str) -> Command:
    """Return the command that draws a picture again as its file says.

    Raises:
        OptionError: Its prompt cannot be used, it is an edit, its regions had prompts of their own, or it was drawn
            with another model and without a concept.
    """
    _check_drawn(picture)
    _check_model(picture, concepts, model)
    if picture.has_region_texts:
        raise OptionError("Regions of this picture had prompts of their own. Draw it in a shell, with --regions FILE.")
    return generate_command(
        [picture.prompt],
        concepts,
        out=out,
        seed=picture.seed,
        count=1,
        together=picture.together or "merge",
        regions=picture.regions,
        more={**_how_drawn(picture), "model": "" if concepts else model},
    )


def edit_command(picture: Picture, target: str, concepts: Sequence[Chosen], *, out: Path, model: str) -> Command:
    """Return the command that edits a drawn picture by the words of its prompt.

    The picture is drawn again from its seed, which keeps more of it than turning its pixels into noise.

    Raises:
        OptionError: The prompt cannot be used, the picture is an edit, or it was drawn with several concepts, or with
            another model and without a concept.
    """
    _check_drawn(picture)
    _check_model(picture, concepts, model)
    if len(concepts) > 1:
        raise OptionError(
            "This picture was drawn with several concepts, and an edit takes one. Save their merge on the page "
            "Compose, draw the picture with it, and edit that."
        )
    words = ["edit", checked_prompt(picture.prompt), checked_prompt(target), "--seed", str(picture.seed)]
    if concepts:
        words += ["--concept", str(concepts[0].file), "--strength", f"{concepts[0].strength:g}"]
    words += _options({"model": "" if concepts else model, **_how_drawn(picture)})
    return Command((*words, "--out", str(out)))


def checked_prompt(prompt: str) -> str:
    """Return a prompt on one line.

    Raises:
        OptionError: It is empty or too long, or a command would read it as an option.
    """
    line = " ".join(prompt.split())
    if not line or len(line) > MAX_CAPTION_CHARACTERS or line.startswith("-"):
        raise OptionError(
            f"The prompt {line!r:.80} is empty, longer than {MAX_CAPTION_CHARACTERS} characters, or begins with a "
            "hyphen. Write what the picture shows."
        )
    return line


def _check_model(picture: Picture, concepts: Sequence[Chosen], model: str) -> None:
    """Raise OptionError for a picture of another model, which its file names: anyone may have written that."""
    if picture.model not in ("", model) and not concepts:
        raise OptionError(
            f"This picture was drawn with the model {picture.model!r:.80}, and this studio draws with {model!r}. Start "
            "a studio with --model and that name, if you trust the model."
        )


def _how_drawn(picture: Picture) -> dict[str, object]:
    """Return the options of sampling that a picture was drawn with; None or empty where it does not say."""
    return {
        "steps": picture.steps,
        "guidance": picture.guidance,
        "scheduler": picture.scheduler,
        "negative-prompt": picture.negative_prompt,
        "width": picture.width_px,
        "height": picture.height_px,
    }


def _options(values: Mapping[str, object]) -> list[str]:
    """Return options by name as words of a command, without those that are None or empty.

    Each is one word, because a value, such as a negative prompt, may look like another option.
    """
    return [f"--{name}={value}" for name, value in values.items() if value not in (None, "")]


def _check_drawn(picture: Picture) -> None:
    """Raise OptionError for an edit, which does not follow from its prompt and seed alone."""
    if picture.source:
        raise OptionError(
            f"This picture is an edit of {picture.source!r:.80}. Draw or edit the picture that it began with."
        )
