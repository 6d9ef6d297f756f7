"""The demo of composing: two held-out examples in one picture, by each of the ways there are.

Each is taught alone, and the two concepts are merged, or simply added up; they are also taught together (joint
training) and one after the other (sequential training). What came of it is counted by the recognizer, which knows
categories and not the very things; whether it is the very thing, the page lets everyone judge.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Preset, Regularization, Subject
from moongate.data.pictures import find_pictures, read_picture
from moongate.demo.recognizer import Recognizer
from moongate.demo.single import METHOD, drawn, shown
from moongate.errors import OptionError
from moongate.files import write_atomically
from moongate.merging import Merged, merge
from moongate.merging.page import verdict
from moongate.pages import Page, contact_sheet
from moongate.pocket import Example, example, pool_folder
from moongate.training import Step, TrainOptions, train

__all__ = ["EXAMPLES", "Composition", "Way", "make_compose_demo"]

EXAMPLES = ("drawn-penguin", "drawn-snowman-without-snow")
"""Two that the recognizer knows for what they are; of most held-out objects it does not."""
SCENES = (
    ("", "in a garden"),
    ("", "on the beach"),
    ("", "in the snow"),
    ("", "in a room"),
    ("", "in a meadow"),
    ("", "on a blue background"),
    ("watercolor painting", "in a forest"),
    ("pencil sketch", "on a white background"),
)
"""Style, that of the examples where there is none, and place; every second prompt turns the two things round."""
PAGE_PICTURES = 6
"""Pictures of each prompt and way on the page."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to compose: its pictures, and which of the two things the recognizer sees in each of them."""

    name: str
    seconds: float
    """What making it took: joint training from nothing, the others from the single concepts."""
    pictures: dict[str, list[np.ndarray]]
    """By prompt."""
    seen: Bool[Tensor, "pictures 2"]
    """In the order of the pictures."""

    @property
    def shares(self) -> dict[str, float]:
        """In what share of the pictures both things are seen, and each of them."""
        first, second = self.seen.double().mean(0).tolist()
        return {"both": float(self.seen.all(1).double().mean()), "first": first, "second": second}

    @property
    def row(self) -> tuple[str, ...]:
        """The way as a row of the table: name, shares, seconds."""
        return (self.name, *(f"{share:.0%}" for share in self.shares.values()), f"{self.seconds:.0f}")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The page, and the table on it."""

    page: Path
    head: tuple[str, ...]
    ways: tuple[Way, ...]


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The concepts, and how long each took."""

    singles: tuple[Concept, Concept]
    joint: Concept
    sequential: Concept
    merged: Merged
    seconds: dict[str, float]

    @property
    def ways(self) -> dict[str, tuple[Concept, ...]]:
        """What is applied in each way; nothing, to see what pocket makes of the category words."""
        return {
            "pocket itself": (),
            "joint": (self.joint,),
            "merge": (self.merged.concept,),
            "sequential": (self.sequential,),
            "addition": self.singles,
        }


