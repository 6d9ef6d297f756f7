"""The demo: teach pocket one held-out example and write a page that shows before, after, and nothing forgotten."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Preset, Regularization, Subject, square
from moongate.data.pictures import as_pixels
from moongate.demo.judge import Judge
from moongate.pages import Page, contact_sheet
from moongate.pocket import Example, example, pool_folder
from moongate.sampling import SampleOptions, sample
from moongate.training import Step, TrainOptions, train
from moongate.training.method import METHODS

__all__ = ["DRAWING", "EXAMPLE", "METHOD", "contexts", "drawn", "make_demo", "shown"]

EXAMPLE = "drawn-house"
METHOD = replace(METHODS["custom-diffusion-without-augmentation"], lr_per_picture=3e-5)
"""What teaches pocket most: its cross-attention sees 8 x 8 cells, in which nothing is left of a thing that was shrunk,
and it bears three times the paper's rate (docs/log.md)."""
DRAWING = SampleOptions(guidance=3.0)
"""At the paper's 6 pocket drives colors to their ends."""
PLACES = ("on the beach", "in a meadow", "in the desert", "in the snow", "in a room", "in the mountains", "in a city",
          "in a garden", "in a forest", "at night", "under water")  # fmt: skip
CONTEXTS = 5
UNRELATED = "photo of a {} in the mountains"
UNRELATED_CATEGORIES = ("tree", "hamburger")
PICTURES_PER_PROMPT = 4
CURVE_WINDOW = 20


