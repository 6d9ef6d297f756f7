"""Fig. 18: pictures of compressed concepts."""

from collections.abc import Iterator
from pathlib import Path

from experiments.fig13_compression import ENERGIES
from experiments.pictures import Row
from experiments.records import Record, Results
from experiments.rendering import labeled_rows
from experiments.scores import OURS
from experiments.study import FEW

TITLE = "Fig. 18: compressed concepts"
FIGURE = "fig18"
PROMPTS = ("photo of a {} on the beach", "photo of a {} in a city", "watercolor painting of a {}")
EXAMPLES = FEW[:3]


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (_row(example, energy) for example in EXAMPLES for energy in ENERGIES)


def report(results: Results, out: Path) -> str:
    """Return a row of pictures for each share of the singular values."""
    text = f"The prompts: {'; '.join(PROMPTS)}. Two pictures of each, the same seeds in all rows.\n"
    for example in EXAMPLES:
        shown = {
            f"{energy:.0%} of the singular values" if energy else "all": results.picture(_row(example, energy))
            for energy in ENERGIES
        }
        text += f"\n{example}:\n\n" + labeled_rows(shown, out / f"{FIGURE}_{example}.webp")
    return text


def _row(example: str, energy: float | None) -> Row:
    return Row((example,), OURS, PROMPTS, FIGURE, energy, count=2)
