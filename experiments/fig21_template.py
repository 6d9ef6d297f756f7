"""Fig. 21: the template of the training captions, without the token."""

from collections.abc import Iterator
from pathlib import Path

from experiments.fig5_forgetting import compared, words
from experiments.records import Record, Results
from experiments.scores import BASE, OURS

TITLE = "Fig. 21: the template of the training captions, without the token"
FIGURE, PROMPT = "fig21", "{style} of a {}"
METHODS = (BASE, f"{OURS}-without-regularization", OURS)


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from words(FIGURE, PROMPT, METHODS)


def report(results: Results, out: Path) -> str:
    """Return the figure and its numbers."""
    return compared(results, out, FIGURE, PROMPT, METHODS)
