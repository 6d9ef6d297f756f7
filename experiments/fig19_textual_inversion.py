"""Fig. 19: pairs of Textual Inversion, next to pocket itself and joint training."""

from collections.abc import Iterator
from pathlib import Path

from experiments.pictures import Row
from experiments.records import Record, Results
from experiments.rendering import NAMES, labeled_rows
from experiments.scores import BASE
from experiments.study import PAIRS

TITLE = "Fig. 19: pairs of Textual Inversion"
FIGURE = "fig19"
PROMPTS = ("photo of a {0} and a {1}", "photo of a {1} and a {0} on the beach", "drawing of a {0} and a {1}")
SHOWN = PAIRS[:3]
WAYS = (BASE, "textual-inversion", "joint")


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (Row(pair, way, PROMPTS, FIGURE, count=2) for pair in SHOWN for way in WAYS)


def report(results: Results, out: Path) -> str:
    """Return the pictures; the numbers are in Table 1."""
    text = f"The prompts: {'; '.join(PROMPTS)}.\n"
    for pair in SHOWN:
        shown = {NAMES[way]: results.picture(Row(pair, way, PROMPTS, FIGURE, count=2)) for way in WAYS}
        text += f"\n{' and '.join(pair)}:\n\n" + labeled_rows(shown, out / f"{FIGURE}_{'-'.join(pair)}.webp")
    return text
