"""What is drawn for the page of a run: pictures of one prompt on the way, and base beside concept at the end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from moongate.backbone import Backbone
from moongate.data import Subject
from moongate.run_page.album import Album, Drawn, Part
from moongate.sampling import SampleOptions, sample

__all__ = [
    "COMPARED_SEEDS",
    "DRAWING",
    "PLACES",
    "Comparison",
    "caption_template",
    "compared",
    "draw",
    "drawings",
    "seconds_to_draw",
]

DRAWING = SampleOptions(steps=20, scheduler="dpm++")
"""How pictures are drawn: as well as by 50 steps of DDPM at less than half the cost."""
PLACES = ("on the beach", "in the snow", "in a garden", "in a city", "at night")
"""Where the subject is drawn at the end."""
COMPARED_SEEDS = (0, 1)
BACKWARD = 3
"""A step of training costs about this many evaluations of the denoiser, because the backward pass takes two."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A prompt for the base model, which names the category alone, and the one for the concept."""

    base: str
    concept: str


def compared(backbone: Backbone, base: str, concept: str) -> list[Comparison]:
    """Return the prompts of base and concept in some places, without those that are longer than the model reads.

    Args:
        backbone: The model, which must know the concept's tokens.
        base: The words for the base model, such as "photo of a dog".
        concept: The words for the concept, such as "photo of a <rex> dog".
    """
    pairs = [Comparison(base=f"{base} {place}", concept=f"{concept} {place}") for place in PLACES]
    return [pair for pair in pairs if not (backbone.cut_off(pair.base) or backbone.cut_off(pair.concept))]


def caption_template(subjects: Sequence[Subject]) -> str | None:
    """Return how all captions of some subjects begin, such as "drawing of a {}"; None if not all begin alike."""
    openings = {caption.partition(subject.words) for subject in subjects for caption in subject.captions}
    starts = {before for before, _, _ in openings}
    return f"{starts.pop()}{{}}" if len(starts) == 1 and all(words for _, words, _ in openings) else None


def draw(
    backbone: Backbone,
    album: Album,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    step: int,
    part: Part,
    place: int = 0,
    on_picture: Callable[[], None] = lambda: None,
) -> None:
    """Draw each prompt with each seed into the album.

    Args:
        backbone: The model as it is; a concept to draw with must be applied.
        album: Where the pictures go.
        prompts: The prompts.
        seeds: The seeds of each prompt.
        step: Steps of training so far; 0 is the base model.
        part: What the pictures are for.
        place: Position of the first prompt among those that are drawn together.
        on_picture: Called after each picture.
    """
    for drawn, image in drawings(backbone, prompts, seeds=seeds, step=step, part=part, place=place):
        album.add(drawn, image)
        on_picture()


def drawings(
    backbone: Backbone, prompts: Sequence[str], *, seeds: Sequence[int], step: int, part: Part, place: int = 0
) -> Iterator[tuple[Drawn, UInt8[np.ndarray, "height width 3"]]]:
    """Draw as `draw` does, but yield the pictures and write none."""
    jobs = [(index, prompt, seed) for index, prompt in enumerate(prompts, place) for seed in seeds]
    pictures = sample(backbone, [prompt for _, prompt, _ in jobs], seeds=[seed for _, _, seed in jobs], options=DRAWING)
    for (index, prompt, seed), picture in zip(jobs, pictures, strict=True):
        yield Drawn(part=part, step=step, prompt=prompt, seed=seed, place=index), picture.image


def seconds_to_draw(pictures: int, backbone: Backbone, pictures_per_second: float) -> float:
    """Return about how long pictures take to draw, from the speed of the training.

    Args:
        pictures: Number of pictures.
        backbone: The model.
        pictures_per_second: Pictures that training takes in a second.
    """
    guidance = DRAWING.for_model(backbone).guidance or 0
    evaluations = DRAWING.steps * (2 if guidance > 1 and not backbone.takes_guidance else 1)
    return pictures * evaluations / (BACKWARD * pictures_per_second)
