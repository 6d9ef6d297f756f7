"""Table 1 (top) and Table 6: one subject at a time, by our method and the baselines."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Base, Record, Results, Single
from experiments.rendering import MEASURES, NAMES, complete_seeds, means, table
from experiments.study import EXAMPLES

TITLE = "Table 1 (top) and Table 6: one subject at a time"
METHODS = ("custom-diffusion", "fine-tune-all", "dreambooth", "textual-inversion")
SEEDS = (0, 1)


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from (Base(example) for example in EXAMPLES)
    yield from (Single(example, method, seed) for seed in SEEDS for method in METHODS for example in EXAMPLES)


def report(results: Results, _out: Path) -> str:
    """Return the tables."""
    seeds = complete_seeds(results, {seed: [Single(e, m, seed) for e in EXAMPLES for m in METHODS] for seed in SEEDS})
    base = [[Base(example) for example in EXAMPLES]]
    rows: list[tuple[str, ...]] = [
        ("pocket itself", means(results, base, "text"), "", "", means(results, base, "KID x 1000 (Lite0)"))
    ]
    for method in METHODS:
        by_seed = [[Single(example, method, seed) for example in EXAMPLES] for seed in seeds]
        rows.append((NAMES[method], *(means(results, by_seed, column) for column in MEASURES)))
    spread = "seeds 0 and 1, ± half the distance between them" if len(seeds) > 1 else "seed 0"
    text = f"Means over {len(EXAMPLES)} subjects; {spread}.\n\n" + table(("method", *MEASURES), rows)
    for column in MEASURES:
        by_subject = [
            (
                example,
                *(means(results, [[Single(example, method, seed)] for seed in seeds], column) for method in METHODS),
            )
            for example in EXAMPLES
        ]
        text += f"\n**{column}**\n\n" + table(("subject", *(NAMES[method] for method in METHODS)), by_subject)
    return text
