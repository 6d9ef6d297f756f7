"""Count quickly how many objects a denoiser draws correctly: `python -m recipe.yardstick --denoiser <state.pt>`.

Two prompts for each category, and one for a pair of each category with another, drawn in 20 steps and judged by the
shipped recognizer. It takes some minutes on one core and is meant for comparing denoisers during training;
`recipe.report` measures what is published. `both` has an upper bound below 1, because the recognizer does not see both
objects in all real pictures of two.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from moongate.backbone import Backbone
from moongate.demo.recognizer import Recognizer
from moongate.files import write_atomically
from moongate.limits import check_count
from moongate.pages import contact_sheet, png_bytes
from moongate.pocket import weights_folder
from moongate.sampling import Sample, SampleOptions, sample
from recipe.command import command
from recipe.corpus import Corpus
from recipe.corpus.places import PLACES
from recipe.corpus.scenes import FILTERED_STYLES, article
from recipe.fitting import native_autocast
from recipe.pretrain.assemble import make_pipeline

__all__ = ["YardstickOptions", "make_prompts", "measure"]

PARTNER_DISTANCE = 5
"""A pair is a category and the one that many places after it in the recognizer's list."""
SHEET_SINGLES, SHEET_PAIRS, SHEET_COLUMNS = 64, 16, 16
Prompt = tuple[tuple[str, ...], str]
"""Categories and caption."""


@dataclass(frozen=True, kw_only=True)
class YardstickOptions:
    """What to measure, and how."""

    denoiser: Path = Path("runs/pocket/denoiser/state.pt")
    """Weights of the denoiser, or the `state.pt` of a run, whose average of the weights is taken."""
    autoencoder: Path = Path("runs/pocket/autoencoder/weights.safetensors")
    """Weights of the autoencoder."""
    text: Path = field(default_factory=weights_folder)
    """Folder with `tokenizer/` and `text_encoder/`."""
    corpus: Path = Path("corpus")
    """Folder of the corpus, which says in which styles there are pictures of a category."""
    sheet: Path = Path("runs/pocket/yardstick.png")
    """Contact sheet to write."""
    guidance: float = 3.0
    """Scale of classifier-free guidance."""
    steps: int = 20
    """Denoising steps of a picture."""
    per_category: int = 2
    """Prompts of each category."""
    categories: int | None = None
    """Number of categories to measure, the first of the recognizer's; all when None."""
    device: str = "cpu"
    """Device to compute on."""

    def __post_init__(self) -> None:
        check_count("per_category", self.per_category)
        check_count("categories", self.categories)


def measure(options: YardstickOptions) -> dict[str, float]:
    """Draw, count, write the sheet, and return the shares of pictures with the object and with both objects.

    Raises:
        CorpusError: the corpus is not finished.
        OptionError: weights are missing or are not what they should be.
    """
    corpus, recognizer = Corpus(options.corpus), Recognizer.load()
    pipeline, pictures_seen = make_pipeline(options.denoiser, autoencoder=options.autoencoder, text=options.text)
    backbone = Backbone(name="pocket", pipeline=pipeline.to(options.device))
    categories = recognizer.classes.categories[: options.categories]
    prompts = make_prompts(corpus, categories, per_category=options.per_category)
    captions = [caption for _, caption in prompts]
    sampling = SampleOptions(steps=options.steps, guidance=options.guidance, scheduler="dpm++", batch=16)
    pictures = sample(backbone, captions, seeds=range(len(captions)), options=sampling)
    with native_autocast(options.device):
        drawn = list(track(pictures, "Drawing", total=len(captions)))
    singles, pairs = ([index for index, (names, _) in enumerate(prompts) if len(names) == count] for count in (1, 2))
    named = zip(drawn, (names for names, _ in prompts), strict=True)
    right = [bool(recognizer.sees(picture.image[None], names).all()) for picture, names in named]
    shares = {"single": _share(right, singles), "both": _share(right, pairs)}
    shown = singles[:: max(1, len(singles) // SHEET_SINGLES)][:SHEET_SINGLES] + pairs[:SHEET_PAIRS]
    write_atomically(options.sheet, _sheet([drawn[index] for index in shown]))
    Console().print(
        f"{pictures_seen or '?'} pictures seen: single {shares['single']:.3f} of {len(singles)}, "
        f"both {shares['both']:.3f} of {len(pairs)}; {options.sheet}"
    )
    return shares


def make_prompts(corpus: Corpus, categories: Sequence[str], *, per_category: int) -> list[Prompt]:
    """Return prompts for single objects and then for pairs, in styles that the corpus has for these categories.

    The place is chosen at random from a fixed seed.
    """
    styles: dict[str, set[str]] = defaultdict(set)
    for scene in corpus.scenes[: corpus.training]:
        if len(scene["categories"]) == 1 and scene["style"] not in FILTERED_STYLES:
            styles[scene["categories"][0]].add(scene["style"])
    places = random.Random(0)
    prompts: list[Prompt] = []
    for category in categories:
        own = sorted(styles[category])
        for index in range(per_category if own else 0):
            caption = f"{own[index % len(own)]} of {article(category)} {places.choice(PLACES)}"
            prompts.append(((category,), caption))
    shift = PARTNER_DISTANCE % len(categories) or 1
    for one, other in zip(categories, [*categories[shift:], *categories[:shift]], strict=True):
        if one != other and (both := sorted(styles[one] & styles[other])):
            caption = f"{both[0]} of {article(one)} and {article(other)} {places.choice(PLACES)}"
            prompts.append(((one, other), caption))
    return prompts


def _share(right: Sequence[bool], indices: Sequence[int]) -> float:
    return sum(right[index] for index in indices) / max(1, len(indices))


def _sheet(samples: Sequence[Sample]) -> bytes:
    images, labels = [picture.image for picture in samples], [picture.prompt for picture in samples]
    return png_bytes(contact_sheet(images, columns=SHEET_COLUMNS, labels=labels))


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(YardstickOptions, measure, description=__doc__)
