"""Regions against bleeding: how often both subjects of a pair are recognized, with and without regions.

    python -m experiments.regions [--pairs 0 1] [--count 20] [--ways base joint merge sequential]    # 12 minutes

For each of `PAIRS`, two categories are drawn by pocket itself, and two subjects that are composed in the three ways of
the paper (joint, merged, sequential): without regions, and with a half of the picture for each, in the order of the
prompt or exchanged, with and without self-attention across the border. The recognizer, which never saw the subjects,
says whether it sees both categories in the whole picture, and which half, cut out, shows which. What was drawn is kept
in `--folder`, so that several processes may measure different pairs. Writes docs/results/regions.json with all that is
there, with 95% intervals over the pictures, and a sheet of the first pictures next to it.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from experiments.records import webp_bytes
from experiments.scores import Several
from experiments.study import PAIRS as ALL_PAIRS
from experiments.study import Size, Study
from moongate import Concept, pocket
from moongate.data import Preset
from moongate.demo.recognizer import Recognizer
from moongate.editing.regions import Region, RegionOptions, sample_in_regions
from moongate.errors import OptionError
from moongate.evaluation.metrics import mean_interval
from moongate.files import digest, write_atomically
from moongate.limits import check_count
from moongate.pages import SheetGroup, grouped_sheet
from moongate.pocket import weights_digest
from moongate.sampling import SampleOptions
from recipe.command import command

PAIRS = ALL_PAIRS[:3]
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
WAYS = ("base", "joint", "merge", "sequential")
REGIONS: dict[str, tuple[tuple[tuple[float, float, float, float], ...], float]] = {
    "none": ((), 0.0),
    "texts alone": ((LEFT, RIGHT), 0.0),
    "texts alone, exchanged": ((RIGHT, LEFT), 0.0),
    "in order": ((LEFT, RIGHT), 1.0),
    "exchanged": ((RIGHT, LEFT), 1.0),
}
"""The regions of the first and of the second subject, and in which share of the steps they do not see each other."""
PLACES = ("on the beach", "in a forest", "in the snow", "in a room", "on a blue background")
"""The pictures are in these places in turn, because all of pocket's captions name one."""
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

    pairs: tuple[int, ...] = tuple(range(len(PAIRS)))
    """Which pairs are drawn now."""
    count: int = 20
    """Pictures of each pair, way and kind of regions, from the same seeds."""
    ways: tuple[str, ...] = WAYS
    """Which of them."""
    kinds: tuple[str, ...] = tuple(REGIONS)
    """Which kinds of regions."""
    out: Path = Path("docs/results/regions.json")
    """The sheet gets the same name with the ending .webp."""
    folder: Path = Path("runs/tables")
    """Folder of the concepts, which are those of the tables, and of what was drawn."""
    size: Size = field(default_factory=lambda: Size(sampling=SampleOptions(steps=14, scheduler="dpm++", batch=10)))
    """The guidance is pocket's own, because that is what users draw with."""

    def __post_init__(self) -> None:
        known: dict[str, Sequence[object]] = {"pairs": range(len(PAIRS)), "ways": WAYS, "kinds": tuple(REGIONS)}
        for name, allowed in known.items():
            if unknown := [value for value in getattr(self, name) if value not in allowed]:
                raise OptionError(f"{name} has {unknown[0]!r}. Known: {', '.join(map(str, allowed))}.")
        check_count("count", self.count)


def main(options: Options) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    study = Study.within(options.folder, options.size)
    for number in options.pairs:
        for way in options.ways:
            missing = [kind for kind in options.kinds if not _file(study, number, way, kind, options.count).exists()]
            concept = Several(PAIRS[number], way).concept(study) if missing else None
            for kind in missing:
                _measure(study, number, way, kind, concept, options.count)
                _write(study, options)
    _write(study, options)


def _measure(study: Study, number: int, way: str, kind: str, concept: Concept | None, count: int) -> None:
    """Draw pictures of a pair, and keep what is seen in them and the first of them."""
    categories = [pocket.example(example).category for example in PAIRS[number]]
    words = [subject.words for subject in concept.subjects] if concept else categories
    style = pocket.example(PAIRS[number][0]).style
    prompts = [Preset(caption=f"{style} of a {{}} {place}").describe(*words) for place in PLACES]
    with concept.applied(study.backbone) if concept else contextlib.nullcontext():
        pictures = _drawn(study, words, [prompts[index % len(prompts)] for index in range(count)], kind)
    seen = np.array(_seen(study.recognizer, pictures, categories))
    content = io.BytesIO()
    np.savez(content, seen=seen, pictures=pictures[:SHOWN], title=f"{' and '.join(words)}, {way}, regions: {kind}")
    write_atomically(_file(study, number, way, kind, count), content.getvalue())
    print(PAIRS[number], way, kind, dict(zip(MEASURES, seen.sum(0).tolist(), strict=True)), flush=True)


def _file(study: Study, number: int, way: str, kind: str, count: int) -> Path:
    """Return where the counts are kept; another pair, number of pictures or sampling has another file."""
    made_by = json.dumps([PAIRS[number], count, dataclasses.asdict(study.size.sampling)])
    name = f"{'-'.join(PAIRS[number])}-{way}-{kind.replace(' ', '-')}-{digest(made_by, length=8)}.npz"
    return study.folder / "regions" / name


def _write(study: Study, options: Options) -> None:
    """Write the shares over all pairs that were measured, and the sheet."""
    shares: dict[str, dict[str, Any]] = {}
    sheet, pairs = [], set()
    for way in WAYS:
        for kind in REGIONS:
            files = [(number, _file(study, number, way, kind, options.count)) for number in range(len(PAIRS))]
            there = [(number, np.load(file)) for number, file in files if file.exists()]
            if there:
                pairs |= {number for number, _ in there}
                seen = np.concatenate([kept["seen"] for _, kept in there])
                shares.setdefault(way, {})[kind] = _shares([tuple(row) for row in seen.tolist()])
                sheet += [
                    SheetGroup(title=str(kept["title"]), images=list(kept["pictures"]), labels=()) for _, kept in there
                ]
    result = {
        "weights": weights_digest(),
        "pairs": [list(PAIRS[number]) for number in sorted(pairs)],
        "sampling": dataclasses.asdict(options.size.sampling.for_model(study.backbone)),
        "recognized": shares,
    }
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(options.out.with_suffix(".webp"), webp_bytes(grouped_sheet(sheet, columns=SHOWN)))


def _drawn(study: Study, words: Sequence[str], prompts: Sequence[str], kind: str) -> Pictures:
    """Draw both subjects in one picture, each in its region if there are regions."""
    boxes, apart = REGIONS[kind]
    regions = [Region(words=words[number], box=box) for number, box in enumerate(boxes)]
    drawn = sample_in_regions(
        study.backbone,
        prompts,
        seeds=range(len(prompts)),
        regions=regions,
        options=study.size.sampling,
        region_options=RegionOptions(apart_share=apart),
    )
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
    command(Options, main, description=__doc__)
