"""Table 3: what regularization and augmentation contribute."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results
from experiments.rendering import MEASURES, NAMES, complete_seeds, means, over_seeds, table
from experiments.scores import Single
from experiments.study import SEEDS, SOME, WITH_AUGMENTATION

TITLE = "Table 3: with augmentation, without or with generated regularization, and without neutral decay"
METHODS = (
    "custom-diffusion",
    f"custom-diffusion{WITH_AUGMENTATION}",
    "custom-diffusion-without-regularization",
    "custom-diffusion-generated-regularization",
    "custom-diffusion-without-neutral-decay",
)


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from compared(METHODS)


def report(results: Results, _out: Path) -> str:
    """Return the table."""
    return comparison(results, METHODS)


def compared(methods: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records of methods over the subjects of the ablations."""
    yield from (Single(example, method, seed) for seed in SEEDS for method in methods for example in SOME)


def comparison(results: Results, methods: tuple[str, ...]) -> str:
    """Return a table of methods over the subjects of the ablations."""
    seeds = complete_seeds(results, {seed: [Single(e, m, seed) for e in SOME for m in methods] for seed in SEEDS})
    by_method = {method: [[Single(e, method, seed) for e in SOME] for seed in seeds] for method in methods}
    rows = [
        (NAMES[method], *(means(results, by_seed, column) for column in MEASURES))
        for method, by_seed in by_method.items()
    ]
    return f"Means over {len(SOME)} subjects; {over_seeds(seeds)}.\n\n" + table(("method", *MEASURES), rows)
