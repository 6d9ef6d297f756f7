"""Train the recognizer: `python -m recipe.recognizer --corpus corpus --out src/moongate/pocket/recognizer`.

It learns from the corpus alone. It sees neither the held-out pictures, by which it is measured, nor any picture that
pocket drew, because it is the judge of those. Writes `model.safetensors`; the command resumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rich.console import Console
from torch import Tensor

from moongate.demo.recognizer import Classes, Recognizer, log_shares, recognized
from moongate.errors import OptionError
from moongate.pocket import recognizer_file
from recipe.command import command
from recipe.corpus import Corpus
from recipe.corpus import scenes as grammar
from recipe.corpus.catalog import CATALOG
from recipe.corpus.places import PLACES, PLAIN_COLORS
from recipe.fitting import Cosine, Stage, fit, native_autocast

__all__ = [
    "CLASSES",
    "PLAIN_PLACES",
    "Content",
    "RecognizerOptions",
    "held_out_without_size",
    "shares_recognized",
    "train_recognizer",
]

PLAIN_PLACES = tuple(f"on {grammar.article(color)} background" for color in PLAIN_COLORS)
CLASSES = Classes(tuple(CATALOG), (*PLACES, *PLAIN_PLACES), grammar.STYLES)
SHIFT_PX = 6
"""Largest shift of a training picture, in each direction."""
BRIGHTNESS = 0.1
"""Standard deviation of the factor and of the offset that change a picture's contrast and brightness."""
SOFT_SHARE, SOFT_GROUPS = 0.6, 4
"""Share of pictures that are made smaller and larger again, and groups of them that share a size: what an autoencoder
returns is softer than the corpus, and must not pass for a watercolor."""
SOFT_PX = (56, 120)
NOISE = 0.03
"""Largest standard deviation of the noise on a picture."""
PLACE_WEIGHT, STYLE_WEIGHT = 0.5, 2.0
BATCH = 100


