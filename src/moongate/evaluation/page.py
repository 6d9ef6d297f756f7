"""The page of an evaluation: its values beside those of the base, the training photos, and the pictures by prompt."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from moongate.backbone import Backbone
from moongate.concept import Concept, SubjectRecord
from moongate.data.pictures import read_picture
from moongate.evaluation.record import Evaluation, Measure
from moongate.pages import Cell, Page
from moongate.sampling import draw_missing

__all__ = ["PAGE", "base_alone", "kept_pictures", "write_page"]

PAGE = "index.html"
PICTURES_OF_A_PROMPT = 4
HIGHER_IS_BETTER = {"text alignment": True, "image alignment": True, "KID": False, "FID": False}

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]


def base_alone(concept: Concept) -> Concept:
    """Return a concept that changes nothing and has the categories of another one, to evaluate the base beside it."""
    subjects = tuple(SubjectRecord(category=subject.category) for subject in concept.subjects)
    return dataclasses.replace(concept, deltas={}, tokens={}, subjects=subjects, method="base")


def kept_pictures(
    backbone: Backbone, concept: Concept | None, prompts: Sequence[str], evaluation: Evaluation, folder: Path
) -> dict[str, Pictures]:
    """Return the pictures of each prompt that an evaluation has drawn into a folder; missing ones are drawn again."""
    pairs = [(prompt, seed) for prompt in prompts for seed in evaluation.seeds[:PICTURES_OF_A_PROMPT]]
    texts, seeds = zip(*pairs, strict=True)
    paths = draw_missing(backbone, texts, seeds=seeds, folder=folder, concept=concept, options=evaluation.sampling)
    drawn: dict[str, list[UInt8[np.ndarray, "_ _ 3"]]] = {prompt: [] for prompt in prompts}
    for text, path in zip(texts, paths, strict=True):
        drawn[text].append(read_picture(path))
    return dict(drawn)


def write_page(
    evaluation: Evaluation,
    folder: Path,
    *,
    drawn: Mapping[str, Pictures],
    base: Evaluation | None = None,
    base_drawn: Mapping[str, Pictures] | None = None,
    photos: Mapping[str, Pictures] | None = None,
) -> Path:
    """Write `index.html` into a folder, and return its path.

    Args:
        evaluation: The record.
        folder: Where the page is written.
        drawn: The pictures of each prompt, as it was drawn.
        base: The record of the base alone with the same prompts, without tokens.
        base_drawn: The base's pictures of each prompt without tokens.
        photos: The photos of each subject by its words.
    """
    words = ", ".join(evaluation.concept.subjects) if evaluation.concept else evaluation.base.name
    page = Page(title=f"Moongate: evaluation of {words}")
    page.text("h1", f"Evaluation of {words}")
    noun = "prompt" if len(evaluation.prompts) == 1 else "prompts"
    pictures = "one picture" if evaluation.count == 1 else f"{evaluation.count} pictures"
    page.text(
        "p",
        f"{len(evaluation.prompts)} {noun} with {pictures} each, drawn by {evaluation.base.name}. "
        f"Intervals hold for similar prompts at {evaluation.level:.0%}. Values of one network compare with each other "
        "and with no others.",
    )
    _add_values(page, evaluation, base)
    for name, shown in (photos or {}).items():
        page.row(f"photos of {name}", shown)
    page.text("h2", "Pictures")
    for index, prompt in enumerate(evaluation.prompts):
        page.text("h3", prompt.drawn)
        page.row(_scores(evaluation, index), drawn[prompt.drawn][:PICTURES_OF_A_PROMPT])
        if base_drawn and prompt.read in base_drawn:
            page.row(f"the base alone: {prompt.read}", base_drawn[prompt.read][:PICTURES_OF_A_PROMPT])
    page.save(folder / PAGE)
    return folder / PAGE


def _add_values(page: Page, evaluation: Evaluation, base: Evaluation | None) -> None:
    head = ("measure", "value", *(("the base alone",) if base else ()), "interval", "compared with", "features")
    rows: list[Sequence[str | Cell]] = []
    for measure in evaluation.measures:
        compared = evaluation.compared_with(measure)
        interval = "" if measure.low is None else f"{measure.low:.4f} to {measure.high:.4f}"
        other = _same(measure, base) if base else None
        value: str | Cell = f"{measure.value:.4f}"
        if other:
            value = Cell(f"{measure.value:.4f}", "good" if _is_better(measure, other) else "fair")
        of_base = (f"{other.value:.4f}" if other else "",) if base else ()
        rows.append((measure.measure, value, *of_base, interval, compared, measure.features))
    page.text("h2", "Values")
    page.table(head, rows)
    if base:
        page.text(
            "p",
            "A value is green where it is better than the base's. A taught subject resembles its photos more than the "
            "base's pictures do; its text alignment is usually a little lower.",
        )


def _same(measure: Measure, base: Evaluation) -> Measure | None:
    """Return the base's value of the same measure."""
    key = (measure.measure, measure.features, measure.pictures, measure.subject)
    found = (m for m in base.measures if (m.measure, m.features, m.pictures, m.subject) == key)
    return next(found, None)


def _is_better(measure: Measure, other: Measure) -> bool:
    return (measure.value >= other.value) == HIGHER_IS_BETTER[measure.measure]


def _scores(evaluation: Evaluation, index: int) -> str:
    """Return the values of one prompt, those of several networks after one name."""
    values: dict[str, list[str]] = {}
    for measure in evaluation.measures:
        if measure.by_prompt is not None:
            compared = evaluation.compared_with(measure)
            name = f"{measure.measure} with {compared}" if compared else measure.measure
            values.setdefault(name, []).append(f"{measure.by_prompt[index]:.3f} ({measure.features})")
    return "; ".join(f"{name} {', '.join(of_networks)}" for name, of_networks in values.items())
