"""Fig. 6 and 7 in small: pictures by each method side by side."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments import table1_pairs, table1_single
from experiments.pictures import Row
from experiments.records import Record, Results
from experiments.rendering import NAMES, save_sheet, stacked
from experiments.study import PAIRS, SOME, real_pictures
from moongate.pages import Page

TITLE = "Fig. 6 and 7: side by side"
SINGLE = ("photo of a {} on the beach", "photo of a {} in the snow", "watercolor painting of a {} in a forest")
JOINT = ("photo of a {0} and a {1} on the beach", "photo of a {1} and a {0} in a garden", "drawing of a {0} and a {1}")
"""Prompts in words that pocket knows, for one subject and for a pair."""


def records() -> Iterator[Record]:
    """Yield the rows of pictures."""
    yield from (Row((example,), method, SINGLE) for example in SOME for method in table1_single.METHODS)
    yield from (Row(pair, way, JOINT) for pair in PAIRS for way in table1_pairs.WAYS)


def report(results: Results, out: Path) -> str:
    """Write the page, and one picture of each half."""
    page = Page(title="Moongate: side by side")
    page.text("h1", "What each method draws")
    halves = {
        "single": ([(example,) for example in SOME], table1_single.METHODS, SINGLE),
        "pairs": (PAIRS, table1_pairs.WAYS, JOINT),
    }
    text = ""
    for half, (subjects, methods, prompts) in halves.items():
        page.text("p", "The prompts: " + "; ".join(prompts))
        for examples in subjects:
            page.text("h2", " and ".join(examples))
            page.row("training pictures", [picture for example in examples for picture in real_pictures(example)[:3]])
            rows = [results.picture(Row(examples, method, prompts)) for method in methods]
            for method, row in zip(methods, rows, strict=True):
                page.row(NAMES[method], [np.asarray(row)])
            if examples == subjects[0]:
                text += f"{' and '.join(examples)}, from top to bottom: {', '.join(NAMES[m] for m in methods)}.\n\n"
                text += save_sheet(stacked(rows), out / f"fig6_{half}.webp") + "\n"
    page.save(out / "side_by_side.html")
    return text + "All subjects and pairs: [side_by_side.html](side_by_side.html).\n"
