"""Draw the same prompts and seeds in several ways: without a concept, with it at several strengths, or with others.

A prompt names subjects by tokens. Where a way has no such token, the category stands in its place, so that every way
draws what it can of the same sentence.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from moongate.backbone import Backbone
from moongate.concept import Concept, SubjectRecord
from moongate.data import without_tokens
from moongate.errors import OptionError
from moongate.pages import SheetGroup, grouped_sheet
from moongate.sampling import Sample, SampleOptions, check_prompt, sample

__all__ = ["STRENGTHS", "Way", "compare", "comparison_sheet", "ways_of"]

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
"""Strengths at which a concept is compared with the base."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """One way of drawing: a concept at a strength, or the base alone."""

    label: str
    concept: Concept | None = None
    strength: float = 1.0
    prompts: tuple[str, ...] | None = None
    """The prompts that are drawn in this way; all when None."""


def ways_of(concept: Concept, strengths: Sequence[float] = STRENGTHS) -> list[Way]:
    """Return the base alone, and then the concept at each of the strengths."""
    return [
        Way(label="without"),
        *(Way(label=f"strength {strength:g}", concept=concept, strength=strength) for strength in strengths),
    ]


def compare(
    backbone: Backbone,
    prompts: Sequence[str],
    ways: Sequence[Way],
    *,
    seeds: Sequence[int],
    options: SampleOptions | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, list[Sample]]]:
    """Draw each prompt with the same seeds in several ways.

    Args:
        backbone: The base model, with no concept applied.
        prompts: Prompts with the tokens of any of the concepts.
        ways: The ways, each with a label of its own.
        seeds: The seeds of the pictures of each prompt.
        options: How pictures are drawn.
        on_picture: Called after each picture with the number of drawn pictures and the number of all.

    Returns:
        By prompt and then by the label of each way that draws it: the pictures in the order of the seeds.

    Raises:
        OptionError: There is no prompt, way or seed, two are the same, or the options do not fit.
        TokenError: A prompt has a `<token>` that none of the concepts provides.
        BaseMismatchError: A concept is for another base. All are raised before any drawing.
    """
    labels = [way.label for way in ways]
    for name, values in (("prompt", prompts), ("way", labels), ("seed", seeds)):
        if not values:
            raise OptionError(f"There is no {name} to compare. Give at least one.")
        if len(set(values)) < len(values):
            twice = next(value for value in values if list(values).count(value) > 1)
            raise OptionError(f"The {name} {twice!r} is given twice. Remove one.")
    subjects = [subject for way in ways if way.concept for subject in _subjects(way.concept)]
    chosen = {way.label: [prompt for prompt in prompts if way.prompts is None or prompt in way.prompts] for way in ways}
    total, done = sum(map(len, chosen.values())) * len(seeds), 0
    drawn: dict[str, dict[str, list[Sample]]] = {
        prompt: {label: [] for label in labels if prompt in chosen[label]} for prompt in prompts
    }
    worded = {way.label: _checked(backbone, chosen[way.label], way.concept, subjects) for way in ways}
    for way in ways:
        with way.concept.applied(backbone, strength=way.strength) if way.concept else contextlib.nullcontext():
            both = zip(chosen[way.label], worded[way.label], strict=True)
            pairs = [(prompt, text, seed) for prompt, text in both for seed in seeds]
            texts, all_seeds = [text for _, text, _ in pairs], [seed for _, _, seed in pairs]
            pictures = sample(backbone, texts, seeds=all_seeds, options=options)
            for (prompt, _, _), picture in zip(pairs, pictures, strict=True):
                drawn[prompt][way.label].append(picture)
                done += 1
                if on_picture:
                    on_picture(done, total)
    return drawn


def comparison_sheet(drawn: Mapping[str, Mapping[str, Sequence[Sample]]], *, heading: str = "") -> Image.Image:
    """Return a contact sheet of what `compare` drew: a group a prompt, a row a seed, a column a way."""
    groups = [
        SheetGroup(
            title=prompt,
            images=[picture.image for row in zip(*by_way.values(), strict=True) for picture in row],
            labels=[
                f"{label}, seed {picture.seed}"
                for row in zip(*by_way.values(), strict=True)
                for label, picture in zip(by_way, row, strict=True)
            ],
        )
        for prompt, by_way in drawn.items()
    ]
    columns = len(next(iter(drawn.values())))
    return grouped_sheet(groups, columns=columns, heading=heading)


def _subjects(concept: Concept) -> list[SubjectRecord]:
    """Return the subjects that have tokens, and one without a category for each token that no subject has."""
    subjects = [subject for subject in concept.subjects if subject.tokens]
    own = {token for subject in subjects for token in subject.tokens}
    return [*subjects, *(SubjectRecord(category="", token=token) for token in concept.tokens if token not in own)]


def _checked(
    backbone: Backbone, prompts: Sequence[str], concept: Concept | None, subjects: Sequence[SubjectRecord]
) -> list[str]:
    """Return prompts in the words that a way knows. Raises errors as `compare` does."""
    if concept:
        concept.check_base(backbone)
    with backbone.tokens(concept.tokens if concept else {}):
        missing = [subject for subject in subjects if subject.tokens[0] not in backbone.known_tokens]
        worded = [_worded(prompt, concept, missing) for prompt in prompts]
        for text in worded:
            check_prompt(backbone, text)
    return worded


def _worded(prompt: str, concept: Concept | None, missing: Sequence[SubjectRecord]) -> str:
    """Return a prompt in the words that a way knows."""
    spelled = concept.spelled(prompt) if concept else prompt
    return without_tokens(spelled, missing) if missing else spelled
