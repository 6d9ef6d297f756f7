"""Table 5: what teaching does to other categories, by FID on their captions."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results
from experiments.rendering import NAMES, table
from experiments.scores import Unrelated
from experiments.study import FEW

TITLE = "Table 5: FID on unrelated captions"
METHODS = (None, "custom-diffusion", "fine-tune-all", "dreambooth")
EXAMPLES = FEW[:3]
FEATURES = "efficientnet-lite0"


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from (Unrelated(example, method) for example in EXAMPLES for method in METHODS)


def report(results: Results, _out: Path) -> str:
    """Return the table."""
    rows = [
        (example, *(f"{results.values([Unrelated(example, m)], 'FID', FEATURES)[0]:.3f}" for m in METHODS))
        for example in EXAMPLES
    ]
    note = (
        f"In features of EfficientNet-Lite0, {results.size.unrelated} pictures each, seed 0; lower is nearer to the "
        "real pictures. So few pictures bias FID upwards for all methods. Textual Inversion changes no weight and "
        "has the FID of pocket itself.\n\n"
    )
    return note + table(("taught", *(NAMES[m] if m else "pocket itself" for m in METHODS)), rows)