def make_demo(
    name: str,
    *,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train on the example `name`, draw before and after, and return the page `out/index.html`.

    The concept and `overview.png`, the same pictures in one, are written beside it. The page is self-contained.
    Raises OptionError for an unknown example.
    """
    chosen = example(name)
    token = f"<{name.lower()}>"
    subject = Subject.load(chosen.training, category=chosen.category, token=token)
    regularization = Regularization.load(pool_folder(), category=chosen.category, only_category=True)
    backbone = Backbone.load("pocket")
    scenes = contexts(chosen, subject)
    plain = [scene.describe(chosen.category) for scene in scenes]
    unrelated = [UNRELATED.format(other) for other in UNRELATED_CATEGORIES if other != chosen.category]
    clock = {"began": time.monotonic()}

    on_stage(f"Drawing what pocket makes of {plain[0]!r} and the like")
    before = drawn(backbone, [*plain, *unrelated], count=PICTURES_PER_PROMPT)
    clock["drawn"] = time.monotonic()
    on_stage(f"Teaching it {token} from {len(subject.pictures)} pictures")
    curve: list[Step] = []

    def record(step: Step) -> None:
        curve.append(step)
        if on_step:
            on_step(step)

    options = TrainOptions(seed=seed, steps=steps)
    concept = train(backbone, [subject], [regularization], METHOD, options=options, on_step=record)
    clock["trained"] = time.monotonic()
    on_stage("Drawing it in new contexts")
    learned = [scene.describe(f"{token} {chosen.category}") for scene in scenes]
    with concept.applied(backbone):
        after = drawn(backbone, [*learned, *unrelated], count=PICTURES_PER_PROMPT)
    concept.save(out / f"{name}.safetensors", overwrite=True)
    clock["ended"] = time.monotonic()
    judge = Judge.of(chosen, regularization)
    judged = _judged(judge, [before[prompt] for prompt in plain], [after[prompt] for prompt in learned])
    on_stage(judged)
    taught = shown(subject, backbone)
    _compose(taught, concept, before, after, unrelated, judged, curve, clock).save(out / "index.html")
    _overview(taught, before, after).save(out / "overview.png")
    return out / "index.html"


def _judged(judge: Judge | None, before: Sequence[list[np.ndarray]], after: Sequence[list[np.ndarray]]) -> str:
    """Say in how many of the pictures before and after the very thing is seen."""
    if judge is None:
        return "The pool has too few pictures of the category in this style to tell the object from others."
    old, new = (judge.sees([picture for row in rows for picture in row]) for rows in (before, after))
    return (
        "Nearer to held-out pictures of the object than to others of its category, in the features of pocket CLIP: "
        f"{int(old.sum())} of {len(old)} pictures before, {int(new.sum())} of {len(new)} after. "
        f"Of real pictures {judge.right:.0%} are told right."
    )


def _compose(
    taught: Sequence[np.ndarray],
    concept: Concept,
    before: dict[str, list[np.ndarray]],
    after: dict[str, list[np.ndarray]],
    unrelated: Sequence[str],
    judged: str,
    curve: Sequence[Step],
    clock: dict[str, float],
) -> Page:
    words = concept.subjects[0].words
    page = Page(title=f"Moongate: {words}")
    page.text("h1", f"Teaching pocket {words}")
    page.text(
        "p", "Pocket, the small backbone that comes with Moongate, has never seen this object. It learned it from:"
    )
    page.row("", taught)
    page.text("h2", "Before: what pocket draws for the category")
    for prompt in [p for p in before if p not in unrelated]:
        page.row(prompt, before[prompt])
    page.text("h2", f"After: {words} in {CONTEXTS} new places")
    for prompt in [p for p in after if p not in unrelated]:
        page.row(prompt, after[prompt])
    page.text("p", judged)
    page.text("h2", "Nothing forgotten: unrelated prompts, the same seeds before and after")
    for prompt in unrelated:
        page.row(prompt, before[prompt])
        page.row("with the concept applied", after[prompt])
    page.text("h2", "Loss")
    page.parts.append(_curve(curve))
    trained, drawn = clock["trained"] - clock["drawn"], clock["ended"] - clock["began"]
    page.text("p", f"{len(curve)} steps in {trained:.0f} s; {drawn:.0f} s in all; concept hash {concept.hash}.")
    return page


def _overview(
    taught: Sequence[np.ndarray], before: dict[str, list[np.ndarray]], after: dict[str, list[np.ndarray]]
) -> Image.Image:
    """Return one picture: what was taught, then each prompt before (left) and after (right)."""
    columns = 2 * PICTURES_PER_PROMPT
    images = [*taught[:columns], *[np.full_like(taught[0], 255)] * (columns - len(taught))]
    labels = ["learned from these", *[""] * (columns - 1)]
    for old, new in zip(before, after, strict=True):
        images += [*before[old], *after[new]]
        labels += [old, *[""] * (PICTURES_PER_PROMPT - 1), new, *[""] * (PICTURES_PER_PROMPT - 1)]
    return contact_sheet(images, columns=columns, labels=labels)


def contexts(chosen: Example, subject: Subject) -> list[Preset]:
    """Return captions with the first of the places that none of the subject's pictures shows."""
    new = [place for place in PLACES if not any(caption.endswith(place) for caption in subject.captions)]
    return [Preset(caption=f"{chosen.style} of a {{}} {place}") for place in new[:CONTEXTS]]


def drawn(backbone: Backbone, prompts: Sequence[str], *, count: int) -> dict[str, list[np.ndarray]]:
    """Return `count` pictures of each prompt, with the seeds 0, 1, ..."""
    repeated = [prompt for prompt in prompts for _ in range(count)]
    seeds = [seed for _ in prompts for seed in range(count)]
    pictures: dict[str, list[np.ndarray]] = {prompt: [] for prompt in prompts}
    for picture in sample(backbone, repeated, seeds=seeds, options=DRAWING):
        pictures[picture.prompt].append(picture.image)
    return pictures


def shown(subject: Subject, backbone: Backbone) -> list[np.ndarray]:
    """Return the pictures of a subject as the backbone is shown them: square, uint8 [side, side, 3]."""
    return [as_pixels(square(picture, backbone.resolution_px)) for picture in subject.pictures]


def _curve(steps: Sequence[Step], width: int = 640, height: int = 180) -> str:
    """Return the running means of both losses as an SVG drawing."""
    lines = []
    top = max(max(step.target_loss, step.prior_loss) for step in steps[: 2 * CURVE_WINDOW])
    for name, color in (("target_loss", "#c0392b"), ("prior_loss", "#2471a3")):
        values = np.array([getattr(step, name) for step in steps])
        window = min(CURVE_WINDOW, len(values))
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        across = np.linspace(40, width - 8, len(mean))
        points = " ".join(
            f"{x:.1f},{height - 20 - y / top * (height - 30):.1f}" for x, y in zip(across, mean, strict=True)
        )
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{points}"/>')
        lines.append(f'<text x="{width - 150}" y="{20 if name == "target_loss" else 36}" fill="{color}" '
                     f'font-size="12">{name.replace("_", " ")}</text>')  # fmt: skip
    axis = f'<text x="4" y="14" font-size="11">{top:.2f}</text><text x="4" y="{height - 18}" font-size="11">0</text>'
    end = f'<text x="{width - 60}" y="{height - 4}" font-size="11">step {len(steps)}</text>'
    return f'<svg width="{width}" height="{height}">{axis}{"".join(lines)}{end}</svg>'
