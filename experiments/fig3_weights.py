"""Fig. 3: which kind of layer moves most when all of them may."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments.records import Record, Results, Weights
from experiments.rendering import table
from experiments.study import EXAMPLES

TITLE = "Fig. 3: change of weights by kind of layer"


def records() -> Iterator[Record]:
    """Yield what the figure is made of."""
    yield from (Weights(example) for example in EXAMPLES)


def report(results: Results, _out: Path) -> str:
    """Return the figure as a table."""
    found = [results[Weights(example)]["kinds"] for example in EXAMPLES]
    kinds = sorted(found[0], key=lambda kind: -mean(each[kind]["mean"] for each in found))
    rows = [
        (
            kind,
            f"{mean(each[kind]['mean'] for each in found):.2%}",
            f"{min(each[kind]['mean'] for each in found):.2%} to {max(each[kind]['mean'] for each in found):.2%}",
            f"{found[0][kind]['share']:.0%}",
        )
        for kind in kinds
    ]
    note = f"Mean of |W - W0| / |W0| after fine-tuning all, over {len(EXAMPLES)} things, seed 0.\n\n"
    return note + table(("kind of layer", "mean change", "between things", "share of the parameters"), rows)
