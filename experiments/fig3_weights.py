"""Fig. 3: which kind of layer moves most when all layers are trained."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments.layers import Weights
from experiments.records import Record, Results
from experiments.rendering import table
from experiments.study import EXAMPLES

TITLE = "Fig. 3: change of weights by kind of layer"


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (Weights(example) for example in EXAMPLES)


def report(results: Results, _out: Path) -> str:
    """Return the figure as a table."""
    changes = [results[Weights(example)]["kinds"] for example in EXAMPLES]
    by_kind = {kind: [change[kind]["mean"] for change in changes] for kind in changes[0]}
    rows = [
        (
            kind,
            f"{mean(means):.2%}",
            f"{min(means):.2%} to {max(means):.2%}",
            f"{changes[0][kind]['share']:.0%}",
        )
        for kind, means in sorted(by_kind.items(), key=lambda item: -mean(item[1]))
    ]
    note = f"Mean of |W - W0| / |W0| after fine-tuning all, over {len(EXAMPLES)} subjects, seed 0.\n\n"
    return note + table(("kind of layer", "mean change", "range over subjects", "share of the parameters"), rows)
