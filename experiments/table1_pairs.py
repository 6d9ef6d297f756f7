"""Table 1 (bottom) and Table 7: two subjects in one picture."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Pair, Record, Results
from experiments.rendering import ALIGNMENTS, NAMES, complete_seeds, means, table
from experiments.study import PAIRS

TITLE = "Table 1 (bottom) and Table 7: two subjects in one picture"
WAYS = ("joint", "merge", "sequential", "textual-inversion", "fine-tune-all", "dreambooth")
SEEDS = (0, 1)


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from (Pair(pair, way, seed) for seed in SEEDS for way in WAYS for pair in PAIRS)


def report(results: Results, _out: Path) -> str:
    """Return the tables."""
    seeds = complete_seeds(results, {seed: [Pair(p, w, seed) for p in PAIRS for w in WAYS] for seed in SEEDS})
    rows = [
        (NAMES[way], *(means(results, [[Pair(p, way, seed) for p in PAIRS] for seed in seeds], c) for c in ALIGNMENTS))
        for way in WAYS
    ]
    spread = "seeds 0 and 1, ± half the distance between them" if len(seeds) > 1 else "seed 0"
    text = f"Means over {len(PAIRS)} pairs and both subjects of each; {spread}.\n\n" + table(("way", *ALIGNMENTS), rows)
    for column in ALIGNMENTS:
        by_pair = [
            (" + ".join(p), *(means(results, [[Pair(p, way, seed)] for seed in seeds], column) for way in WAYS))
            for p in PAIRS
        ]
        text += f"\n**{column}**\n\n" + table(("pair", *(NAMES[way] for way in WAYS)), by_pair)
    return text