@dataclass(frozen=True, kw_only=True)
class RecognizerOptions:
    """How long to train, on which corpus, and where to write."""

    corpus: Path = Path("corpus")
    """Folder of a finished corpus."""
    out: Path = Path("runs/pocket/recognizer")
    """Output folder. The package's is `src/moongate/pocket/recognizer`."""
    work: Path = Path("runs/pocket/recognizer")
    """Folder for the checkpoint and the log."""
    steps: int = 3000
    """Training steps."""
    batch: int = 64
    """Pictures of a step."""
    lr: float = 2e-3
    """Largest learning rate."""
    pair_share: float = 0.5
    """Share of pictures with two objects in a batch; they are 30 % of the corpus."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of all randomness."""

    def __post_init__(self) -> None:
        if not 0 <= self.pair_share <= 1:
            raise OptionError(f"pair_share is {self.pair_share}; it must be in 0..1.")
        for name, least in (("steps", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; give at least {least}.")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a picture shows, or should show."""

    categories: tuple[str, ...]
    """One or two; the first of two stands on the left."""
    place: str
    style: str

    @classmethod
    def of(cls, scene: dict[str, Any]) -> "Content":
        """Return the content of a scene of the corpus."""
        return cls(categories=tuple(scene["categories"]), place=scene["place"], style=scene["style"])

    @property
    def caption(self) -> str:
        """Its caption in the corpus's words, without a size, a color or a maker's name."""
        return f"{self.style} of {' and '.join(map(grammar.article, self.categories))} {self.place}"

    def indices(self, classes: Classes) -> tuple[set[int], ...]:
        """Return the indices of its categories, of its place and of its style among `classes`."""
        named = zip(classes, (self.categories, [self.place], [self.style]), strict=True)
        return tuple({known.index(name) for name in names} for known, names in named)


def train_recognizer(corpus: Corpus, options: RecognizerOptions) -> Recognizer:
    """Train a recognizer on the training pictures, and write it to `options.out`.

    The loss is the cross-entropy between a picture's categories and their shares of its cells. In a picture of two
    objects the left half is also compared with the left object, and the right half with the right one.

    Raises:
        OptionError: The folder for the checkpoint holds a run with other settings.
    """
    torch.manual_seed(options.seed)
    recognizer = Recognizer(CLASSES)
    labels = _labels([Content.of(scene) for scene in corpus.scenes[: corpus.training]])
    is_pair = labels[:, 0] != labels[:, 1]
    singles, pairs = (~is_pair).nonzero()[:, 0], is_pair.nonzero()[:, 0]

    def losses(generator: torch.Generator, step: int) -> dict[str, Tensor]:
        count = options.batch
        wants_pair = torch.rand(count, generator=generator) < options.pair_share
        chosen = torch.where(wants_pair, _pick(pairs, count, generator), _pick(singles, count, generator))
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = _augmented(corpus.images(chosen), mirrored, generator).to(options.device)
        with native_autocast(options.device):
            cells, surroundings = recognizer.cells_and_surroundings(
                images.contiguous(memory_format=torch.channels_last)
            )
        return _losses(cells, surroundings, labels[chosen].to(options.device), mirrored.to(options.device))

    recognizer.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage = Stage(batch=options.batch, lr=options.lr, average_decay=0.995, seed=options.seed, device=options.device)
    kernels = [weight for weight in recognizer.body[1:].parameters() if weight.ndim == 4]
    fit(recognizer, losses, Cosine(steps=options.steps), stage, folder=options.work, muon=kernels)
    recognizer.requires_grad_(False).save(options.out / recognizer_file().name)
    return recognizer


def _labels(contents: Sequence[Content]) -> Int[Tensor, "n 4"]:
    """Return for each content the indices of its left category, its right category, its place and its style.

    Both categories of a picture with one object are the same.
    """
    categories, places, styles = CLASSES
    rows = [
        (
            categories.index(content.categories[0]),
            categories.index(content.categories[-1]),
            places.index(content.place),
            styles.index(content.style),
        )
        for content in contents
    ]
    return torch.tensor(rows)


def _pick(indices: Int[Tensor, " n"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return indices[torch.randint(0, len(indices), (count,), generator=generator)]


def _augmented(
    images: Float[Tensor, "n 3 height width"], mirrored: Bool[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, "n 3 height width"]:
    """Shift each image, mirror those that are marked, change contrast and brightness, and make some of them softer."""
    count, _, height, width = images.shape
    padded = F.pad(images, (SHIFT_PX,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * SHIFT_PX + 1, (count, 2), generator=generator).tolist()
    shifted = torch.stack(
        [image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, corners, strict=True)]
    )
    images = torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)
    factor, offset = BRIGHTNESS * torch.randn(2, count, 1, 1, 1, generator=generator)
    images = _softened(images * (1 + factor) + offset, generator)
    strengths = NOISE * torch.rand(count, 1, 1, 1, generator=generator)
    return images + strengths * torch.randn(images.shape, generator=generator)


def _softened(
    images: Float[Tensor, "n 3 height width"], generator: torch.Generator
) -> Float[Tensor, "n 3 height width"]:
    """Make some of the images smaller and then as large as before."""
    chosen = torch.randperm(len(images), generator=generator)[: round(SOFT_SHARE * len(images))]
    softened = images.clone()
    for part in chosen.chunk(SOFT_GROUPS):
        side = int(torch.randint(*SOFT_PX, (1,), generator=generator))
        mode = ("bilinear", "bicubic")[int(torch.randint(2, (1,), generator=generator))]
        small = F.interpolate(images[part], size=(side, side), mode="bilinear", antialias=True)
        softened[part] = F.interpolate(small, size=images.shape[2:], mode=mode)
    return softened


def _losses(
    cells: Float[Tensor, "n categories rows columns"],
    surroundings: Float[Tensor, "n rest"],
    labels: Int[Tensor, "n 4"],
    mirrored: Bool[Tensor, " n"],
) -> dict[str, Tensor]:
    first, second, places, styles = labels.unbind(1)
    shares = log_shares(cells)
    objects = (F.nll_loss(shares, first) + F.nll_loss(shares, second)) / 2
    if bool((is_pair := first != second).any()):
        left = torch.where(mirrored, second, first)[is_pair]
        right = torch.where(mirrored, first, second)[is_pair]
        for half, category in zip(cells[is_pair].chunk(2, dim=3), (left, right), strict=True):
            objects = objects + F.nll_loss(log_shares(half), category) / 2
    place_scores, style_scores = torch.split(surroundings, CLASSES.counts[1:], dim=1)
    return {
        "objects": objects,
        "place": PLACE_WEIGHT * F.cross_entropy(place_scores, places),
        "style": STYLE_WEIGHT * F.cross_entropy(style_scores, styles),
    }


# --- how well it recognizes -------------------------------------------------------------------------------------------


def held_out_without_size(corpus: Corpus) -> list[int]:
    """Return the indices of the held-out pictures whose captions name no size, as the prompts of the report."""
    sizes = tuple(name for names in grammar.SIZE_PHRASES.values() for name in names if name)
    held_out = range(corpus.training, len(corpus.scenes))
    return [index for index in held_out if not corpus.captions[index].startswith(sizes)]


def shares_recognized(
    scores: Float[Tensor, "n classes"], contents: Sequence[Content], classes: Classes
) -> dict[str, float]:
    """Return the shares of pictures in which the object, both objects, the place and the style are recognized.

    Args:
        scores: What a recognizer with these classes returned.
        contents: What the pictures should show; objects are counted apart in pictures of one and of two.
        classes: The classes in the order of the scores.
    """
    truth = zip(*(content.indices(classes) for content in contents), strict=True)
    objects, places, styles = map(recognized, torch.split(scores, classes.counts, dim=1), truth)
    two = torch.tensor([len(content.categories) == 2 for content in contents])
    return {
        "single_object_recognized": _mean(objects[~two]),
        "both_objects_recognized": _mean(objects[two]),
        "place_recognized": _mean(places),
        "style_recognized": _mean(styles),
    }


def _mean(values: Bool[Tensor, " n"]) -> float:
    return round(values.double().mean().item(), 4)


def main(options: RecognizerOptions) -> None:
    """Train, and print how well real held-out pictures are recognized."""
    corpus = Corpus(options.corpus)
    recognizer = train_recognizer(corpus, options)
    indices = held_out_without_size(corpus)
    scores = torch.cat([recognizer.scores(corpus.pictures[part]) for part in _parts(indices)])
    contents = [Content.of(corpus.scenes[index]) for index in indices]
    Console().print(shares_recognized(scores, contents, recognizer.classes))


def _parts(indices: list[int]) -> list[list[int]]:
    return [indices[first : first + BATCH] for first in range(0, len(indices), BATCH)]


if __name__ == "__main__":
    command(RecognizerOptions, main, description=__doc__)
