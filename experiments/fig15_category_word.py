"""Fig. 15: the word of the category after a V* that starts as noise, and after generated regularization."""

from collections.abc import Iterator
from pathlib import Path

from experiments.fig5_forgetting import compared, words
from experiments.records import Record, Results
from experiments.scores import BASE, OURS

TITLE = "Fig. 15: the word of the category after a V* that starts as noise, and after generated regularization"
FIGURE, PROMPT = "fig15", "a {}"
METHODS = (BASE, OURS, f"{OURS}-random-token", f"{OURS}-generated-regularization")


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from words(FIGURE, PROMPT, METHODS)


def report(results: Results, out: Path) -> str:
    """Return the figure and its numbers."""
    return compared(results, out, FIGURE, PROMPT, METHODS)
