"""The paper's ablation of regularization in small (Fig. 5, Table 3): none, generated, retrieved, or by the word.

    python -m experiments.regularization [--examples bulldog sneakers] [--out docs/results/regularization.json]

Each example of pocket is taught in every way, with the same seed and the same number of target pictures in all. Then
pictures are drawn for the category word alone. Each row is kept in a file of its own, so that an interrupted run
continues. The columns, all in EfficientNet-Lite0 features:

- `kid_x1000`: KID between these pictures and real photos of the category that no training saw.
- `drawn_as_subject`: share of these pictures that a linear discriminant takes for the subject rather than for its
  category (0 is best).
- `judge_accuracy`: accuracy of that decision on real pictures.
- `image_alignment`: mean cosine between pictures drawn with the token and held-out pictures of the subject, so that a
  training that learns nothing does not look best.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from moongate import METHODS, Backbone, Regularization, Subject, TrainOptions, pocket, sample, train
from moongate.data import photo_of, square
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.demo.judge import Judge
from moongate.errors import OptionError
from moongate.evaluation.metrics import kid
from moongate.evaluation.networks.clip import Clip
from moongate.evaluation.networks.lite0 import lite0_features
from moongate.files import digest, write_atomically
from moongate.limits import check_count
from moongate.regularization.collection import nearest
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Record, Skipped, read_source
from moongate.sampling import SampleOptions
from recipe.command import command

WAYS = ("base", "none", "generated", "retrieved", "word")
"""The base model, and the sources of the regularization pictures of a training."""
FEWEST_PHOTOS = 10
SEEN_AT_ONCE = 50
FIRST_SEED = 10_000
"""Seed of the first generated regularization picture; no measure uses these seeds."""
Row = dict[str, float | str]
Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and where the rows go."""

    examples: tuple[str, ...] = ("bulldog", "siameseCat", "sneakers", "winchesterArmchair")
    """Which of pocket's examples to teach."""
    steps: int = 250
    """Training steps; half of them without regularization, each with twice the target pictures."""
    count: int = 200
    """Largest number of regularization pictures."""
    pictures: int = 100
    """Pictures drawn for each prompt."""
    sampling_steps: int = 50
    """Denoising steps for each picture."""
    batch: int = 16
    """Pictures drawn at once."""
    seed: int = 0
    """Seed of the training."""
    runs: Path = Path("runs/regularization")
    """Folder of the single rows."""
    out: Path = Path("docs/results/regularization.json")
    """File of all rows."""

    def __post_init__(self) -> None:
        for name in ("steps", "count", "sampling_steps", "batch"):
            check_count(name, getattr(self, name))
        if self.pictures < 2:
            raise OptionError(f"pictures is {self.pictures}; KID needs at least 2, and many to be meaningful.")
        if not self.examples:
            raise OptionError("There is no example to teach. Name one of pocket's, such as bulldog.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The pool's pictures of a category: one half to train with, the other to measure with."""

    records: list[Record]
    """All pictures of the pool but those of the second half."""
    by_word: Regularization
    """Pictures of the first half."""
    held_out: list[UInt8[np.ndarray, "_ _ 3"]]
    """Photos of the second half."""


def main(options: Options) -> None:
    """Measure, print the table, and write the rows."""
    for name in options.examples:
        split_pool(pocket.example(name).category, options.count)  # an example without enough photos fails here, early
    rows = measure_all(options)
    rows += means(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    settings = {key: value for key, value in asdict(options).items() if key not in ("out", "runs")}
    write_atomically(options.out, json.dumps({"settings": settings, "rows": rows}, indent=1).encode())


def measure_all(options: Options) -> list[Row]:
    """Return a row for each example and way; rows that an earlier run left with the same settings are read."""
    backbone = Backbone.load("pocket")
    features = Features(str(backbone.device), backbone.resolution_px)
    tasks = [(name, way) for name in options.examples for way in WAYS]
    rows = {task: _known(options.runs, task, _settings(task[1], backbone, options)) for task in tasks}
    missing = [task for task, row in rows.items() if row is None]
    real: RealPictures | None = None
    began = time.monotonic()
    for done, (name, way) in enumerate(missing, 1):
        if real is None or real.example.name != name:
            real = RealPictures.of(pocket.example(name), features, options.count)
        row = rows[name, way] = measure(way, real, backbone, options)
        content = {"settings": _settings(way, backbone, options), "row": row}
        write_atomically(options.runs / f"{name}-{way}.json", json.dumps(content, indent=1).encode())
        left = (time.monotonic() - began) / done * (len(missing) - done)
        print(f"{name}, {way}: {done} of {len(missing)}, about {left / 60:.0f} minutes left", flush=True)
    return [row for row in rows.values() if row]


def measure(way: str, real: "RealPictures", backbone: Backbone, options: Options) -> Row:
    """Teach the example in one way, draw, and return the row of the table."""
    category = real.example.category
    drawing = SampleOptions(steps=options.sampling_steps, batch=options.batch)
    seeds = range(options.pictures)
    if way == "base":
        bare = with_token = real.features(_drawn(backbone, photo_of(category), seeds, drawing))
    else:
        prior = regularization(way, real.pool, backbone, category, drawing)
        method = METHODS["custom-diffusion" if prior else "custom-diffusion-without-regularization"]
        steps = options.steps if prior else options.steps // 2
        subject = Subject.load(real.example.training, category=category, token="<new>")
        training = TrainOptions(steps=steps, seed=options.seed)
        with train(backbone, [subject], prior, method, options=training).applied(backbone):
            bare = real.features(_drawn(backbone, photo_of(category), seeds, drawing))
            with_token = real.features(_drawn(backbone, photo_of(f"<new> {category}"), seeds, drawing))
    return {
        "example": real.example.name,
        "way": way,
        "kid_x1000": round(1000 * kid(bare, real.category), 2),
        "drawn_as_subject": round(float(real.judge.is_subject(bare).float().mean()), 3),
        "image_alignment": round(float((F.normalize(with_token) @ F.normalize(real.subject).T).mean()), 4),
        "judge_accuracy": round(real.judge.accuracy, 3),
    }


def means(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each way, with the means over examples."""
    columns = ("kid_x1000", "drawn_as_subject", "image_alignment", "judge_accuracy")
    return [
        {
            "example": "mean",
            "way": way,
            **{key: round(float(np.mean([row[key] for row in rows if row["way"] == way])), 4) for key in columns},
        }
        for way in WAYS
    ]


def split_pool(category: str, at_most: int) -> Pool:
    """Keep every second picture whose caption names the category from training, and take `at_most` of the others.

    Only the photos among those kept from training are measured with, because photos are drawn: compared with drawings
    of its category, every photo would look like the subject. Raises OptionError if the pool has too few.
    """
    records = list(read_source(str(pocket.pool_folder()), Skipped()))
    named = [record for record in records if re.search(rf"\b{category}s?\b", record.caption)]
    second_half = named[1::2]
    kept = {record.key for record in second_half}
    photos = [record for record in second_half if "photo of" in record.caption]
    if len(photos) < FEWEST_PHOTOS:
        raise OptionError(
            f"The pool has {len(photos)} photos of a {category} to measure with; {FEWEST_PHOTOS} are needed. Choose "
            "another example."
        )
    return Pool(
        records=[record for record in records if record.key not in kept],
        by_word=_regularization(named[::2][:at_most], "word"),
        held_out=[_picture(record) for record in photos],
    )


def regularization(
    way: str, pool: Pool, backbone: Backbone, category: str, options: SampleOptions
) -> list[Regularization]:
    """Return regularization pictures from the source `way`, as many as there are pictures by the word."""
    if way == "none":
        return []
    if way == "word":
        return [pool.by_word]
    count, prompt = len(pool.by_word.pictures), photo_of(category)
    if way == "generated":
        pictures = _drawn(backbone, prompt, range(FIRST_SEED, FIRST_SEED + count), options)
        return [Regularization(pictures=tuple(pictures), captions=(prompt,) * count, source=way)]
    clip = Clip.of_backbone(backbone)
    hits = list(nearest(pool.records, clip.captions([prompt])[0], clip))[:count]
    return [_regularization([hit.record for hit in hits], way)]


class Features:
    """Pictures to EfficientNet-Lite0 features."""

    def __init__(self, device: str, side_px: int) -> None:
        self._features = lite0_features(device)
        self._device, self._side_px = device, side_px

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> Float[Tensor, "n features"]:
        images = torch.stack([square(picture, self._side_px) for picture in pictures]).to(self._device)
        return torch.cat([self._features(part) for part in images.split(SEEN_AT_ONCE)]).cpu()


@dataclass(frozen=True, kw_only=True, eq=False)
class RealPictures:
    """What all ways of teaching one example are measured against: real pictures and their features."""

    example: pocket.Example
    pool: Pool
    features: Features
    category: Float[Tensor, "n features"]
    """Of photos of the category that no training sees."""
    subject: Float[Tensor, "m features"]
    """Of the subject's held-out pictures."""
    judge: Judge

    @classmethod
    def of(cls, example: pocket.Example, features: Features, at_most: int) -> Self:
        """Read an example's pictures, and those of its category; half of each fits the judge, half tests it."""
        pool = split_pool(example.category, at_most)
        training, evaluation = (
            features([read_picture(path) for path in find_pictures(folder)])
            for folder in (example.training, example.evaluation)
        )
        category = features(pool.held_out)
        judge = Judge.fit(
            torch.cat([evaluation[::2], training]), category[::2], held_out=(evaluation[1::2], category[1::2])
        )
        return cls(example=example, pool=pool, features=features, category=category, subject=evaluation, judge=judge)


def _drawn(
    backbone: Backbone, prompt: str, seeds: Sequence[int], options: SampleOptions
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    return [drawn.image for drawn in sample(backbone, [prompt] * len(seeds), seeds=seeds, options=options)]


def _regularization(records: Sequence[Record], source: str) -> Regularization:
    pictures = tuple(_picture(record) for record in records)
    return Regularization(pictures=pictures, captions=tuple(record.caption for record in records), source=source)


def _picture(record: Record) -> UInt8[np.ndarray, "_ _ 3"]:
    return read_picture(read_bytes(record.picture), name=record.picture)


def _settings(way: str, backbone: Backbone, options: Options) -> dict[str, Any]:
    """Return all that a row depends on, so that it is measured again when one of them changes."""
    settings = {key: getattr(options, key) for key in ("steps", "count", "pictures", "sampling_steps", "seed")}
    settings |= {"weights": pocket.weights_digest(), "guidance": backbone.settings.guidance}
    if way == "retrieved":
        settings["encoder"] = digest(np.round(np.array(Clip.of_backbone(backbone).probe), 2).tobytes(), length=8)
    return settings


def _known(runs: Path, task: tuple[str, str], settings: dict[str, Any]) -> Row | None:
    file = runs / f"{'-'.join(task)}.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    return content["row"] if content.get("settings") == settings else None


if __name__ == "__main__":
    command(Options, main, description=__doc__)
