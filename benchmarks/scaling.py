"""Measure how seconds and memory grow: merge by concepts, evaluate by pictures, the retrieval index by captions.

    python -m benchmarks.scaling [merge] [evaluate] [retrieve] [--captions 10000 100000] [--json]

Each size is measured in a process of its own, with one thread. Memory is its peak above what it held before. The merge
has the shapes of Stable Diffusion 1.5; the others run on pocket. An index of a million captions is extrapolated, in a
straight line through the two largest sizes, unless it is one of them.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json import dumps
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Annotated, Any

import torch
import tyro

from benchmarks import merge as merging
from benchmarks import retrieval
from moongate import Backbone, SampleOptions
from moongate.evaluation import EvaluationOptions, evaluate, load_network, read_prompts
from moongate.evaluation.networks.clip import Clip

CONCEPTS = (2, 10, 50, 200)
PICTURES = (20, 40, 80)
EXTRAPOLATED_CAPTIONS = 1_000_000
MEMORY_GIB = 24
"""Memory of a usual computer, for which the largest index is estimated."""
SAMPLING = SampleOptions(steps=4, scheduler="dpm++", batch=10)

Point = dict[str, float]


def merge(concepts: int) -> Point:
    """Solve the merge of Stable Diffusion 1.5's 32 matrices."""
    rows, gram, values = merging.problem(concepts)
    return timed(lambda: {"residual": merging.ours(rows, gram, values)})


def draw_and_measure(pictures: int) -> Point:
    """Draw pictures with pocket and measure them with its CLIP."""
    backbone = Backbone.load("pocket", device="cpu")
    prompts = [prompt.replace("{}", "dog") for prompt in read_prompts("pocket")]
    network = load_network("pocket-clip")
    options = EvaluationOptions(count=pictures // len(prompts), sampling=SAMPLING)

    def work() -> Point:
        with tempfile.TemporaryDirectory() as folder:
            evaluate(backbone, None, prompts, [network], folder=Path(folder), options=options)
        return {}

    return timed(work)


def index(captions: int) -> Point:
    """Index captions, and search the index."""
    clip = Clip.of_backbone(Backbone.load("pocket", device="cpu"))
    return timed(lambda: retrieval.scale(clip, captions))


def timed(work: Callable[[], Point]) -> Point:
    """Do some work and return its seconds and its memory, with what it returned."""
    before, began = getrusage(RUSAGE_SELF).ru_maxrss, time.perf_counter()
    figures = work()
    seconds, peak = time.perf_counter() - began, getrusage(RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 3), "peak_mb": round((peak - before) / 1024), **figures}


def measured(work: Callable[[int], Point], sizes: Sequence[int]) -> list[Point]:
    """Measure each size in a process of its own."""
    points = []
    for size in sizes:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=_send, args=(work, size, theirs))
        process.start()
        theirs.close()
        points.append({"size": size, **ours.recv()})
        process.join()
    return points


def _send(work: Callable[[int], Point], size: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    connection.send(work(size))


def extrapolated(points: Sequence[Point], size: float) -> Point:
    """Return the point of a larger size, on the straight lines through the last two."""
    before, last = points[-2:]
    share = (size - last["size"]) / (last["size"] - before["size"])
    keys = ("index_seconds", "search_seconds", "disk_mb", "peak_mb")
    return {"size": size, **{key: round(last[key] + share * (last[key] - before[key]), 1) for key in keys}}


def largest(points: Sequence[Point]) -> int:
    """Return how many captions fit into the memory of a usual computer, by the same straight line."""
    before, last = points[-2:]
    mb_each = (last["peak_mb"] - before["peak_mb"]) / (last["size"] - before["size"])
    return int(last["size"] + (MEMORY_GIB * 1024 - last["peak_mb"]) / mb_each) if mb_each > 0 else 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how to print it."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ("merge", "evaluate", "retrieve")
    """merge, evaluate, retrieve."""
    captions: tuple[int, ...] = (10_000, 100_000)
    """Sizes of the index to measure, at least two."""
    json: bool = False
    """Print one line of JSON."""


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    works: dict[str, tuple[Callable[[int], Point], Sequence[int]]] = {
        "merge": (merge, CONCEPTS),
        "evaluate": (draw_and_measure, PICTURES),
        "retrieve": (index, options.captions),
    }
    figures: dict[str, Any] = {part: measured(*works[part]) for part in options.parts}
    if "retrieve" in figures:
        points = figures["retrieve"]
        if points[-1]["size"] < EXTRAPOLATED_CAPTIONS:
            figures["retrieve_extrapolated"] = [extrapolated(points, EXTRAPOLATED_CAPTIONS)]
        figures["largest_index"] = largest(points)
    if options.json:
        print(dumps(figures))
        return
    for part, points in figures.items():
        print(part)
        for point in points if isinstance(points, list) else [{part: points}]:
            print("  " + "  ".join(f"{key} {value:g}" for key, value in point.items()))


if __name__ == "__main__":
    main()
