"""Table 1 (bottom) and Table 7: two subjects in one picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.records import Record, Results
from experiments.rendering import ALIGNMENTS, NAMES, complete_seeds, means, over_seeds, recognized, table
from experiments.scores import BASE, Several
from experiments.study import PAIRS, SEEDS

TITLE = "Table 1 (bottom) and Table 7: two subjects in one picture"
WAYS = ("joint", "merge", "sequential", "textual-inversion", "fine-tune-all", "dreambooth")


def records() -> Iterator[Record]:
    """Yield the records of the table."""
    yield from (Several(pair, BASE, seed) for seed in SEEDS for pair in PAIRS)
    yield from (Several(pair, way, seed) for seed in SEEDS for way in WAYS for pair in PAIRS)


def report(results: Results, _out: Path) -> str:
    """Return the tables."""
    return composed(results, PAIRS, WAYS, "pair")


def composed(results: Results, sets: Sequence[tuple[str, ...]], ways: Sequence[str], kind: str) -> str:
    """Return the means over sets of subjects with what the recognizer counts, and a table by set for each column."""
    ways = (BASE, *ways)
    seeds = complete_seeds(results, {seed: [Several(s, way, seed) for s in sets for way in ways] for seed in SEEDS})

    def cell(some: Sequence[tuple[str, ...]], way: str, column: str) -> str:
        if way == BASE and column != "text":
            return ""
        return means(results, [[Several(s, way, seed) for s in some] for seed in seeds], column)

    def seen(some: Sequence[tuple[str, ...]], way: str) -> str:
        return recognized(results, [Several(s, way, seed) for s in some for seed in seeds])

    rows = [(NAMES[way], seen(sets, way), *(cell(sets, way, column) for column in ALIGNMENTS)) for way in ways]
    head = ("way", "all recognized", *ALIGNMENTS)
    text = (
        f"Means over {len(sets)} {kind}s and all subjects of each; {over_seeds(seeds)}. All recognized: pictures in "
        "which the recognizer sees the categories of all subjects, of those prompts that name nothing else.\n\n"
    ) + table(head, rows)
    by_set = [(" + ".join(s), *(seen([s], way) for way in ways)) for s in sets]
    text += "\n**all recognized**\n\n" + table((kind, *(NAMES[way] for way in ways)), by_set)
    for column in ALIGNMENTS:
        shown = ways if column == "text" else ways[1:]
        by_set = [(" + ".join(s), *(cell([s], way, column) for way in shown)) for s in sets]
        text += f"\n**{column}**\n\n" + table((kind, *(NAMES[way] for way in shown)), by_set)
    return text
