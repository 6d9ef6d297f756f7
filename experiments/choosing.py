"""Measure and print by what the subjects and pairs of `study.py` are chosen.

    python -m experiments.choosing [--count 1] [--least 14]

For each subject, the recognizer counts the held-out pictures in which it sees the category. Subjects with at least
`--least` such pictures form pairs, unless their categories are alike. For each pair, pocket draws both categories, and
the recognizer counts the pictures in which it sees both. The prompts are every second one of `pocket-pair` that names
nothing else.
"""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import tyro

from experiments.scores import prompts_for, worded
from experiments.study import EXAMPLES, Size, Study
from moongate import pocket
from moongate.sampling import SampleOptions

__all__ = ["ALIKE", "Options", "chosen_by"]

ALIKE = ({"chair", "sofa"}, {"chair", "armchair"}, {"armchair", "sofa"}, {"plant", "flower"})
"""Categories that are too similar for one picture; such pairs are in Fig. 11."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is drawn."""

    count: int = 1
    """Pictures of each of the five prompts for a pair."""
    least: int = 14
    """Minimum number of its twenty held-out pictures in which a subject must be recognized."""
    folder: Path = Path("runs/choosing")
    """Folder of the pictures."""
    examples: tuple[str, ...] = EXAMPLES
    """The subjects to choose from."""
    size: Size = field(
        default_factory=lambda: Size(sampling=SampleOptions(steps=12, guidance=4.0, scheduler="dpm++", batch=5))
    )


def chosen_by(study: Study, options: Options) -> tuple[dict[str, int], dict[tuple[str, str], tuple[int, int]]]:
    """Return the number of recognized pictures of each subject, and for each pair of those with both and of all."""
    recognized = {}
    for example in options.examples:
        pictures, category = np.stack(study.held_out(example).pictures), pocket.example(example).category
        recognized[example] = int(study.recognizer.sees(pictures, [category]).sum())
    pairs = {}
    for pair in combinations([example for example, count in recognized.items() if count >= options.least], 2):
        categories = [pocket.example(example).category for example in pair]
        if set(categories) not in ALIKE:
            prompts = worded(prompts_for(2, others=False)[::2], categories)
            pictures = study.drawn(None, prompts, seed=0, count=options.count)
            pairs[pair] = int(study.recognizer.sees(pictures, categories).all(1).sum()), len(pictures)
    return recognized, pairs


def main() -> None:
    """Measure and print, the best first."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    study = Study(folder=options.folder / f"{pocket.weights_digest()}-{options.size.dtype}", size=options.size)
    recognized, pairs = chosen_by(study, options)
    for example, count in sorted(recognized.items(), key=lambda item: -item[1]):
        print(f"{count:3} of {len(study.held_out(example).pictures)}  {example} ({pocket.example(example).category})")
    for pair, (both, of) in sorted(pairs.items(), key=lambda item: -item[1][0]):
        print(f"{both:3} of {of}  {' + '.join(pair)}")


if __name__ == "__main__":
    main()
