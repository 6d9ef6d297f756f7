"""Measure retrieval: precision on pocket's pool, whose categories are known, and speed on many synthetic captions.

    python benchmarks/retrieval.py [--captions 100000] [--json]

For each of ten categories, which n pictures of the pool show: the share of the n nearest captions whose pictures show
it, and the same share for captions that contain the word and for captions above the threshold in use. Then the time and
the memory that a collection of many captions takes, and the share of the exactly nearest 200 that its vector index
finds (recall).
"""

import dataclasses
import itertools
import json
import math
import random
import re
import resource
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from torch.nn import functional as F

from moongate import Backbone, pocket
from moongate.evaluation.networks.clip import Clip
from moongate.regularization.collection import Collection
from moongate.regularization.sources import Skipped, read_source

CATEGORIES = ("dog", "cat", "horse", "chair", "lamp", "flower", "car", "hat", "teddy bear", "teapot")
LOOKED_FOR = 200
"""Captions to retrieve in one search."""
PARTS = (
    ("photo", "drawing", "pixel art", "watercolor painting", "3d render"),
    ("red", "green", "blue", "yellow", "brown", "black", "white", "orange", "purple", "grey"),
    (*CATEGORIES, "house", "apple", "fish", "cake", "bottle", "cup", "tree", "owl", "shoe", "table"),
    ("on the beach", "in the snow", "at night", "in a garden", "in the desert", "under water"),
)
"""Kinds of pictures, colors, subjects and places of synthetic captions."""
CAPTIONS = math.prod(len(PARTS[part]) for part in (0, 1, 2, 1, 2, 3)) // len(PARTS[2]) * (len(PARTS[2]) - 1)
"""Number of distinct synthetic captions: of a kind, two colors, two subjects that differ, and a place."""
ROWS = 10_000
"""Captions that are made at once."""
FURTHER_WORDS = ("of", "a", "and")
PLACES = 16
"""Maximum number of words of a synthetic caption."""


def precision(clip: Clip) -> dict[str, float]:
    """Return the precision of each category, and the threshold of the best F1 score."""
    rows = [json.loads(line) for line in (pocket.pool_folder() / "metadata.jsonl").read_text().splitlines()]
    vectors = clip.captions([row["caption"] for row in rows])
    figures: dict[str, float] = {}
    similarities, truths = [], []
    for category in CATEGORIES:
        similarity = (vectors @ clip.captions([f"photo of a {category}"])[0]).numpy()
        truth = np.array([category in row["categories"] for row in rows])
        named = np.array([bool(re.search(rf"\b{category}s?\b", row["caption"])) for row in rows])
        nearest = np.argsort(-similarity)[: truth.sum()]
        near = similarity >= clip.threshold
        name = category.replace(" ", "_")
        figures[f"{name}_in_pool"] = int(truth.sum())
        figures[f"{name}_precision"] = _share(truth[nearest])
        figures[f"{name}_precision_of_word"] = _share(truth[named])
        figures[f"{name}_above_threshold"] = int(near.sum())
        figures[f"{name}_precision_above_threshold"] = _share(truth[near])
        similarities.append(similarity)
        truths.append(truth)
    figures["mean_precision"] = round(
        float(np.mean([figures[f"{c.replace(' ', '_')}_precision"] for c in CATEGORIES])), 3
    )
    similarity, truth = np.concatenate(similarities), np.concatenate(truths)
    candidates = np.arange(0.2, 1, 0.01)
    f1 = [2 * truth[similarity >= t].sum() / ((similarity >= t).sum() + truth.sum()) for t in candidates]
    best = float(candidates[int(np.argmax(f1))])
    figures |= {"best_threshold": round(best, 2), "precision_at_best": _share(truth[similarity >= best])}
    return figures | {"recall_at_best": round(float(truth[similarity >= best].sum() / truth.sum()), 3)}


def synthetic(count: int) -> Iterator[str]:
    """Yield distinct captions of two subjects in a place, shuffled with a fixed seed; at most `CAPTIONS`."""
    for index in array("L", random.Random(0).sample(range(CAPTIONS), count)):
        yield _caption(index)


def _caption(index: int) -> str:
    """Return one of the `CAPTIONS` by its index."""
    kinds, colors, subjects, places = PARTS
    index, place = divmod(index, len(places))
    index, second = divmod(index, len(subjects) - 1)
    index, second_color = divmod(index, len(colors))
    index, first = divmod(index, len(subjects))
    kind, first_color = divmod(index, len(colors))
    others = [subject for subject in subjects if subject != subjects[first]]
    return (
        f"{kinds[kind]} of a {colors[first_color]} {subjects[first]} and a {colors[second_color]} {others[second]} "
        f"{places[place]}"
    )


