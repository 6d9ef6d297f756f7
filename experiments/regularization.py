"""The paper's ablation of regularization in small (Fig. 5, Table 3): none, generated, retrieved, or by the word.

    python experiments/regularization.py [--examples bulldog sneakers] [--out docs/results/regularization.json]

Each example of pocket is taught in every way from the same seed, with as many target pictures in all; then the bare
category word is drawn. Every row is kept in a file of its own, so that a stopped run goes on. KID compares these
pictures with real photos of the category that no training saw, in EfficientNet-Lite0 features. The takeover is the
share of them that a classifier gives to the concept rather than to its category: the nearer of the two classes' mean
features, whose accuracy on real pictures is printed beside. The likeness is the mean cosine of pictures drawn with the
token to held-out pictures of the concept, so that learning nothing cannot win.
"""

import argparse
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from moongate import METHODS, Backbone, Regularization, Subject, TrainOptions, pocket, sample, train
from moongate.data import photo_of, square
from moongate.data.pictures import find_pictures, read_picture
from moongate.errors import OptionError
from moongate.evaluation.metrics import kid
from moongate.evaluation.networks.clip import Clip
from moongate.evaluation.networks.lite0 import lite0_features
from moongate.files import write_atomically
from moongate.regularization.collection import nearest
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Record, Skipped, read_source
from moongate.sampling import SampleOptions

