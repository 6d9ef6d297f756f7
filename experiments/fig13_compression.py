"""Fig. 13: what compression costs."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments.records import Record, Results
from experiments.rendering import ALIGNMENTS, means, table
from experiments.scores import Single
from experiments.study import FEW

TITLE = "Fig. 13: quality against compression"
ENERGIES = (None, 0.9, 0.6, 0.3, 0.1)


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (_single(example, energy) for energy in ENERGIES for example in FEW)


def report(results: Results, _out: Path) -> str:
    """Return the figure as a table."""
    rows = []
    for energy in ENERGIES:
        some = [_single(example, energy) for example in FEW]
        size = mean(results[record]["bytes"] for record in some) / 1e6
        name = f"{energy:.0%}" if energy else "all"
        rows.append((name, f"{size:.2f} MB", *(means(results, [some], column) for column in ALIGNMENTS)))
    return f"Means over {len(FEW)} subjects, seed 0.\n\n" + table(("of the singular values", "size", *ALIGNMENTS), rows)


def _single(example: str, energy: float | None) -> Single:
    return Single(example, "custom-diffusion", energy=energy, kid=energy is None)
