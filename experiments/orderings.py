"""Which of the orderings in the paper's tables hold on pocket."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.records import Record, Results
from experiments.rendering import KID, MEASURES, NAMES, scale, table
from experiments.scores import BASE, OURS, Base, Several, Single
from experiments.study import EXAMPLES, MORE_PAIRS, PAIRS, SEEDS, SOME, WITH_AUGMENTATION

TITLE = "Which of the paper's orderings hold"
PARTIAL = True
"""The table can be written while some of its records are missing."""
AUGMENTED, WITHOUT_REGULARIZATION = f"{OURS}{WITH_AUGMENTATION}", f"{OURS}-without-regularization"
GENERATED, RANDOM, FIXED = f"{OURS}-generated-regularization", f"{OURS}-random-token", f"{OURS}-fixed-token"

HOLDS, REVERSED, UNDECIDED = "holds", "is reversed", "too near to tell"
MANY = 1000
"""A larger number of subjects that would be needed is not written out."""


@dataclass(frozen=True)
class Claim:
    """In the paper the first has the better value: the higher one, or the lower KID."""

    column: str
    first: str
    second: str
    paper: tuple[float, float]
    over: Sequence[Any] = EXAMPLES
    """The subjects or pairs that both were measured on."""

    def records(self, which: str, seeds: Sequence[int]) -> list[list[Record]]:
        """Return the records of one side: for each subject or pair, one for each seed."""
        if which == BASE:
            return [[Base(example)] for example in self.over]
        kind: Any = Single if isinstance(self.over[0], str) else Several
        return [[kind(taught, which, seed) for seed in seeds] for taught in self.over]

    def both_sides(self, seeds: Sequence[int] = SEEDS) -> list[Record]:
        """Return all records of some seeds."""
        sides = (self.records(which, seeds) for which in (self.first, self.second))
        return [record for side in sides for records in side for record in records]

    def measured(self, results: Results) -> list[int]:
        """Return the seeds of which all records are there."""
        return [seed for seed in SEEDS if not results.absent(self.both_sides([seed]))]

    def differences(self, results: Results, seeds: Sequence[int]) -> list[float]:
        """Return for each subject or pair by how much the first is better."""
        factor, _ = scale(self.column)
        sides = [
            [mean(results.values(records, *MEASURES[self.column])) for records in self.records(which, seeds)]
            for which in (self.first, self.second)
        ]
        better = -factor if self.column == KID else factor
        return [better * (first - second) for first, second in zip(*sides, strict=True)]


CLAIMS = (
    Claim("text", OURS, "textual-inversion", (0.795, 0.670)),
    Claim("image", "textual-inversion", OURS, (0.827, 0.775)),
    Claim("text", OURS, "dreambooth", (0.795, 0.781)),
    Claim("image", OURS, "fine-tune-all", (0.775, 0.748)),
    Claim(KID, OURS, "dreambooth", (20.96, 32.53)),
    Claim(KID, "fine-tune-all", OURS, (19.27, 20.96)),
    Claim(KID, OURS, BASE, (20.96, 22.27)),
    Claim("text", "joint", "textual-inversion", (0.801, 0.544), PAIRS),
    Claim("image", "joint", "merge", (0.706, 0.695), (*PAIRS, *MORE_PAIRS)),
    Claim("image", "joint", "sequential", (0.706, 0.700), (*PAIRS, *MORE_PAIRS)),
    Claim("image", "joint", "fine-tune-all", (0.706, 0.691), PAIRS),
    Claim("text", "joint", "dreambooth", (0.801, 0.783), PAIRS),
    Claim("image", AUGMENTED, OURS, (0.775, 0.736), SOME),
    Claim(KID, OURS, WITHOUT_REGULARIZATION, (20.96, 32.64)),
    Claim(KID, OURS, GENERATED, (20.96, 34.70), SOME),
    Claim("image", OURS, FIXED, (0.774, 0.733), SOME),
    Claim("text", FIXED, OURS, (0.816, 0.795), SOME),
    Claim("image", OURS, RANDOM, (0.774, 0.765), SOME),
    Claim("text", RANDOM, OURS, (0.805, 0.795), SOME),
)


def records() -> Iterator[Record]:
    """Yield the records that the orderings are read from."""
    for claim in CLAIMS:
        yield from claim.both_sides()


def report(results: Results, _out: Path) -> str:
    """Return a row for each ordering: the paper's values, and the difference here with its standard error."""
    rows = []
    for claim in CLAIMS:
        name = f"{claim.column}: {NAMES[claim.first]} before {NAMES[claim.second]}"
        paper = f"{claim.paper[0]:g}, {claim.paper[1]:g}"
        seeds = claim.measured(results)
        if not seeds:
            rows.append((name, paper, "", str(len(claim.over)), "0", "", "not measured yet"))
            continue
        differences = claim.differences(results, seeds)
        error = stdev(differences) / len(differences) ** 0.5
        number = len(differences)
        verdict = _verdict(mean(differences), error)
        _, digits = scale(claim.column)
        difference = f"{mean(differences):+.{digits}f} ± {error:.{digits}f}"
        needed = _needed(mean(differences), error, number)
        rows.append((name, paper, difference, str(number), str(len(seeds)), needed, verdict))
    note = (
        "The difference is positive where the first is better (for KID, where it is lower), with its standard error "
        "over the subjects or pairs; a difference of less than two standard errors is too near to tell. Needed is the "
        "number of subjects or pairs that would decide it if it is the true one. Means over the seeds of which all "
        f"records are there, {len(SEEDS)} at most. Pairs share subjects, which the standard error does not count: it "
        "is too small where the differences come from the subjects.\n\n"
    )
    decided = sum(row[-1] in (HOLDS, REVERSED) for row in rows)
    head = ("in the paper", "paper's values", "difference here", "number", "seeds", "needed", "here")
    return note + table(head, rows) + f"\n{decided} of {len(rows)} are decided.\n"


def _verdict(difference: float, error: float) -> str:
    if abs(difference) < 2 * error:
        return UNDECIDED
    return REVERSED if difference < 0 else HOLDS


def _needed(difference: float, error: float, number: int) -> str:
    """Return how many subjects would make a difference twice its standard error."""
    needed = math.ceil(number * (2 * error / difference) ** 2) if difference else math.inf
    return str(needed) if needed <= MANY else f"over {MANY}"
