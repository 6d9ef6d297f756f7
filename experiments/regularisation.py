"""The paper's ablation of regularisation in small (Fig. 5, Table 3): none, generated, retrieved, or by the word.

    python experiments/regularisation.py [--examples bulldog teddyBear] [--out docs/results/regularisation.json]

Each example of pocket is taught in every way from the same seed; then the bare category word is drawn. KID compares
these pictures with real ones of the category that no training saw, in EfficientNet-Lite0 features. The takeover is the
share of them that a classifier gives to the concept rather than to its category: the nearer of the two classes' mean
features, whose accuracy on real pictures is printed beside. The likeness is the mean cosine of pictures drawn with the
token to held-out pictures of the concept, so that learning nothing cannot win.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from moongate import METHODS, Backbone, Regularisation, Subject, TrainOptions, pocket, sample, train
from moongate.collection import nearest
from moongate.concept import write_atomically
from moongate.data import photo_of, square
from moongate.embedding import Encoder
from moongate.evaluation.features import lite0_features
from moongate.evaluation.metrics import kid
from moongate.pictures import find_pictures, read_picture
from moongate.sampling import SampleOptions
from moongate.sources import Record, Skipped, read_bytes, read_source

WAYS = ("none", "generated", "retrieved", "word")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One half of the pool's pictures of a category to train against, and the other to judge by."""

    records: list[Record]
    """Every picture of the pool but those to judge by."""
    by_word: Regularisation
    held_out: list[np.ndarray]


def split_pool(category: str) -> Pool:
    """Put every other picture that names the category aside."""
    records = list(read_source(str(pocket.pool_folder()), Skipped()))
    named = [record for record in records if re.search(rf"\b{category}s?\b", record.caption)]
    aside = named[1::2]
    apart = {record.key for record in aside}
    return Pool(
        records=[record for record in records if record.key not in apart],
        by_word=_regularisation(named[::2], "word"),
        held_out=[_picture(record) for record in aside],
    )


def regularisation(
    way: str, pool: Pool, backbone: Backbone, category: str, options: SampleOptions
) -> list[Regularisation]:
    """Return as many regularisation pictures as name the category, found in the given way."""
    if way == "none":
        return []
    if way == "word":
        return [pool.by_word]
    count, prompt = len(pool.by_word.pictures), photo_of(category)
    if way == "generated":
        drawn = sample(backbone, [prompt] * count, seeds=range(10_000, 10_000 + count), options=options)
        pictures = tuple(each.image for each in drawn)
        return [Regularisation(pictures=pictures, captions=(prompt,) * count, source=way)]
    encoder = Encoder.of_backbone(backbone)
    hits = list(nearest(pool.records, encoder.captions([prompt])[0], encoder))[:count]
    return [_regularisation([hit.record for hit in hits], way)]


def measure(example: pocket.Example, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """Teach one example in every way and return a row for each, after one for the backbone itself."""
    backbone = Backbone.load("pocket")
    pool = split_pool(example.category)
    of = Features(str(backbone.device), backbone.resolution_px)
    training, evaluation = (
        [read_picture(path) for path in find_pictures(f)] for f in (example.training, example.evaluation)
    )
    concept_half, category_half = of(evaluation[::2] + training), of(pool.held_out[::2])
    judge = Judge(concept=concept_half, category=category_half)
    accuracy = judge.accuracy(of(evaluation[1::2]), of(pool.held_out[1::2]))
    drawing = SampleOptions(steps=arguments.sampling_steps, batch=arguments.batch)
    seeds = range(arguments.pictures)
    real, wanted = of(pool.held_out), of(evaluation)
    rows: list[dict[str, float | str]] = []
    for way in ("base", *WAYS):
        words = example.category if way == "base" else f"<new> {example.category}"
        prompts = (photo_of(example.category), photo_of(words))
        if way == "base":
            drawn = [_drawn(backbone, prompt, seeds, drawing) for prompt in prompts]
        else:
            sets = regularisation(way, pool, backbone, example.category, drawing)
            subject = Subject.load(example.training, category=example.category, token="<new>")
            method = METHODS["custom-diffusion" if sets else "custom-diffusion-without-regularisation"]
            options = TrainOptions(steps=arguments.steps, seed=arguments.seed)
            with train(backbone, [subject], sets, method, options=options).applied(backbone):
                drawn = [_drawn(backbone, prompt, seeds, drawing) for prompt in prompts]
        bare, with_token = (of(pictures) for pictures in drawn)
        figures = {
            "kid_x1000": round(1000 * kid(bare, real), 2),
            "takeover": judge.share_of_concept(bare),
            "likeness": round(float((F.normalize(with_token) @ F.normalize(wanted).T).mean()), 4),
        }
        rows.append({"example": example.name, "way": way, **figures, "classifier_accuracy": accuracy})
    return rows


class Features:
    """Pictures to EfficientNet-Lite0 features."""

    def __init__(self, device: str, side_px: int) -> None:
        self._features = lite0_features(device)
        self._device, self._side_px = device, side_px

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "n features"]:
        images = torch.stack([square(picture, self._side_px) for picture in pictures]).to(self._device)
        return torch.cat([self._features(part) for part in images.split(50)]).cpu()


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Tells a concept from the rest of its category by the nearer mean feature."""

    concept: Float[Tensor, "n features"]
    category: Float[Tensor, "m features"]

    def share_of_concept(self, features: Float[Tensor, "k features"]) -> float:
        """Return the share of pictures that are nearer to the concept."""
        means = torch.stack([F.normalize(of).mean(0) for of in (self.concept, self.category)])
        nearer = (F.normalize(features) @ F.normalize(means).T).argmax(1)
        return round(float((nearer == 0).float().mean()), 3)

    def accuracy(self, concept: Tensor, category: Tensor) -> float:
        """Return the mean of both classes' shares that are told right."""
        return round((self.share_of_concept(concept) + 1 - self.share_of_concept(category)) / 2, 3)


def _drawn(backbone: Backbone, prompt: str, seeds: Sequence[int], options: SampleOptions) -> list[np.ndarray]:
    return [each.image for each in sample(backbone, [prompt] * len(seeds), seeds=seeds, options=options)]


def _regularisation(records: Sequence[Record], source: str) -> Regularisation:
    pictures = tuple(_picture(record) for record in records)
    return Regularisation(pictures=pictures, captions=tuple(record.caption for record in records), source=source)


def _picture(record: Record) -> np.ndarray:
    return read_picture(read_bytes(record.picture), name=record.picture)


def main() -> None:
    """Measure, print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="+", default=["bulldog", "teddyBear", "siameseCat", "backpack"])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--pictures", type=int, default=100, help="pictures drawn for each prompt")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/regularisation.json"))
    arguments = parser.parse_args()
    rows = [row for name in arguments.examples for row in measure(pocket.example(name), arguments)]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    write_atomically(arguments.out, json.dumps({"settings": settings, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
