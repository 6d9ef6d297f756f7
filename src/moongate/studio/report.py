"""The report of a merge as a part of a page; its data come from the worker (`worker.composing.merge_report`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from moongate.studio.widgets import Words, heading, notice, paragraph, progress

__all__ = ["show_report", "table"]

HALF = 0.5
"""Share of its change below which the bar of a subject is red."""


def show_report(report: Mapping[str, Any]) -> None:
    """Add what a merge keeps and loses: the verdict, a bar for each subject, conflicts with advice, and the cost."""
    for text, level in report["sentences"]:
        notice(text, level=level)
    heading("How much of each survives", level=3)
    for words, share in report["shares"].items():
        _bar(words, share, is_lost=words == report["lost"])
    if report["conflicts"]:
        heading("Conflicts", level=3)
        rows = [
            (f"{c['first']} and {c['second']}", f"{c['cosine']:.3f}", f"{c['difference']:.2f}", c["advice"])
            for c in report["conflicts"]
        ]
        table(("subjects", "cosine", "difference of values", "what helps"), rows)
    with ui.element("details"):
        Words("summary", "In numbers")
        table(report["head"], report["rows"])
        paragraph(report["cost"], quiet=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str | Sequence[str]]]) -> None:
    """Add a table; a cell is a text, or a text and the level that colors it."""
    with ui.element("div").classes("scroll"), ui.element("table"):
        with ui.element("tr"):
            for name in head:
                Words("th", name).props("scope=col")
        for row in rows:
            with ui.element("tr"):
                for cell in row:
                    text, level = (cell, "") if isinstance(cell, str) else cell
                    Words("td", text).classes(level)


def _bar(words: str, share: float, *, is_lost: bool) -> None:
    with ui.element("div").classes("share"):
        Words("span", f"{words} (may be lost)" if is_lost else words)
        progress(f"{words} keeps", round(share, 4), 1).classes("" if share >= HALF else "low")
        Words("span", f"{share:.0%}")
