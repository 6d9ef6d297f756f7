"""The demo of one subject: teach pocket a held-out example and write a page that shows before, after, and the rest.

The examples' captions say where the subject is, with `{}` for its words. All captions of pocket's corpus name a place;
from a caption without one, the new token would learn the places of the six pictures before the subject.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from moongate.backbone import POCKET, Backbone, usual_dtype
from moongate.concept import Concept
from moongate.data import Preset, Regularization, Subject, photo_of, square
from moongate.data.pictures import as_pixels
from moongate.demo.judge import example_judge
from moongate.evaluation.networks.clip import Clip
from moongate.files import write_atomically
from moongate.pages import Page, contact_sheet, png_bytes
from moongate.pocket import Example, example, pool_folder
from moongate.ranks import Ranks
from moongate.run_page import DRAWING
from moongate.run_page.losses import loss_chart
from moongate.sampling import sample
from moongate.training import Plan, Step, TrainOptions, train
from moongate.training.method import method_for
from moongate.training.processes import processes_for, together

__all__ = ["EXAMPLE", "SAMPLING", "as_trained", "contexts", "draw", "make_single_demo"]

EXAMPLE = "drawn-house"
"""The example that the demo teaches unless another one is chosen."""
SAMPLING = DRAWING
"""How pictures are drawn: as those on the page of a run."""
PLACES = ("on the beach", "in a meadow", "in the desert", "in the snow", "in a room", "in the mountains", "in a city",
          "in a garden", "in a forest", "at night", "under water")  # fmt: skip
"""Places in the words of pocket's corpus."""
CONTEXTS = 5
"""Number of new places that the demo draws."""
UNRELATED_CATEGORIES = ("tree", "hamburger")
"""Categories of which pocket has seen photos."""
PICTURES_PER_PROMPT = 4

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(kw_only=True, eq=False)
class _Demo:
    """What the page shows, in the order in which it is made."""

    subject: Subject
    regularization: Regularization
    taught: Sequence[Picture]
    plain: Sequence[str]
    """Prompts with the category alone."""
    learned: Sequence[str]
    """The same prompts with the token."""
    unrelated: Sequence[str]
    before: Mapping[str, list[Picture]] = field(default_factory=dict)
    after: Mapping[str, list[Picture]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    training_s: float = 0.0
    total_s: float = 0.0
    verdict: str = ""


def make_single_demo(
    name: str,
    *,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Path:
    """Teach pocket one example, draw before and after, and write one page.

    Args:
        name: One of `moongate.pocket.examples`.
        out: Folder for `index.html` (self-contained), `overview.png` (its pictures in one) and the concept file.
        steps: Optimizer steps; by default what the method needs.
        seed: Seed of the training.
        cache: Folder in which what the neutral captions give is kept, as in `TrainOptions`.
        on_step: Called after each optimizer step.
        on_stage: Called with a line for people when a stage begins.

    Returns:
        The page.

    Raises:
        OptionError: The example is unknown.
    """
    began = time.monotonic()
    chosen = example(name)
    token = f"<{name.lower()}>"
    subject = Subject.load(chosen.training, category=chosen.category, token=token)
    regularization = Regularization.load(pool_folder(), category=chosen.category, only_category=True)
    backbone = Backbone.load(POCKET, dtype=usual_dtype())
    demo = _planned(chosen, subject, regularization, backbone)
    options = TrainOptions(seed=seed, steps=steps, cache=cache)
    plan = Plan.of(backbone, [subject], [regularization], method_for(backbone), options=options)
    work = partial(_fill, demo, plan, on_step=on_step, on_stage=on_stage)
    concept = together(work, processes=processes_for(plan))
    concept.save(out / f"{name}.safetensors", overwrite=True)
    demo.total_s = time.monotonic() - began
    demo.verdict = _verdict(demo, chosen, regularization)
    on_stage(demo.verdict)
    _page(demo, concept).save(out / "index.html")
    write_atomically(out / "overview.png", png_bytes(_overview(demo)))
    return out / "index.html"


def _fill(demo: _Demo, plan: Plan, *, on_step: Callable[[Step], None], on_stage: Callable[[str], None]) -> Concept:
    """Draw, train and draw, in one or several processes, of which only the first reports progress."""
    backbone, is_first = plan.backbone, Ranks.current().is_first

    def say(text: str) -> None:
        if is_first:
            on_stage(text)

    def record(step: Step) -> None:
        demo.steps.append(step)
        on_step(step)

    say(f"Drawing what pocket makes of {demo.plain[0]!r} and similar prompts")
    demo.before = draw(backbone, [*demo.plain, *demo.unrelated], count=PICTURES_PER_PROMPT)
    say(f"Teaching it {demo.subject.token} from {len(demo.subject.pictures)} pictures")
    began = time.monotonic()
    concept = train(backbone, [demo.subject], [demo.regularization], plan.method, options=plan.options, on_step=record)
    demo.training_s = time.monotonic() - began
    say("Drawing it in new places")
    with concept.applied(backbone):
        demo.after = draw(backbone, [*demo.learned, *demo.unrelated], count=PICTURES_PER_PROMPT)
    return concept


def _planned(chosen: Example, subject: Subject, regularization: Regularization, backbone: Backbone) -> _Demo:
    scenes = contexts(chosen, subject)
    return _Demo(
        subject=subject,
        regularization=regularization,
        taught=as_trained(subject, backbone),
        plain=[scene.describe(subject.category) for scene in scenes],
        learned=[scene.describe(subject.words) for scene in scenes],
        unrelated=[
            f"{photo_of(other)} in the mountains" for other in UNRELATED_CATEGORIES if other != subject.category
        ],
    )


def contexts(chosen: Example, subject: Subject) -> list[Preset]:
    """Return captions in the style of an example, with the first places that none of its pictures shows."""
    new = [place for place in PLACES if not any(caption.endswith(place) for caption in subject.captions)]
    return [Preset(caption=f"{chosen.style} of a {{}} {place}") for place in new[:CONTEXTS]]


def draw(backbone: Backbone, prompts: Sequence[str], *, count: int) -> dict[str, list[Picture]]:
    """Return `count` pictures of each prompt, with the seeds 0, 1, and so on. Processes that have joined share them."""
    ranks = Ranks.current()
    wanted = [(prompt, seed) for prompt in prompts for seed in range(count)]
    own = wanted[ranks.index :: ranks.count] or wanted[-1:]
    own += own[-1:] * (math.ceil(len(wanted) / ranks.count) - len(own))  # all draw the same number
    drawn = sample(backbone, [prompt for prompt, _ in own], seeds=[seed for _, seed in own], options=SAMPLING)
    shares = ranks.gathered(torch.from_numpy(np.stack([picture.image for picture in drawn])))
    pictures: dict[str, list[Picture]] = {prompt: [] for prompt in prompts}
    for index, (prompt, _) in enumerate(wanted):
        pictures[prompt].append(shares[index % ranks.count][index // ranks.count].numpy())
    return pictures


def as_trained(subject: Subject, backbone: Backbone) -> list[Picture]:
    """Return the pictures of a subject as training sees them: square, in the size of the backbone."""
    return [as_pixels(square(picture, backbone.resolution_px)) for picture in subject.pictures]


def _verdict(demo: _Demo, chosen: Example, pool: Regularization) -> str:
    """Say how many pictures show the subject to the judge, before and after."""
    clip = Clip.load(POCKET)
    judge = example_judge(chosen, pool, clip)
    if judge is None:
        return "The pool has too few pictures of the category in this style to tell the subject from others."

    def seen(pictures: Mapping[str, list[Picture]], prompts: Iterable[str]) -> str:
        flags = judge.is_subject(clip.pictures([picture for prompt in prompts for picture in pictures[prompt]]))
        return f"{int(flags.sum())} of {len(flags)}"

    return (
        "Judged to show the subject rather than another of its category, by the features of pocket's CLIP: "
        f"{seen(demo.before, demo.plain)} pictures before, {seen(demo.after, demo.learned)} after. Of real pictures "
        f"{judge.accuracy:.0%} are judged correctly."
    )


def _page(demo: _Demo, concept: Concept) -> Page:
    words = concept.subjects[0].words
    page = Page(title=f"Moongate: {words}")
    page.text("h1", f"Teaching pocket {words}")
    page.text(
        "p",
        "Pocket, the small model that comes with Moongate, has never seen this subject. It was taught from these "
        "pictures:",
    )
    page.row(f"photos of {words}", demo.taught)
    page.text("h2", "Before: what pocket draws for the category")
    for prompt in demo.plain:
        page.row(prompt, demo.before[prompt])
    page.text("h2", f"After: {words} in {len(demo.learned)} new places")
    for prompt in demo.learned:
        page.row(prompt, demo.after[prompt])
    page.text("p", demo.verdict)
    page.text("h2", "Nothing forgotten: unrelated prompts, with the same seeds before and after")
    for prompt in demo.unrelated:
        page.row(prompt, demo.before[prompt])
        page.row("with the concept applied", demo.after[prompt])
    page.text("h2", "Loss")
    page.chart(loss_chart([asdict(step) for step in demo.steps]))
    page.text(
        "p",
        f"{len(demo.steps)} steps in {demo.training_s:.0f} s; {demo.total_s:.0f} s in total; concept hash "
        f"{concept.hash}.",
    )
    return page


def _overview(demo: _Demo) -> Image.Image:
    """Return one picture: the pictures to learn from, then each prompt before (left) and after (right)."""
    columns = 2 * PICTURES_PER_PROMPT
    images = [*demo.taught[:columns], *[np.full_like(demo.taught[0], 255)] * (columns - len(demo.taught))]
    labels = ["taught from these", *[""] * (columns - 1)]
    blank = [""] * (PICTURES_PER_PROMPT - 1)
    for old, new in zip([*demo.plain, *demo.unrelated], [*demo.learned, *demo.unrelated], strict=True):
        images += [*demo.before[old], *demo.after[new]]
        labels += [old, *blank, new, *blank]
    return contact_sheet(images, columns=columns, labels=labels)
