"""Regions against bleeding: how often both subjects of a pair are recognized, with and without regions.

    python experiments/regions.py [--pairs 5] [--count 12] [--ways base joint merge sequential]

For each pair of `study.PAIRS`, two categories are drawn by pocket itself, and two subjects that are composed in the
three ways of the paper (joint, merged, sequential): without regions, with a half of the picture for each in the order
of the prompt, and with the halves exchanged. The recognizer, which never saw the subjects, says whether it sees both
categories in the whole picture, and which half, cut out, shows which. Writes docs/results/regions.json, with 95%
intervals over the pictures, and a sheet of the first pictures next to it, after each pair and way. A stopped run uses
the concepts again that it has in runs/regions.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import UInt8

from experiments.study import PAIRS, Size, Study
from moongate import Concept, pocket
from moongate.data import photo_of
from moongate.demo.recognizer import Recognizer
from moongate.editing.regions import Region, sample_in_regions
from moongate.evaluation.metrics import mean_interval
from moongate.files import write_atomically
from moongate.pages import SheetGroup, grouped_sheet, png_bytes
from moongate.pocket import weights_digest
from moongate.sampling import SampleOptions

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
WAYS = ("base", "joint", "merge", "sequential")
REGIONS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "none": (),
    "in order": (LEFT, RIGHT),
    "exchanged": (RIGHT, LEFT),
}
"""The regions of the first and of the second subject."""
SHOWN = 6
"""Pictures of each pair, way and kind of regions on the sheet."""

MEASURES = ("both", "in order", "exchanged")
"""Both categories in the whole picture; the first in the left half and the second in the right; the other way round."""
Seen = tuple[bool, bool, bool]
"""Whether a picture shows each of `MEASURES`."""
Pictures = UInt8[np.ndarray, "n height width 3"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is measured."""

    pairs: int = len(PAIRS)
    """So many of the five pairs."""
    count: int = 12
    """Pictures of each pair, way and kind of regions, from the same seeds."""
    ways: tuple[str, ...] = WAYS
    """Which of them."""
    out: Path = Path("docs/results/regions.json")
    """The sheet gets the same name with the ending .png."""
    folder: Path = Path("runs/regions")
    """Folder of the concepts."""
    size: Size = field(default_factory=lambda: Size(sampling=SampleOptions(steps=20, scheduler="dpm++", batch=12)))
    """The guidance is pocket's own, because that is what users draw with."""


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    study = Study(folder=options.folder / f"{weights_digest()}-{options.size.dtype}", size=options.size)
    recognizer = Recognizer.load()
    seen: dict[str, dict[str, list[Seen]]] = {way: {name: [] for name in REGIONS} for way in options.ways}
    sheet = []
    for pair in PAIRS[: options.pairs]:
        categories = [pocket.example(example).category for example in pair]
        for way in options.ways:
            concept = _concept(study, pair, way)
            words = [subject.words for subject in concept.subjects] if concept else categories
            for name, boxes in REGIONS.items():
                with concept.applied(study.backbone) if concept else contextlib.nullcontext():
                    pictures = _drawn(study, words, boxes, options.count)
                seen[way][name] += _seen(recognizer, pictures, categories)
                title = f"{photo_of(*words)}, {way}, regions: {name}"
                sheet.append(SheetGroup(title=title, images=list(pictures[:SHOWN]), labels=()))
            print(pair, way, {name: np.sum(values, 0).tolist() for name, values in seen[way].items()}, flush=True)
            result = {
                "weights": weights_digest(),
                "pairs": [list(pair) for pair in PAIRS[: options.pairs]],
                "sampling": dataclasses.asdict(options.size.sampling.for_model(study.backbone)),
                "recognized": {
                    way: {name: _shares(s) for name, s in of.items()} for way, of in seen.items() if of["none"]
                },
            }
            write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
            write_atomically(options.out.with_suffix(".png"), png_bytes(grouped_sheet(sheet, columns=SHOWN)))


def _concept(study: Study, pair: tuple[str, str], way: str) -> Concept | None:
    """Return the subjects of a pair composed in one way, or nothing for pocket itself."""
    if way == "base":
        return None
    if way == "joint":
        return study.joint(pair, "custom-diffusion", 0)
    return study.merged(pair, 0) if way == "merge" else study.sequential(pair, 0)


def _drawn(
    study: Study, words: Sequence[str], boxes: Sequence[tuple[float, float, float, float]], count: int
) -> Pictures:
    """Draw both subjects in one picture, each in its box if there are boxes."""
    regions = [Region(words=words[number], box=box) for number, box in enumerate(boxes)]
    prompts = [photo_of(*words)] * count
    drawn = sample_in_regions(study.backbone, prompts, seeds=range(count), regions=regions, options=study.size.sampling)
    return np.stack([picture.image for picture in drawn])


def _seen(recognizer: Recognizer, pictures: Pictures, categories: Sequence[str]) -> list[Seen]:
    """Return what the recognizer sees in each picture and in its halves, cut out."""
    both = recognizer.sees(pictures, categories).all(1)
    left, right = (
        torch.stack([recognizer.sees(half, [category])[:, 0] for category in categories])
        for half in np.split(pictures, 2, axis=2)
    )
    return list(zip(both.tolist(), (left[0] & right[1]).tolist(), (left[1] & right[0]).tolist(), strict=True))


def _shares(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return the number of pictures, and the share of those in which each of `MEASURES` is seen."""
    shares: dict[str, Any] = {"pictures": len(seen)}
    for name, values in zip(MEASURES, torch.tensor(seen).double().T, strict=True):
        interval = mean_interval(values, torch.arange(len(values)), generator=torch.Generator().manual_seed(0))
        shares[name] = {bound: round(getattr(interval, bound), 3) for bound in ("value", "low", "high")}
    return shares


if __name__ == "__main__":
    main()
