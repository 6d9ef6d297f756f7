"""Table 4: how V* starts and whether it is trained; and training all of cross-attention."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results
from experiments.table3_ablation import compared, comparison

TITLE = "Table 4: the choice of V*"
METHODS = (
    "custom-diffusion",
    "custom-diffusion-random-token",
    "custom-diffusion-fixed-token",
    "custom-diffusion-cross-attention",
)


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from compared(METHODS)


def report(results: Results, _out: Path) -> str:
    """Return the table."""
    return comparison(results, METHODS)