def write_captions(file: Path, count: int) -> None:
    """Write synthetic captions with addresses to a Parquet file, some at a time, so that they take no memory."""
    captions = synthetic(count)
    with pq.ParquetWriter(file, pa.schema({"url": pa.string(), "caption": pa.string()})) as writer:
        for first in range(0, count, ROWS):
            part = list(itertools.islice(captions, ROWS))
            urls = [f"https://host/{first + n}.jpg" for n in range(len(part))]
            writer.write_table(pa.table({"url": urls, "caption": part}))


@dataclass(frozen=True, kw_only=True, eq=False)
class Composed(Clip):
    """Adds up the words of a caption in place of its text encoder, so that a million captions take minutes.

    A word is its own vector, turned by its place, so that captions with the same words in another order differ.
    """

    words: dict[str, int]
    """The row of each word in `table`; the first PLACES rows stand for a word of no meaning."""
    table: torch.Tensor
    """A row for each word at each place."""

    @classmethod
    def of(cls, clip: Clip) -> Self:
        """Return the words of all synthetic captions, with the vectors that `clip` gives them."""
        words = sorted({word for parts in PARTS for part in parts for word in part.split()} | set(FURTHER_WORDS))
        vectors = torch.cat([torch.zeros(1, len(clip.probe)), clip.captions(words)])
        turned = torch.stack([vectors.roll(7 * place, dims=1) for place in range(PLACES)], dim=1)
        fields = {field.name: getattr(clip, field.name) for field in dataclasses.fields(clip)}
        rows = {word: row for row, word in enumerate(words, 1)}
        return cls(**fields, words=rows, table=turned.flatten(0, 1))

    def captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Return captions as unit vectors."""
        rows = torch.zeros(len(captions), PLACES, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            known = [self.words.get(word, 0) for word in caption.split()[:PLACES]]
            row[: len(known)] = torch.tensor(known)
        summed = F.embedding_bag(rows * PLACES + torch.arange(PLACES), self.table, mode="sum")
        return F.normalize(summed, dim=1)


def scale(clip: Clip, count: int) -> dict[str, float]:
    """Index `count` captions with addresses from Parquet, and search them."""
    figures: dict[str, float] = {"captions": count, "peak_mb_before": _peak_mb()}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "captions.parquet"
        write_captions(source, count)
        began = time.perf_counter()
        skipped = Skipped()
        place = str(Path(folder) / "collection")
        collection = Collection.index(read_source(str(source), skipped), clip, place=place, skipped=skipped)
        figures["index_seconds"] = round(time.perf_counter() - began, 1)
        figures["peak_mb"] = _peak_mb()
        files = [path.stat().st_size for path in Path(place).rglob("*") if path.is_file()]
        figures["disk_mb"] = round(sum(files) / 1e6, 1)
        queries = clip.captions([f"photo of a red {category} in the snow" for category in CATEGORIES])
        seconds, hits_in_exact = [], 0
        for query in queries:
            began = time.perf_counter()
            hits = list(itertools.islice(collection.search(query), LOOKED_FOR))
            seconds.append(time.perf_counter() - began)
            exact = collection._table.search(query.numpy(), vector_column_name="vector").distance_type("cosine")
            true = exact.bypass_vector_index().limit(LOOKED_FOR).select(["key", "_distance"]).to_arrow()
            hits_in_exact += len({hit.record.key for hit in hits} & set(true["key"].to_pylist()))
        figures["search_seconds"] = round(float(np.median(seconds)), 3)
        figures["recall"] = round(hits_in_exact / (LOOKED_FOR * len(CATEGORIES)), 3)
    return figures


def _share(truth: np.ndarray) -> float:
    return round(float(truth.mean()), 3) if len(truth) else 0.0


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how to print it."""

    captions: int = 100_000
    """Synthetic captions to index; 0 for none."""
    json: bool = False
    """Print one line of JSON."""

    def __post_init__(self) -> None:
        check_captions(self.captions)


def check_captions(count: int) -> None:
    """End the program unless there are so many synthetic captions."""
    if not 0 <= count <= CAPTIONS:
        raise SystemExit(f"--captions is {count}; there are {CAPTIONS:,} synthetic captions. Give a number up to that.")


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    clip = Clip.of_backbone(Backbone.load("pocket", device="cpu"))
    figures: dict[str, float] = {"threshold": clip.threshold, **precision(clip)}
    if options.captions:
        figures |= scale(clip, options.captions)
    if options.json:
        print(json.dumps(figures))
        return
    above = f"above {clip.threshold}"
    print(f"{'category':12} {'in pool':>7} {'nearest':>8} {'by word':>8} {above:>11} {'true':>6}")
    for category in CATEGORIES:
        name = category.replace(" ", "_")
        keys = ("in_pool", "precision", "precision_of_word", "above_threshold", "precision_above_threshold")
        values = [figures.pop(f"{name}_{key}") for key in keys]
        print("{:12} {:7.0f} {:8.3f} {:8.3f} {:11.0f} {:6.3f}".format(category, *values))
    for key, value in figures.items():
        print(f"{key.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