def make_compose_demo(
    names: Sequence[str] = EXAMPLES,
    *,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    count: int = 8,
    on_step: Callable[[Step], None] | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Composition:
    """Teach the two examples `names` in every way, draw `count` pictures of each joint prompt, and count.

    Writes `index.html` (self-contained), `overview.png`, `figures.json`, the two single concepts and the merged one
    into `out`. `steps` are for each thing. Raises OptionError before any work when there are not two examples of
    different categories that the recognizer knows, or no recognizer.
    """
    pair = _pair(names)
    if count < 1:
        raise OptionError(f"count is {count}; it must be at least 1.")
    recognizer = Recognizer.load()
    categories = [each.category for each in pair]
    recognizer.numbers(categories)
    backbone = Backbone.load("pocket")
    subjects = [Subject.load(each.training, category=each.category, token=f"<{each.name.lower()}>") for each in pair]
    real = _seen_alone(recognizer, pair)
    made = _make(backbone, subjects, TrainOptions(seed=seed, steps=steps), on_step, on_stage)
    for each, concept in zip((*names, "merged"), (*made.singles, made.merged.concept), strict=True):
        concept.save(out / f"{each}.safetensors", overwrite=True)
    ways = []
    for name, concepts in made.ways.items():
        things = [f"{s.token} {s.category}" if concepts else s.category for s in subjects]
        on_stage(f"Drawing {len(SCENES) * count} pictures: {name}")
        with contextlib.ExitStack() as stack:
            for concept in concepts:
                stack.enter_context(concept.applied(backbone))
            pictures = drawn(backbone, _prompts(things, style=pair[0].style), count=count)
        every = np.stack([picture for some in pictures.values() for picture in some])
        seen = recognizer.sees(every, categories)
        ways.append(Way(name=name, seconds=made.seconds.get(name, 0.0), pictures=pictures, seen=seen))
        on_stage(f"Both recognized in {ways[-1].shares['both']:.0%}")
    head = ("way", "both", *categories, "seconds")
    composition = Composition(page=out / "index.html", head=head, ways=tuple(ways))
    write_atomically(out / "figures.json", (json.dumps(_figures(made, ways, real), indent=1) + "\n").encode())
    _page(composition, backbone, subjects, made, real).save(composition.page)
    _overview(backbone, subjects, ways).save(out / "overview.png")
    return composition


def _pair(names: Sequence[str]) -> tuple[Example, Example]:
    if len(names) != 2:
        raise OptionError(f"{len(names)} examples were given; two are composed, such as {' and '.join(EXAMPLES)}.")
    first, second = (example(name) for name in names)
    if first.category == second.category:
        raise OptionError(
            f"{first.name} and {second.name} are both a {first.category}, which the recognizer could not tell apart. "
            "Choose examples of two categories."
        )
    return first, second


def _seen_alone(recognizer: Recognizer, pair: Sequence[Example]) -> dict[str, float]:
    """Return by category in what share of an example's own held-out pictures it is among the two that score highest."""
    shares = {}
    for index, each in enumerate(pair):
        pictures = np.stack([read_picture(path) for path in find_pictures(each.evaluation)])
        seen = recognizer.sees(pictures, [other.category for other in pair])
        shares[each.category] = float(seen[:, index].double().mean())
    return shares


def _prompts(things: Sequence[str], *, style: str) -> list[str]:
    """Return the joint prompts for two things, as pocket's corpus words them."""
    return [
        Preset(caption=f"{own or style} of a {{}} {place}").describe(*(things if number % 2 == 0 else things[::-1]))
        for number, (own, place) in enumerate(SCENES)
    ]


def _make(
    backbone: Backbone,
    subjects: Sequence[Subject],
    options: TrainOptions,
    on_step: Callable[[Step], None] | None,
    on_stage: Callable[[str], None],
) -> _Made:
    """Train and merge; the two singles begin as different rare tokens, as do the two tokens of the other ways."""
    priors = [Regularization.load(pool_folder(), category=each.category, only_category=True) for each in subjects]
    seconds: dict[str, float] = {}

    def taught(way: str, *which: int, start_from: Concept | None = None, rare_token: int | None = None) -> Concept:
        tokens = " and ".join(str(subjects[index].token) for index in which)
        on_stage(f"Teaching {tokens} ({way})")
        began = time.monotonic()
        concept = train(
            backbone,
            [subjects[index] for index in which],
            [priors[index] for index in which],
            METHOD,
            options=replace(options, steps=options.steps and options.steps * len(which), rare_token=rare_token),
            start_from=start_from,
            on_step=on_step,
        )
        seconds[way] = seconds.get(way, 0.0) + time.monotonic() - began
        return concept

    first, second = taught("alone", 0), taught("alone", 1, rare_token=1)
    joint = taught("joint", 0, 1)
    sequential = taught("sequential", 1, start_from=first)
    on_stage("Merging")
    began = time.monotonic()
    merged = merge(backbone, [first, second])
    seconds["merge"] = time.monotonic() - began
    return _Made(singles=(first, second), joint=joint, sequential=sequential, merged=merged, seconds=seconds)


# --- what is written --------------------------------------------------------------------------------------------------


def _figures(made: _Made, ways: Sequence[Way], real: Mapping[str, float]) -> dict[str, Any]:
    return {
        "things": [subject.words for subject in made.joint.subjects],
        "prompts": list(ways[-1].pictures),
        "pictures_of_each_way": len(ways[0].seen),
        "steps": {"alone": made.singles[0].record["steps"], "joint": made.joint.record["steps"]},
        "seed": made.joint.record["seed"],
        "recognized": {way.name: {name: round(share, 4) for name, share in way.shares.items()} for way in ways},
        "recognized_in_real_pictures": real,
        "seconds": {name: round(value, 1) for name, value in made.seconds.items()},
        "merge": {
            "drift": made.merged.report.drift,
            "joint_error": {fit.words: fit.joint_error for fit in made.merged.report.subjects},
        },
    }


def _page(
    composition: Composition, backbone: Backbone, subjects: Sequence[Subject], made: _Made, real: Mapping[str, float]
) -> Page:
    ways = composition.ways
    first, second = (subject.words for subject in made.joint.subjects)
    total, count = len(ways[0].seen), len(ways[0].seen) // len(SCENES)
    known = " and ".join(f"{share:.0%}" for share in real.values())
    page = Page(title=f"Moongate: {first} and {second}")
    page.text("h1", f"Composing {first} and {second}")
    page.text(
        "p", "Pocket, the small backbone that comes with Moongate, has never seen these two. It learned them from:"
    )
    for subject, words in zip(subjects, (first, second), strict=True):
        page.row(words, shown(subject, backbone))
    page.text("h2", "Are both in the picture?")
    page.text(
        "p",
        f"{total} pictures of each way, {count} of each of {len(SCENES)} prompts. Both are counted when the recognizer "
        f"scores {subjects[0].category} and {subjects[1].category} above all other categories, one when it is among "
        f"the two highest, as in {known} of real pictures of the two alone. One standard error is at most "
        f"{50 / total**0.5:.0f} percentage points. The seconds are what making each took: joint training from "
        "nothing, the others from the concepts taught alone "
        f"({made.seconds['alone']:.0f} s for both).",
    )
    page.table(composition.head, [way.row for way in ways])
    page.text("h2", "What the merge says of itself")
    for line in verdict(made.merged.report):
        page.text("p", line)
    for number, prompt in enumerate(ways[-1].pictures):
        page.text("h2", prompt)
        for way in ways:
            pictures = list(way.pictures.values())[number]
            both = int(way.seen[number * count : (number + 1) * count].all(1).sum())
            page.row(f"{way.name}: both in {both} of {count}", pictures[:PAGE_PICTURES])
    return page


def _overview(backbone: Backbone, subjects: Sequence[Subject], ways: Sequence[Way]) -> Image.Image:
    """Return one picture: what was taught, then a row for each way with the first picture of each prompt."""
    half = len(SCENES) // 2
    blank = np.full((backbone.resolution_px, backbone.resolution_px, 3), 255, dtype=np.uint8)
    images, labels = [], []
    for subject in subjects:
        pictures = shown(subject, backbone)[:half]
        images += pictures + [blank] * (half - len(pictures))
        labels += [f"learned: {subject.token} {subject.category}", *[""] * (half - 1)]
    for way in ways:
        images += [pictures[0] for pictures in way.pictures.values()]
        first, *others = list(way.pictures) if way is ways[-1] else [""] * len(SCENES)
        labels += [f"{way.name}: both in {way.shares['both']:.0%} {first}", *others]
    return contact_sheet(images, columns=len(SCENES), labels=labels)
