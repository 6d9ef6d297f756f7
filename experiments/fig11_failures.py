"""Fig. 11: pairs that fail, and what the base itself draws of them."""

from collections.abc import Iterator
from pathlib import Path

from experiments.pictures import Row
from experiments.records import Record, Results
from experiments.rendering import NAMES, labeled_rows, recognized, table
from experiments.scores import BASE, Several
from experiments.study import SEEDS

TITLE = "Fig. 11: pairs that fail"
FIGURE = "fig11"
PAIRS = (("bulldog", "siameseCat"), ("chairWithCushion", "winchesterArmchair"))
"""The paper's: a dog and a cat, and two objects of similar categories."""
WAYS = (BASE, "joint", "merge")
PROMPTS = ("photo of a {0} and a {1}", "photo of a {0} and a {1} on the beach", "photo of a {0} and a {1} in a garden")


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (Row(pair, way, PROMPTS, FIGURE, count=2) for pair in PAIRS for way in WAYS)
    yield from (Several(pair, way, seed) for seed in SEEDS for pair in PAIRS for way in WAYS)


def report(results: Results, out: Path) -> str:
    """Return what the recognizer counts, and the pictures."""
    rows = []
    for pair in PAIRS:
        there = {way: [Several(pair, way, seed) for seed in SEEDS] for way in WAYS}
        cells = [recognized(results, [r for r in some if not results.absent([r])]) for some in there.values()]
        rows.append((" + ".join(pair), *cells))
    text = (
        "The number of pictures in which the recognizer sees both categories. It sees the bulldog, the cat and the "
        "armchair in few of their real pictures, so only the count of pocket itself says what is drawn.\n\n"
    ) + table(("pair", *(NAMES[way] for way in WAYS)), rows)
    for pair in PAIRS:
        shown = {NAMES[way]: results.picture(Row(pair, way, PROMPTS, FIGURE, count=2)) for way in WAYS}
        text += f"\n{' and '.join(pair)}:\n\n" + labeled_rows(shown, out / f"{FIGURE}_{pair[0]}.webp")
    return text
