"""Three and four subjects in one picture, which the paper says remain hard (Sec. 5)."""

from collections.abc import Iterator
from pathlib import Path

from experiments.records import Record, Results
from experiments.scores import BASE, Several
from experiments.study import QUADRUPLES, SEEDS, TRIPLES
from experiments.table1_pairs import composed

TITLE = "Three and four subjects in one picture"
WAYS = ("joint", "merge")


def records() -> Iterator[Record]:
    """Yield the records of the tables."""
    sets = (*TRIPLES, *QUADRUPLES)
    yield from (Several(s, way, seed) for seed in SEEDS for way in (BASE, *WAYS) for s in sets)


def report(results: Results, _out: Path) -> str:
    """Return the tables of three and of four."""
    three, four = (composed(results, sets, WAYS, "set") for sets in (TRIPLES, QUADRUPLES))
    return f"### Three\n\n{three}\n### Four\n\n{four}"
