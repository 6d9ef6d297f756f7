"""Retrieve from pocket's pool, whose true categories are known, and index and search many synthetic captions.

    python benchmarks/retrieval.py [--captions 100000] [--json]

For each of ten categories: the share of the nearest captions that truly show it (as many as do), what the same share
is for captions that name the word, and what the threshold in use gives. Then the seconds and the memory that a
collection of many captions takes, and how many of the exactly nearest 200 its vector index finds.
"""

import argparse
import itertools
import json
import random
import re
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moongate import Backbone, pocket
from moongate.evaluation.networks.embedding import Encoder
from moongate.regularization.collection import Collection
from moongate.regularization.sources import Skipped, read_source

CATEGORIES = ("dog", "cat", "horse", "chair", "lamp", "flower", "car", "hat", "teddy bear", "teapot")
LOOKED_FOR = 200


def precision(encoder: Encoder) -> dict[str, float]:
    """Return figures for each category, and the threshold that would balance precision and recall best."""
    rows = [json.loads(line) for line in (pocket.pool_folder() / "metadata.jsonl").read_text().splitlines()]
    vectors = encoder.captions([row["caption"] for row in rows])
    figures: dict[str, float] = {}
    similarities, truths = [], []
    for category in CATEGORIES:
        similarity = vectors @ encoder.captions([f"photo of a {category}"])[0]
        truth = np.array([category in row["categories"] for row in rows])
        named = np.array([bool(re.search(rf"\b{category}s?\b", row["caption"])) for row in rows])
        nearest = np.argsort(-similarity)[: truth.sum()]
        near = similarity >= encoder.threshold
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
    every, true = np.concatenate(similarities), np.concatenate(truths)
    candidates = np.arange(0.2, 1, 0.01)
    f1 = [2 * true[every >= t].sum() / ((every >= t).sum() + true.sum()) for t in candidates]
    best = float(candidates[int(np.argmax(f1))])
    figures |= {"best_threshold": round(best, 2), "precision_at_best": _share(true[every >= best])}
    return figures | {"recall_at_best": round(float(true[every >= best].sum() / true.sum()), 3)}


def synthetic(count: int) -> list[str]:
    """Return distinct captions of two things in a place, in an order of their own."""
    things = (*CATEGORIES, "house", "apple", "fish", "cake", "bottle", "cup", "tree", "owl", "shoe", "table")
    colors = ("red", "green", "blue", "yellow", "brown", "black", "white", "orange", "purple", "grey")
    places = ("on the beach", "in the snow", "at night", "in a garden", "in the desert", "under water")
    kinds = ("photo", "drawing", "pixel art", "watercolor painting", "3d render")
    every = itertools.product(kinds, colors, things, colors, things, places)
    captions = [f"{k} of a {a} {x} and a {b} {y} {p}" for k, a, x, b, y, p in every if x != y]
    return random.Random(0).sample(captions, count)


def scale(encoder: Encoder, count: int) -> dict[str, float]:
    """Index `count` captions with addresses from Parquet, and search them."""
    figures = {"captions": count, "peak_mb_before": _peak_mb()}
    with tempfile.TemporaryDirectory() as folder:
        captions = synthetic(count)
        source = Path(folder) / "captions.parquet"
        pq.write_table(pa.table({"url": [f"https://host/{n}.jpg" for n in range(count)], "caption": captions}), source)
        del captions
        began = time.perf_counter()
        skipped = Skipped()
        place = str(Path(folder) / "collection")
        collection = Collection.index(read_source(str(source), skipped), encoder, place=place, skipped=skipped)
        figures["index_seconds"] = round(time.perf_counter() - began, 1)
        figures["peak_mb"] = _peak_mb()
        files = [path.stat().st_size for path in Path(place).rglob("*") if path.is_file()]
        figures["disk_mb"] = round(sum(files) / 1e6, 1)
        queries = encoder.captions([f"photo of a red {category} in the snow" for category in CATEGORIES])
        seconds, found = [], 0
        for query in queries:
            began = time.perf_counter()
            hits = list(itertools.islice(collection.search(query), LOOKED_FOR))
            seconds.append(time.perf_counter() - began)
            exact = collection._table.search(query, vector_column_name="vector").distance_type("cosine")
            true = exact.bypass_vector_index().limit(LOOKED_FOR).select(["key", "_distance"]).to_arrow()
            found += len({hit.record.key for hit in hits} & set(true["key"].to_pylist()))
        figures["search_seconds"] = round(float(np.median(seconds)), 3)
        figures["recall"] = round(found / (LOOKED_FOR * len(CATEGORIES)), 3)
    return figures


def _share(truth: np.ndarray) -> float:
    return round(float(truth.mean()), 3) if len(truth) else 0.0


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100_000, help="synthetic captions to index; 0 for none")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    encoder = Encoder.of_backbone(Backbone.load("pocket", device="cpu"))
    figures: dict[str, float] = {"threshold": encoder.threshold, **precision(encoder)}
    if options.captions:
        figures |= scale(encoder, options.captions)
    if options.json:
        print(json.dumps(figures))
        return
    above = f"above {encoder.threshold}"
    print(f"{'category':12} {'in pool':>7} {'nearest':>8} {'by word':>8} {above:>11} {'true':>6}")
    for category in CATEGORIES:
        name = category.replace(" ", "_")
        keys = ("in_pool", "precision", "precision_of_word", "above_threshold", "precision_above_threshold")
        values = [figures.pop(f"{name}_{key}") for key in keys]
        print("{:12} {:7d} {:8.3f} {:8.3f} {:11d} {:6.3f}".format(category, *values))
    for key, value in figures.items():
        print(f"{key.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
