"""Table 5: what becomes of everything else, by FID on captions of other categories."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results, Unrelated
from experiments.rendering import NAMES, table
from experiments.study import SOME

TITLE = "Table 5: FID on unrelated captions"
METHODS = (None, "custom-diffusion", "fine-tune-all", "dreambooth")
EXAMPLES = SOME[:3]
FEATURES = "efficientnet-lite0"


def records() -> Iterator[Record]:
    """Yield what the table is made of."""
    yield from (Unrelated(example, method) for example in EXAMPLES for method in METHODS)


def report(results: Results, _out: Path) -> str:
    """Return the table."""
    rows = [
        (example, *(f"{results.values([Unrelated(example, m)], 'FID', FEATURES)[0]:.3f}" for m in METHODS))
        for example in EXAMPLES
    ]
    note = (
        f"In features of EfficientNet-Lite0, {results.size.unrelated} pictures each, seed 0; lower is nearer to the "
        "real pictures. So few pictures bias FID upwards, all methods alike. Textual Inversion changes no weight, so "
        "that it stays where pocket is.\n\n"
    )
    return note + table(("taught", *(NAMES[m] if m else "pocket itself" for m in METHODS)), rows)
