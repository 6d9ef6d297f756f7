"""Table 3: what regularization and augmentation contribute."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results, Single
from experiments.rendering import MEASURES, NAMES, means, table
from experiments.study import SOME

TITLE = "Table 3: without augmentation, without regularization, with generated regularization"
METHODS = (
    "custom-diffusion",
    "custom-diffusion-without-augmentation",
    "custom-diffusion-without-regularization",
    "custom-diffusion-generated-regularization",
)


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from compared(METHODS)


def report(results: Results, _out: Path) -> str:
    """Return the table."""
    return comparison(results, METHODS)


def compared(methods: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records of methods over the subjects of the ablations."""
    yield from (Single(example, method) for method in methods for example in SOME)


def comparison(results: Results, methods: tuple[str, ...]) -> str:
    """Return a table of methods over the subjects of the ablations."""
    rows = [
        (
            NAMES[method],
            *(means(results, [[Single(example, method) for example in SOME]], column) for column in MEASURES),
        )
        for method in methods
    ]
    return f"Means over {len(SOME)} subjects, seed 0.\n\n" + table(("method", *MEASURES), rows)
