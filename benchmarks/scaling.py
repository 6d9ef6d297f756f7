"""Measure how seconds and memory grow: with concepts, pictures, captions and ranks.

    python -m benchmarks.scaling [merge] [evaluate] [retrieve] [train] [--captions 10000 100000] [--json]

Each size is measured on the CPU in a separate process with one thread (on Linux). Memory is what it added at its peak.
The merge has the shapes of Stable Diffusion 1.5; the others run on pocket. The figures for a million captions are
extrapolated, in a straight line through the two largest sizes, unless a million is one of them. Ranks share the steps
of one training, whose concept is the same for every number of ranks.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Annotated, Any, Literal, get_args

import torch
import tyro

from benchmarks import merge as merging
from benchmarks import retrieval
from benchmarks.processes import in_child, memory_now, memory_peak
from moongate import Backbone, SampleOptions, pocket
from moongate.evaluation import EvaluationOptions, evaluate, load_network, read_prompts
from moongate.evaluation.networks.clip import Clip

PICTURES = (20, 40, 80)
RANKS = (1, 2, 4)
TRAIN_STEPS = 10
READ_CAPTIONS = 1000
"""Captions by which the text encoder is timed."""
EXTRAPOLATED_CAPTIONS = 1_000_000
MEMORY_GIB = 24
"""Memory of a usual computer, for which the largest index is estimated."""
SAMPLING = SampleOptions(steps=4, scheduler="dpm++", batch=10)

Point = dict[str, float]
Part = Literal["merge", "evaluate", "retrieve", "train"]


def merge(concepts: int) -> Point:
    """Solve the merge of Stable Diffusion 1.5's 32 matrices."""
    merging.ours(*merging.problem(1))  # the first call loads the linear algebra library
    given = merging.problem(concepts)
    return timed(lambda: {"residual": merging.ours(*given)})


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
    """Index captions whose words are added up, and search the index; reading one by the text encoder is timed apart."""
    clip = Clip.of_backbone(Backbone.load("pocket", device="cpu"))
    few = list(retrieval.synthetic(READ_CAPTIONS))
    began = time.process_time()
    clip.captions(few)
    read = {"read_cpu_ms": round((time.process_time() - began) / len(few) * 1000, 2)}
    composed = retrieval.Composed.of(clip)
    return read | timed(lambda: retrieval.scale(composed, captions))


def train(ranks: int) -> Point:
    """Train with processes that share each step; memory is all that the largest of them held."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "moongate", "train"]
    subject = [str(pocket.example("teddyBear").training), "--category", "teddy bear", "--token", "<bear>"]
    size = ["--steps", str(TRAIN_STEPS), "--batch", "4", "--accumulate", str(max(RANKS)), "--no-page"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bear.safetensors"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*launcher, *subject, *size, "--device", "cpu", "--dtype", "float32", "--out", str(out)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        last = json.loads((out.with_suffix(".run") / "log.jsonl").read_text().splitlines()[-1])
    children = getrusage(RUSAGE_CHILDREN)
    return {
        "seconds_per_step": round(8 / last["pictures_per_second"], 2),
        "cpu_seconds": round(children.ru_utime + children.ru_stime, 1),
        "rank_mb": children.ru_maxrss // 1024,
    }


def timed(work: Callable[[], Point]) -> Point:
    """Do some work and return its seconds, its CPU seconds, and its memory, with what it returned."""
    before, began, cpu = memory_now(), time.perf_counter(), time.process_time()
    figures = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    memory = {"added_mb": (memory_peak() - before) // 2**20}
    return {**figures, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), **memory}


def measured(work: Callable[[int], Point], sizes: Sequence[int]) -> list[Point]:
    """Measure each size in a separate process."""
    points = []
    for size in sizes:
        points.append({"size": size, **in_child(_on_one_thread, work, size)})
        print(json.dumps(points[-1]), file=sys.stderr, flush=True)
    return points


def _on_one_thread(work: Callable[[int], Point], size: int) -> Point:
    torch.set_num_threads(1)
    return work(size)


def extrapolated(points: Sequence[Point], size: float) -> Point:
    """Return the point of a larger size, on the straight lines through the last two."""
    before, last = points[-2:]
    share = (size - last["size"]) / (last["size"] - before["size"])
    keys = ("search_seconds", "disk_mb", "cpu_seconds", "added_mb")
    return {"size": size, **{key: round(last[key] + share * (last[key] - before[key]), 1) for key in keys}}


def largest(points: Sequence[Point]) -> int:
    """Return how many captions fit into the memory of a usual computer, by the same straight line."""
    before, last = points[-2:]
    mb_each = (last["added_mb"] - before["added_mb"]) / (last["size"] - before["size"])
    return int(last["size"] + (MEMORY_GIB * 1024 - last["added_mb"]) / mb_each) if mb_each > 0 else 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how to print it."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = get_args(Part)
    """What to measure."""
    captions: tuple[int, ...] = (10_000, 100_000)
    """Sizes of the index to measure, at least two."""
    json: bool = False
    """Print one line of JSON."""


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    sizes = sorted(set(options.captions))
    if len(sizes) < 2:
        raise SystemExit(f"--captions has {len(sizes)} size; give at least two, such as 10000 100000.")
    for size in sizes:
        retrieval.check_captions(size)
    works: dict[str, tuple[Callable[[int], Point], Sequence[int]]] = {
        "merge": (merge, merging.CONCEPTS),
        "evaluate": (draw_and_measure, PICTURES),
        "retrieve": (index, sizes),
        "train": (train, RANKS),
    }
    figures: dict[str, Any] = {part: measured(*works[part]) for part in options.parts}
    if "retrieve" in figures:
        points = figures["retrieve"]
        if points[-1]["size"] < EXTRAPOLATED_CAPTIONS:
            figures["retrieve_extrapolated"] = [extrapolated(points, EXTRAPOLATED_CAPTIONS)]
        figures["largest_index"] = largest(points)
    if options.json:
        print(json.dumps(figures))
        return
    for part, points in figures.items():
        print(part)
        for point in points if isinstance(points, list) else [{part: points}]:
            print("  " + "  ".join(f"{key} {value:g}" for key, value in point.items()))


if __name__ == "__main__":
    main()