WAYS = ("base", "none", "generated", "retrieved", "word")
"""The backbone as it is, and where the regularization pictures of a training come from."""
FEWEST_PHOTOS = 10
Row = dict[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One half of the pool's pictures of a category to train against, and the other to judge by."""

    records: list[Record]
    """Every picture of the pool but those put aside."""
    by_word: Regularization
    held_out: list[np.ndarray]


def split_pool(category: str, at_most: int) -> Pool:
    """Put every other picture that names the category aside, and take `at_most` of the rest.

    Of those put aside the photos are judged by, because photos are drawn: beside drawings of its category every photo
    would pass for the concept. Raises OptionError where the pool has too few.
    """
    records = list(read_source(str(pocket.pool_folder()), Skipped()))
    named = [record for record in records if re.search(rf"\b{category}s?\b", record.caption)]
    aside = named[1::2]
    apart = {record.key for record in aside}
    photos = [record for record in aside if "photo of" in record.caption]
    if len(photos) < FEWEST_PHOTOS:
        raise OptionError(f"The pool has {len(photos)} photos of a {category} to judge by. Take another example.")
    return Pool(
        records=[record for record in records if record.key not in apart],
        by_word=_regularization(named[::2][:at_most], "word"),
        held_out=[_picture(record) for record in photos],
    )


def regularization(
    way: str, pool: Pool, backbone: Backbone, category: str, options: SampleOptions
) -> list[Regularization]:
    """Return as many regularization pictures as name the category, found in the given way."""
    if way == "none":
        return []
    if way == "word":
        return [pool.by_word]
    count, prompt = len(pool.by_word.pictures), photo_of(category)
    if way == "generated":
        drawn = sample(backbone, [prompt] * count, seeds=range(10_000, 10_000 + count), options=options)
        pictures = tuple(each.image for each in drawn)
        return [Regularization(pictures=pictures, captions=(prompt,) * count, source=way)]
    encoder = Clip.of_backbone(backbone)
    hits = list(nearest(pool.records, encoder.captions([prompt])[0], encoder))[:count]
    return [_regularization([hit.record for hit in hits], way)]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all ways of teaching one example are measured against: real pictures and their features."""

    example: pocket.Example
    pool: Pool
    features: "Features"
    category: Float[Tensor, "n features"]
    concept: Float[Tensor, "m features"]
    judge: "Judge"
    accuracy: float

    @classmethod
    def of(cls, example: pocket.Example, features: "Features", at_most: int) -> Self:
        """Read an example's pictures, and those of its category; half of each makes the judge, half tests it."""
        pool = split_pool(example.category, at_most)
        training, evaluation = (
            features([read_picture(path) for path in find_pictures(folder)])
            for folder in (example.training, example.evaluation)
        )
        category = features(pool.held_out)
        judge = Judge(concept=torch.cat([evaluation[::2], training]), category=category[::2])
        return cls(
            example=example,
            pool=pool,
            features=features,
            category=category,
            concept=evaluation,
            judge=judge,
            accuracy=judge.accuracy(evaluation[1::2], category[1::2]),
        )


def measure(way: str, ground: Ground, backbone: Backbone, arguments: argparse.Namespace) -> Row:
    """Teach the example in one way, draw, and return the row of the table."""
    category = ground.example.category
    drawing = SampleOptions(steps=arguments.sampling_steps, batch=arguments.batch)
    seeds = range(arguments.pictures)
    if way == "base":
        drawn = [_drawn(backbone, photo_of(category), seeds, drawing)] * 2
    else:
        sets = regularization(way, ground.pool, backbone, category, drawing)
        method = METHODS["custom-diffusion" if sets else "custom-diffusion-without-regularization"]
        steps = arguments.steps if sets else arguments.steps // 2  # of twice as many target pictures each
        subject = Subject.load(ground.example.training, category=category, token="<new>")
        options = TrainOptions(steps=steps, seed=arguments.seed)
        with train(backbone, [subject], sets, method, options=options).applied(backbone):
            prompts = (photo_of(category), photo_of(f"<new> {category}"))
            drawn = [_drawn(backbone, prompt, seeds, drawing) for prompt in prompts]
    bare, with_token = (ground.features(pictures) for pictures in drawn)
    return {
        "example": ground.example.name,
        "way": way,
        "kid_x1000": round(1000 * kid(bare, ground.category), 2),
        "takeover": ground.judge.share_of_concept(bare),
        "likeness": round(float((F.normalize(with_token) @ F.normalize(ground.concept).T).mean()), 4),
        "classifier_accuracy": ground.accuracy,
    }


def measure_all(arguments: argparse.Namespace) -> list[Row]:
    """Return a row for each example and way; those that an earlier run of the same settings left are read."""
    backbone = Backbone.load("pocket")
    features = Features(str(backbone.device), backbone.resolution_px)
    tasks = [(name, way) for name in arguments.examples for way in WAYS]
    found = {task: _known(arguments.runs, task, _settings(task[1], backbone, arguments)) for task in tasks}
    missing = [task for task in tasks if found[task] is None]
    ground: Ground | None = None
    began = time.monotonic()
    for done, (name, way) in enumerate(missing, 1):
        if ground is None or ground.example.name != name:
            ground = Ground.of(pocket.example(name), features, arguments.count)
        row = found[name, way] = measure(way, ground, backbone, arguments)
        content = {"settings": _settings(way, backbone, arguments), "row": row}
        write_atomically(arguments.runs / f"{name}-{way}.json", json.dumps(content, indent=1).encode())
        left = (time.monotonic() - began) / done * (len(missing) - done)
        print(f"{name}, {way}: {done} of {len(missing)}, about {left / 60:.0f} minutes left", flush=True)
    return [row for row in found.values() if row]


def means(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each way, with the means over examples."""
    figures = ("kid_x1000", "takeover", "likeness", "classifier_accuracy")
    return [
        {
            "example": "mean",
            "way": way,
            **{key: round(float(np.mean([row[key] for row in rows if row["way"] == way])), 4) for key in figures},
        }
        for way in WAYS
    ]


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


def _regularization(records: Sequence[Record], source: str) -> Regularization:
    pictures = tuple(_picture(record) for record in records)
    return Regularization(pictures=pictures, captions=tuple(record.caption for record in records), source=source)


def _picture(record: Record) -> np.ndarray:
    return read_picture(read_bytes(record.picture), name=record.picture)


def _settings(way: str, backbone: Backbone, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all that a row depends on, so that it is measured again when one of them changes."""
    own = {key: getattr(arguments, key) for key in ("steps", "count", "pictures", "sampling_steps", "seed")}
    own["backbone"] = backbone.fingerprint.short
    if way == "retrieved":
        own["encoder"] = hashlib.sha256(np.round(Clip.of_backbone(backbone).probe, 2).tobytes()).hexdigest()[:8]
    return own


def _known(runs: Path, task: tuple[str, str], settings: dict[str, Any]) -> Row | None:
    file = runs / f"{'-'.join(task)}.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found["row"] if found.get("settings") == settings else None


def main() -> None:
    """Measure, print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="+", default=["bulldog", "siameseCat", "sneakers", "winchesterArmchair"])
    parser.add_argument("--steps", type=int, default=250, help="training steps; half as many without regularization")
    parser.add_argument("--count", type=int, default=200, help="regularization pictures at most")
    parser.add_argument("--pictures", type=int, default=100, help="pictures drawn for each prompt")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/regularization"), help="folder of the single rows")
    parser.add_argument("--out", type=Path, default=Path("docs/results/regularization.json"))
    arguments = parser.parse_args()
    for name in arguments.examples:
        split_pool(pocket.example(name).category, arguments.count)  # what cannot be judged is an error before the work
    rows = measure_all(arguments)
    rows += means(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "runs")}
    write_atomically(arguments.out, json.dumps({"settings": settings, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
