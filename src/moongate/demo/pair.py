"""The demo of two subjects in one picture, by each strategy: merge, addition, joint and sequential training.

Both subjects are taught alone, and the two concepts are merged, or simply applied together; they are also taught
together (joint training) and one after the other (sequential training). The recognizer counts the results. It knows
categories, not instances: whether a picture shows the very subject, everyone can see on the page.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from moongate.backbone import POCKET, Backbone, usual_dtype
from moongate.concept import Concept
from moongate.data import Preset, Regularization, Subject
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.demo.recognizer import Recognizer
from moongate.demo.single import Picture, as_trained, draw
from moongate.errors import OptionError
from moongate.files import write_atomically
from moongate.limits import check_count
from moongate.merging import Merged, MergeOptions, merge
from moongate.merging.page import verdict
from moongate.pages import Page, contact_sheet, png_bytes
from moongate.pocket import Example, example, pool_folder
from moongate.training import Plan, Step, TrainOptions, train
from moongate.training.method import method_for
from moongate.training.processes import processes_for, together

__all__ = ["EXAMPLES", "PairDemo", "Strategy", "make_pair_demo"]

EXAMPLES = ("drawn-penguin", "drawn-snowman-without-snow")
"""Two examples whose category the recognizer sees in real pictures; for most examples it does not."""
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
"""Style (that of the examples if empty) and place. Every second prompt names the subjects in the other order."""
PAGE_PICTURES = 6
"""Pictures of each prompt and strategy on the page."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strategy:
    """One way to get two subjects into one picture, its pictures, and what the recognizer sees in them."""

    name: str
    seconds: float
    """Time that making it took: joint training from nothing, the others from the concepts taught alone."""
    pictures: dict[str, list[Picture]]
    """Pictures by prompt."""
    seen: Bool[Tensor, "pictures 2"]
    """Whether each subject's category is seen, for all pictures in order."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of pictures in which both categories are seen, and each of them."""
        first, second = self.seen.double().mean(0).tolist()
        return {"both": float(self.seen.all(1).double().mean()), "first": first, "second": second}

    @property
    def row(self) -> tuple[str, ...]:
        """The strategy as a row of the table: name, shares, seconds."""
        return (self.name, *(f"{share:.0%}" for share in self.shares.values()), f"{self.seconds:.0f}")


