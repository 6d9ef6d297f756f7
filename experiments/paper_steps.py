"""DreamBooth and fine-tuning all weights with the paper's own steps and learning rates, next to those of the tables.

It runs when it is named (`python -m experiments paper_steps`): DreamBooth's 2,500 steps take a quarter of an hour each.
"""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results
from experiments.rendering import MEASURES, NAMES, interval, scale, table
from experiments.scores import OURS, Single
from experiments.study import FEW, IN_FULL, for_pocket

TITLE = "DreamBooth and fine-tuning all with the paper's own steps"
METHODS = (OURS, "fine-tune-all", f"fine-tune-all{IN_FULL}", "dreambooth", f"dreambooth{IN_FULL}")


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from (Single(example, method) for method in METHODS for example in FEW)


def report(results: Results, _out: Path) -> str:
    """Return the table."""
    rows = []
    for method in METHODS:
        cells = []
        for column, (measure, features) in MEASURES.items():
            factor, digits = scale(column)
            values = [results.values([Single(example, method)], measure, features) for example in FEW]
            cells.append(interval([[factor * value for value in some] for some in values], digits=digits))
        rows.append((NAMES[method], str(for_pocket(method).steps_per_subject), *cells))
    note = f"Means over {len(FEW)} subjects with 95 % intervals over them, seed 0.\n\n"
    return note + table(("method", "steps", *MEASURES), rows)
