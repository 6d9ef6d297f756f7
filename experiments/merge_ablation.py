"""Which options of a merge help: five pairs and three triples, three seeds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.records import Record, Results
from experiments.rendering import MEASURES, counted, interval, table
from experiments.scores import BASE, DEFAULT, MERGES, Several
from experiments.study import PAIRS, SEEDS, TRIPLES

TITLE = "The options of a merge"
PARTIAL = True
"""Ways that are measured can be shown before the others are."""
SETS = {"five pairs": PAIRS[:5], "three triples": TRIPLES}
WAYS: Mapping[str, Mapping[str, str]] = {
    "pocket itself": {"way": BASE},
    "joint training": {"way": "joint"},
    **{merging: {"way": "merge", "merging": merging} for merging in MERGES},
}
"""Two ways without options, for comparison, and the merges: what a record of each is made with."""
HEAD = (
    "merge",
    "all recognized",
    "against the default",
    "image",
    "image of the weakest",
    "text",
    "kept",
    "drift",
    "unconditional shift",
)


def records() -> Iterator[Record]:
    """Yield the records of the tables."""
    sets = [s for some in SETS.values() for s in some]
    yield from (Several(s, seed=seed, **way) for seed in SEEDS for way in WAYS.values() for s in sets)


def report(results: Results, _out: Path) -> str:
    """Return a table for the pairs and one for the triples, of the ways that are measured with the first seed."""
    text = (
        "Means with 95 % intervals over the sets of subjects, of means over their seeds. Against the default is the "
        "difference in what is recognized, set by set, from the merge that is the default, in points. Image is the "
        "alignment with held-out pictures of each subject (pocket-clip); kept is the least share of its change that a "
        "subject keeps where all are named; drift is how far the keys and values of held-out neutral captions move, "
        "and the unconditional shift how far those of the empty prompt do, relative to their size. The concepts are "
        "the same in all rows.\n"
    )
    for name, sets in SETS.items():
        groups = {
            title: [[Several(s, seed=seed, **way) for seed in SEEDS] for s in sets] for title, way in WAYS.items()
        }
        measured = {title: of for title, of in groups.items() if not results.absent(group[0] for group in of)}
        rows = [_row(results, title, of, measured.get(DEFAULT, ())) for title, of in measured.items()]
        text += f"\n**{name}**\n\n" + (table(HEAD, rows) if rows else "Not measured yet.\n")
    return text


def _row(
    results: Results, title: str, groups: Sequence[Sequence[Several]], default: Sequence[Sequence[Several]]
) -> tuple[str, ...]:
    """Return the row of a way from its records and those of the default, both grouped by set of subjects."""
    there = [[record for record in group if not results.absent([record])] for group in groups]
    way = there[0][0].way

    def cell(of: Any, *, digits: int = 3, percent: bool = False) -> str:
        return interval([[of(record) for record in group] for group in there], digits=digits, percent=percent)

    def images(record: Record) -> list[float]:
        return results.values([record], *MEASURES["image"])

    def share(record: Record) -> float:
        seen, pictures = counted(results, [record])
        return seen / pictures

    seen, pictures = counted(results, [record for group in there for record in group])
    cells = [f"{cell(share, digits=0, percent=True)}, {seen} of {pictures}"]
    cells.append(_difference(results, groups, default, share) if default and title != DEFAULT else "")
    cells += ["", ""] if way == BASE else [cell(lambda r: mean(images(r))), cell(lambda r: min(images(r)))]
    cells.append(cell(lambda r: results.values([r], *MEASURES["text"])[0]))
    if way == "merge":
        cells.append(cell(lambda r: min(results[r]["merge"]["kept"]), digits=0, percent=True))
        cells += [
            cell(lambda r, n=n: results[r]["merge"][n], digits=2, percent=True) for n in ("drift", "unconditional")
        ]
    return (title, *cells, *[""] * (len(HEAD) - 1 - len(cells)))


def _difference(
    results: Results, groups: Sequence[Sequence[Several]], default: Sequence[Sequence[Several]], of: Any
) -> str:
    """Return by how many points a share is higher than the default's, over the seeds that both have."""
    differences = []
    for group, usual in zip(groups, default, strict=True):
        both = [pair for pair in zip(group, usual, strict=True) if not results.absent(pair)]
        differences.append([100 * (of(record) - of(other)) for record, other in both])
    return interval(differences, digits=0, signed=True)