@dataclass(frozen=True, kw_only=True, eq=False)
class PairDemo:
    """The page, and the table on it."""

    page: Path
    head: tuple[str, ...]
    strategies: tuple[Strategy, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Concepts:
    """The concepts of all strategies, and how long each took."""

    singles: tuple[Concept, Concept]
    joint: Concept
    sequential: Concept
    merged: Merged
    seconds: dict[str, float]

    @property
    def by_strategy(self) -> dict[str, tuple[Concept, ...]]:
        """The concepts that each strategy applies; none for what pocket draws for the categories."""
        return {
            "pocket itself": (),
            "joint": (self.joint,),
            "merge": (self.merged.concept,),
            "sequential": (self.sequential,),
            "addition": self.singles,
        }


def make_pair_demo(
    names: Sequence[str] = EXAMPLES,
    *,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    count: int = 8,
    cache: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> PairDemo:
    """Teach two examples by every strategy, draw pictures of both together, and count what the recognizer sees.

    Args:
        names: Two of `moongate.pocket.examples`, of different categories that the recognizer knows.
        out: Folder for `index.html` (self-contained), `overview.png`, `figures.json` and the concept files (the two
            subjects alone, and merged).
        steps: Optimizer steps for each subject; by default what the method needs.
        seed: Seed of the trainings.
        count: Pictures of each prompt and strategy.
        cache: Folder in which what the neutral captions give is kept, as in `TrainOptions`.
        on_step: Called after each optimizer step.
        on_stage: Called with a line for people when a stage begins.

    Raises:
        OptionError: The examples do not fit, `count` is less than 1, or there is no recognizer. Raised before any work.
    """
    pair = _pair(names)
    check_count("count", count)
    recognizer = Recognizer.load()
    categories = [chosen.category for chosen in pair]
    recognizer.numbers(categories)  # refuses those that it does not know
    backbone = Backbone.load(POCKET, dtype=usual_dtype())
    subjects = [
        Subject.load(chosen.training, category=chosen.category, token=f"<{chosen.name.lower()}>") for chosen in pair
    ]
    real = _seen_alone(recognizer, pair)
    concepts = _train(backbone, subjects, TrainOptions(seed=seed, steps=steps, cache=cache), on_step, on_stage)
    for name, concept in zip((*names, "merged"), (*concepts.singles, concepts.merged.concept), strict=True):
        concept.save(out / f"{name}.safetensors", overwrite=True)
    strategies = []
    for name, applied in concepts.by_strategy.items():
        words = [subject.words if applied else subject.category for subject in subjects]
        on_stage(f"Drawing {len(SCENES) * count} pictures: {name}")
        with contextlib.ExitStack() as stack:
            for concept in applied:
                stack.enter_context(concept.applied(backbone))
            pictures = draw(backbone, _prompts(words, style=pair[0].style), count=count)
        seen = recognizer.sees(np.stack([picture for group in pictures.values() for picture in group]), categories)
        strategies.append(Strategy(name=name, seconds=concepts.seconds.get(name, 0.0), pictures=pictures, seen=seen))
        on_stage(f"Both recognized in {strategies[-1].shares['both']:.0%}")
    head = ("strategy", "both", *categories, "seconds")
    demo = PairDemo(page=out / "index.html", head=head, strategies=tuple(strategies))
    figures = _figures(concepts, strategies, real)
    write_atomically(out / "figures.json", (json.dumps(figures, indent=1) + "\n").encode())
    _page(demo, backbone, subjects, concepts, real).save(demo.page)
    write_atomically(out / "overview.png", png_bytes(_overview(backbone, subjects, strategies)))
    return demo


def _pair(names: Sequence[str]) -> tuple[Example, Example]:
    if len(names) != 2:
        raise OptionError(f"{len(names)} examples were given. Give two, such as {' and '.join(EXAMPLES)}.")
    first, second = (example(name) for name in names)
    if first.category == second.category:
        raise OptionError(
            f"{first.name} and {second.name} are both a {first.category}, which the recognizer could not tell apart. "
            "Choose examples of two categories."
        )
    return first, second


def _seen_alone(recognizer: Recognizer, pair: Sequence[Example]) -> dict[str, float]:
    """Return by category in what share of an example's held-out pictures it is among the two that score highest."""
    shares = {}
    for index, chosen in enumerate(pair):
        pictures = np.stack([read_picture(path) for path in find_pictures(chosen.evaluation)])
        seen = recognizer.sees(pictures, [other.category for other in pair])
        shares[chosen.category] = float(seen[:, index].double().mean())
    return shares


def _prompts(words: Sequence[str], *, style: str) -> list[str]:
    """Return the prompts for two subjects, built as the captions of pocket's corpus are."""
    return [
        Preset(caption=f"{own or style} of a {{}} {place}").describe(*(words if index % 2 == 0 else words[::-1]))
        for index, (own, place) in enumerate(SCENES)
    ]


def _train(
    backbone: Backbone,
    subjects: Sequence[Subject],
    options: TrainOptions,
    on_step: Callable[[Step], None] | None,
    on_stage: Callable[[str], None],
) -> _Concepts:
    """Train and merge. The two single concepts begin from different rare tokens, like the tokens of one concept."""
    sets = [Regularization.load(pool_folder(), category=s.category, only_category=True) for s in subjects]
    seconds: dict[str, float] = {}

    def taught(strategy: str, *which: int, start_from: Concept | None = None, rare_token: int | None = None) -> Concept:
        tokens = " and ".join(str(subjects[index].token) for index in which)
        on_stage(f"Teaching {tokens} ({strategy})")
        began = time.monotonic()
        what = backbone, [subjects[index] for index in which], [sets[index] for index in which], method_for(backbone)
        steps = None if options.steps is None else options.steps * len(which)
        how: dict[str, Any] = {
            "options": replace(options, steps=steps, rare_token=rare_token),
            "start_from": start_from,
        }
        processes = processes_for(Plan.of(*what, **how))
        concept = together(partial(train, *what, on_step=on_step, **how), processes=processes)
        seconds[strategy] = seconds.get(strategy, 0.0) + time.monotonic() - began
        return concept

    first, second = taught("alone", 0), taught("alone", 1, rare_token=1)
    joint = taught("joint", 0, 1)
    sequential = taught("sequential", 1, start_from=first)
    on_stage("Merging")
    began = time.monotonic()
    merged = merge(backbone, [first, second], options=MergeOptions(cache=options.cache))
    seconds["merge"] = time.monotonic() - began
    return _Concepts(singles=(first, second), joint=joint, sequential=sequential, merged=merged, seconds=seconds)


# --- output -----------------------------------------------------------------------------------------------------------


def _figures(concepts: _Concepts, strategies: Sequence[Strategy], real: Mapping[str, float]) -> dict[str, Any]:
    return {
        "subjects": [subject.words for subject in concepts.joint.subjects],
        "prompts": list(strategies[-1].pictures),
        "pictures_of_each_strategy": len(strategies[0].seen),
        "steps": {"alone": concepts.singles[0].record["steps"], "joint": concepts.joint.record["steps"]},
        "seed": concepts.joint.record["seed"],
        "recognized": {s.name: {key: round(share, 4) for key, share in s.shares.items()} for s in strategies},
        "recognized_in_real_pictures": real,
        "seconds": {name: round(value, 1) for name, value in concepts.seconds.items()},
        "merge": {
            "drift": concepts.merged.report.drift,
            "joint_error": {fit.words: fit.joint_error for fit in concepts.merged.report.subjects},
        },
    }


def _page(
    demo: PairDemo, backbone: Backbone, subjects: Sequence[Subject], concepts: _Concepts, real: Mapping[str, float]
) -> Page:
    first, second = (subject.words for subject in concepts.joint.subjects)
    total, count = len(demo.strategies[0].seen), len(demo.strategies[0].seen) // len(SCENES)
    page = Page(title=f"Moongate: {first} and {second}")
    page.text("h1", f"{first} and {second} in one picture")
    page.text(
        "p",
        "Pocket, the small model that comes with Moongate, has never seen these two subjects. It was taught from these "
        "pictures:",
    )
    for subject, words in zip(subjects, (first, second), strict=True):
        page.row(words, as_trained(subject, backbone))
    page.text("h2", "Are both in the picture?")
    page.text(
        "p",
        f"{total} pictures of each strategy, {count} of each of {len(SCENES)} prompts. Both subjects count when the "
        f"recognizer scores {subjects[0].category} and {subjects[1].category} above all other categories; one counts "
        f"when it is among the two highest, as in {' and '.join(f'{share:.0%}' for share in real.values())} of real "
        f"pictures of the two alone. The standard error is at most {50 / total**0.5:.0f} percentage points. Seconds "
        "are the time for each strategy: joint training from nothing, the others from the concepts taught alone "
        f"({concepts.seconds['alone']:.0f} s for both).",
    )
    page.table(demo.head, [strategy.row for strategy in demo.strategies])
    page.text("h2", "The report of the merge")
    for line in verdict(concepts.merged.report):
        page.text("p", line)
    for index, prompt in enumerate(demo.strategies[-1].pictures):
        page.text("h2", prompt)
        for strategy in demo.strategies:
            pictures = list(strategy.pictures.values())[index]
            both = int(strategy.seen[index * count : (index + 1) * count].all(1).sum())
            page.row(f"{strategy.name}: both in {both} of {count}", pictures[:PAGE_PICTURES])
    return page


def _overview(backbone: Backbone, subjects: Sequence[Subject], strategies: Sequence[Strategy]) -> Image.Image:
    """Return one picture: what was taught, then a row for each strategy with the first picture of each prompt."""
    half = len(SCENES) // 2
    blank = np.full((backbone.resolution_px, backbone.resolution_px, 3), 255, dtype=np.uint8)
    images, labels = [], []
    for subject in subjects:
        pictures = as_trained(subject, backbone)[:half]
        images += pictures + [blank] * (half - len(pictures))
        labels += [f"taught: {subject.words}", *[""] * (half - 1)]
    for strategy in strategies:
        images += [pictures[0] for pictures in strategy.pictures.values()]
        first, *others = list(strategy.pictures) if strategy is strategies[-1] else [""] * len(SCENES)
        labels += [f"{strategy.name}: both in {strategy.shares['both']:.0%} {first}", *others]
    return contact_sheet(images, columns=len(SCENES), labels=labels)
