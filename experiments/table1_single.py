"""Table 1 (top) and Table 6: one subject at a time, by our method and the baselines."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results
from experiments.rendering import KID, MEASURES, NAMES, complete_seeds, means, over_seeds, table
from experiments.scores import BASE, Base, Single
from experiments.study import EXAMPLES, SEEDS

TITLE = "Table 1 (top) and Table 6: one subject at a time"
METHODS = ("custom-diffusion", "fine-tune-all", "dreambooth", "textual-inversion")


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from (Base(example) for example in EXAMPLES)
    yield from (Single(example, method, seed) for seed in SEEDS for method in METHODS for example in EXAMPLES)


def report(results: Results, _out: Path) -> str:
    """Return the tables."""
    seeds = complete_seeds(results, {seed: [Single(e, m, seed) for e in EXAMPLES for m in METHODS] for seed in SEEDS})
    base = [[Base(example) for example in EXAMPLES]]
    rows: list[tuple[str, ...]] = [(NAMES[BASE], means(results, base, "text"), "", "", means(results, base, KID))]
    for method in METHODS:
        by_seed = [[Single(example, method, seed) for example in EXAMPLES] for seed in seeds]
        rows.append((NAMES[method], *(means(results, by_seed, column) for column in MEASURES)))
    text = f"Means over {len(EXAMPLES)} subjects; {over_seeds(seeds)}.\n\n" + table(("method", *MEASURES), rows)
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
