"""Answers for the page Compose: what a merge keeps and loses, before a picture is drawn."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moongate.studio.worker.bench import Bench

__all__ = ["merge_report"]


def merge_report(bench: Bench, concepts: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Merge concepts and return the report; the merged concept is not kept.

    Args:
        bench: The worker.
        concepts: Files with their strengths.

    Returns:
        `sentences` (each with its level), `cost`, `head` and `rows` of a table (cells are texts, or texts with levels),
        `shares` (how much of each subject survives, 0 to 1, by its words), `lost` (the words of the subject that is
        predicted to be lost, or null), `conflicts`, `drift`, `rank` and `capacity`.

    Raises:
        BaseMismatchError: The concepts are for different models.
        OptionError: A concept cannot be merged, or they do not fit into one.
    """
    from moongate.merging import MergeOptions, merge
    from moongate.merging.page import HEAD, judged, judged_rows, verdict
    from moongate.pages import Cell

    read = [bench.imported(file).concept.scaled(strength) for file, strength in concepts]
    backbone = bench.backbone(read[0].base or None)
    cache = Path(bench.setup.cache) if bench.setup.cache else None
    report = merge(backbone, read, options=MergeOptions(cache=cache)).report
    return {
        "sentences": [[text, level] for text, level in judged(report)],
        "cost": verdict(report)[-1],
        "head": list(HEAD),
        "rows": [
            [[cell.text, cell.level] if isinstance(cell, Cell) else cell for cell in row] for row in judged_rows(report)
        ],
        "shares": {fit.words: fit.share_kept for fit in report.subjects},
        "lost": report.predicted_to_lose,
        "conflicts": [asdict(conflict) for conflict in report.conflicts],
        "drift": report.drift,
        "rank": report.rank,
        "capacity": report.capacity,
    }
