"""Regions against bleeding: how often both subjects of a pair are recognized, with and without regions.

    python experiments/regions.py [--pairs 5] [--count 12]

For each pair of `study.PAIRS`, two subjects are composed in the three ways of the paper (joint, merged, sequential),
and drawn without regions and with one half of the picture each. The recognizer, which never saw the subjects, says
whether it sees both categories. Writes docs/results/regions.json, with 95% intervals over the pictures. An interrupted
run uses the concepts again that it has in runs/regions.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro

from experiments.study import PAIRS, Size, Study
from moongate import Concept
from moongate.data import photo_of
from moongate.demo.recognizer import Recognizer
from moongate.editing.regions import Region, sample_in_regions
from moongate.evaluation.metrics import mean_interval
from moongate.files import write_atomically
from moongate.pocket import weights_digest

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
WAYS = ("joint", "merge", "sequential")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is measured."""

    pairs: int = len(PAIRS)
    """So many of the five pairs."""
    count: int = 12
    """Pictures of each pair and way, with and without regions from the same seeds."""
    out: Path = Path("docs/results/regions.json")
    folder: Path = Path("runs/regions")
    """Folder of the concepts."""
    size: Size = field(default_factory=Size)


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    study = Study(folder=options.folder / f"{weights_digest()}-{options.size.dtype}", size=options.size)
    recognizer = Recognizer.load()
    seen: dict[str, dict[str, list[bool]]] = {way: {"without": [], "with": []} for way in WAYS}
    for pair in PAIRS[: options.pairs]:
        for way in WAYS:
            concept = _concept(study, pair, way)
            for name, pictures in _drawn(study, concept, options.count).items():
                both = recognizer.sees(pictures, [subject.category for subject in concept.subjects]).all(1)
                seen[way][name] += both.tolist()
            print(pair, way, {name: sum(values) for name, values in seen[way].items()}, flush=True)
    result = {
        "weights": weights_digest(),
        "pairs": [list(pair) for pair in PAIRS[: options.pairs]],
        "count": options.count,
        "both recognized": {way: {name: _share(values) for name, values in seen[way].items()} for way in WAYS},
    }
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())


def _concept(study: Study, pair: tuple[str, str], way: str) -> Concept:
    if way == "joint":
        return study.joint(pair, "custom-diffusion", 0)
    return study.merged(pair, 0) if way == "merge" else study.sequential(pair, 0)


def _drawn(study: Study, concept: Concept, count: int) -> dict[str, np.ndarray]:
    """Draw both subjects in one picture, without regions and with them."""
    first, second = (subject.words for subject in concept.subjects)
    prompt, seeds = photo_of(first, second), range(count)
    halves = [Region(words=first, box=LEFT), Region(words=second, box=RIGHT)]
    pictures = {}
    with concept.applied(study.backbone):
        for name, regions in (("without", []), ("with", halves)):
            drawn = sample_in_regions(
                study.backbone, [prompt] * count, seeds=seeds, regions=regions, options=study.size.sampling
            )
            pictures[name] = np.stack([picture.image for picture in drawn])
    return pictures


def _share(seen: list[bool]) -> dict[str, float]:
    interval = mean_interval(
        torch.tensor(seen).double(), torch.arange(len(seen)), generator=torch.Generator().manual_seed(0)
    )
    return {"share": round(interval.value, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


if __name__ == "__main__":
    main()
