"""Fig. 8: alignment with the text against alignment with the pictures, for one subject and for pairs."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments import table1_pairs, table1_single
from experiments.records import Record, Results
from experiments.rendering import MEASURES, NAMES, plot, save
from experiments.scores import Several, Single
from experiments.study import EXAMPLES, PAIRS

TITLE = "Fig. 8: text alignment against image alignment"


def records() -> Iterator[Record]:
    """Yield the records of the figure: those of Table 1 with seed 0."""
    yield from (Single(example, method) for example in EXAMPLES for method in table1_single.METHODS)
    yield from (Several(pair, way) for way in table1_pairs.WAYS for pair in PAIRS)


def report(results: Results, out: Path) -> str:
    """Plot the two halves of the figure."""
    singles = {NAMES[m]: [_point(results, Single(e, m)) for e in EXAMPLES] for m in table1_single.METHODS}
    pairs = {NAMES[w]: [_point(results, Several(p, w)) for p in PAIRS] for w in table1_pairs.WAYS}
    x, y = "text alignment (pocket CLIP)", "image alignment (pocket CLIP)"
    return (
        "One point for each subject, and in the second plot for each pair; seed 0.\n\n"
        + save(plot(singles, x=x, y=y), out / "fig8_single.png")
        + save(plot(pairs, x=x, y=y), out / "fig8_pairs.png")
    )


def _point(results: Results, record: Record) -> tuple[float, float]:
    (text,) = results.values([record], *MEASURES["text"])
    return text, mean(results.values([record], *MEASURES["image"]))
