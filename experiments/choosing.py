"""Measure and print by what the subjects and pairs of `study.py` are chosen.

    python -m experiments.choosing [--count 1] [--least 14]

For each subject, the recognizer counts the held-out pictures in which it sees the category. Subjects with at least
`--least` such pictures are taught, and the recognizer counts the pictures of them in which it sees the category. They
form pairs, unless their categories are alike. For each pair, pocket draws both categories, and the recognizer counts
the pictures in which it sees both. The prompts are every second one of `pocket-pair` that names nothing else.
"""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from experiments.scores import OURS, prompts_for, worded, words_of
from experiments.study import EXAMPLES, Size, Study
from moongate import pocket
from moongate.evaluation import read_prompts
from moongate.evaluation.prompts import filled
from moongate.limits import check_count
from recipe.command import command

__all__ = ["ALIKE", "Counts", "Options", "chosen_by"]

ALIKE = ({"chair", "sofa"}, {"chair", "armchair"}, {"armchair", "sofa"}, {"plant", "flower"})
"""Categories that are too similar for one picture; such pairs are in Fig. 11."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is drawn."""

    count: int = 1
    """Pictures of each of the five prompts for a pair."""
    least: int = 14
    """Minimum number of its twenty held-out pictures in which a subject must be recognized."""
    folder: Path = Path("runs/tables")
    """Folder of concepts and pictures; `make tables` uses the same concepts."""
    examples: tuple[str, ...] = EXAMPLES
    """The subjects to choose from."""
    size: Size = field(default_factory=Size)

    def __post_init__(self) -> None:
        check_count("count", self.count)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """In how many pictures the categories are recognized."""

    real: dict[str, int]
    """By subject, of its held-out pictures."""
    taught: dict[str, int]
    """By subject, of one picture of each prompt of the set `pocket`, after it was taught."""
    pairs: dict[tuple[str, str], tuple[int, int]]
    """By pair: in how many pictures that pocket drew of the two categories both are, and of how many."""


def chosen_by(study: Study, options: Options) -> Counts:
    """Return what the recognizer counts."""
    real = {}
    for example in options.examples:
        pictures, category = np.stack(study.held_out(example).pictures), pocket.example(example).category
        real[example] = int(study.recognizer.sees(pictures, [category]).sum())
    candidates = [example for example, count in real.items() if count >= options.least]
    taught = {}
    for example in candidates:
        concept = study.single(example, OURS, 0)
        prompts = [filled(prompt, words_of(concept)) for prompt in read_prompts("pocket")]
        pictures = study.drawn(concept, prompts, seed=0, count=1)
        taught[example] = int(study.recognizer.sees(pictures, [pocket.example(example).category]).sum())
    pairs = {}
    for pair in combinations(candidates, 2):
        categories = [pocket.example(example).category for example in pair]
        if set(categories) not in ALIKE:
            prompts = worded(prompts_for(2, others=False)[::2], categories)
            pictures = study.drawn(None, prompts, seed=0, count=options.count)
            pairs[pair] = int(study.recognizer.sees(pictures, categories).all(1).sum()), len(pictures)
    return Counts(real=real, taught=taught, pairs=pairs)


def main(options: Options) -> None:
    """Measure and print, the best first."""
    torch.set_num_threads(1)
    study = Study.within(options.folder, options.size)
    counts = chosen_by(study, options)
    for example, count in sorted(counts.real.items(), key=lambda item: -item[1]):
        taught = f", taught {counts.taught[example]}" if example in counts.taught else ""
        print(f"{count:3} of {len(study.held_out(example).pictures)}{taught}  {example}")
    for pair, (both, of) in sorted(counts.pairs.items(), key=lambda item: -item[1][0]):
        print(f"{both:3} of {of}  {' + '.join(pair)}")


if __name__ == "__main__":
    command(Options, main, description=__doc__)
