"""The report of a merge for people and programs: sentences, rows of a table, `report.json` and `index.html`.

What a merge kept is given in per cent everywhere: 100% is all that the subject's own concept changed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moongate.files import write_atomically
from moongate.merging.edits import ARROW
from moongate.merging.report import EditFit, MergeReport

if TYPE_CHECKING:  # most merges print sentences alone, and Pillow takes time to import
    from moongate.pages import Cell, Level, Page
    from moongate.sampling import Sample

__all__ = ["HEAD", "judged", "judged_rows", "summary_rows", "verdict", "write_report"]

HEAD = ("subject", "contexts", "kept there", "kept elsewhere", "kept together", "drift alone")
MUCH, HALF = 0.9, 0.5
"""Shares kept from which on the news is good, and fair."""


def write_report(
    report: MergeReport, folder: Path, *, drawn: "Mapping[str, Mapping[str, Sequence[Sample]]] | None" = None
) -> Path:
    """Write `report.json` and the self-contained `index.html` into `folder`, and return the page's path.

    Args:
        report: The report of the merge.
        folder: Where the files are written; it is created if there is none.
        drawn: Pictures by prompt and by the way they were drawn in, such as with the merged concept.

    Raises:
        OptionError: A file cannot be written.
    """
    from moongate.pages import Page

    write_atomically(folder / "report.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())
    page = Page(title="Moongate: merge")
    page.text(
        "h1", "Merge of " + ", ".join([*(fit.words for fit in report.subjects), *(edit.name for edit in report.edits)])
    )
    for text, level in judged(report):
        page.notice(text, level=level)
    _add_pictures(page, drawn or {})
    if report.subjects:
        _add_subjects(page, report)
    _add_cost(page, report)
    _add_conflicts(page, report)
    if report.subjects and not report.feasible:
        _add_layers(page, report)
    page.save(folder / "index.html")
    return folder / "index.html"


def summary_rows(report: MergeReport) -> list[Sequence[str]]:
    """Return one row of text for each subject, in the order of `HEAD`."""
    return [
        (
            fit.words,
            str(fit.contexts),
            f"{_kept(fit.worst_residual):.0%}",
            f"{_kept(fit.held_out_error):.0%}",
            f"{_kept(fit.joint_error):.0%}" if fit.beside else "",
            f"{fit.drift_alone:.2%}",
        )
        for fit in report.subjects
    ]


def judged_rows(report: MergeReport) -> "list[Sequence[str | Cell]]":
    """Return the rows of `summary_rows` with how good the news of each share is."""
    from moongate.pages import Cell

    rows: list[Sequence[str | Cell]] = []
    for fit, (words, contexts, *shares, drift) in zip(report.subjects, summary_rows(report), strict=True):
        errors = (fit.worst_residual, fit.held_out_error, fit.joint_error)
        cells = [Cell(text, _level(_kept(error))) if text else "" for text, error in zip(shares, errors, strict=True)]
        rows.append((words, contexts, *cells, drift))
    return rows


def verdict(report: MergeReport) -> list[str]:
    """Return what a user should know in sentences, the most important one first."""
    return [text for text, _ in judged(report)] + [_cost(report)]


def judged(report: MergeReport) -> "list[tuple[str, Level]]":
    """Return the sentences of the verdict with how good the news of each is, bad news first."""
    bad: list[tuple[str, Level]] = [_outlook(report)] if report.predicted_to_lose else []
    bad += [(f"{c.first} and {c.second} conflict (cosine {c.cosine:.3f}). {c.advice}", "bad") for c in report.conflicts]
    if not report.feasible:
        bad.append(
            (
                "The constraints contradict one another. The merged concept is their least-squares compromise.",
                "bad",
            )
        )
    fair: list[tuple[str, Level]] = [
        (
            f"{fit.words} keeps {_kept(fit.held_out_error):.0%} of its change in sentences unlike its contexts, so it "
            "may look less like itself there. Draw such a prompt before you rely on it.",
            "fair",
        )
        for fit in report.subjects
        if _kept(fit.held_out_error) < HALF
    ]
    fair += [(f"Two concepts use the token {old}; the later one is now {new}.", "fair") for old, new in report.renamed]
    good = [_outlook(report)] if report.subjects and not report.predicted_to_lose else []
    good += map(_of_edit, report.edits)
    return [*bad, *good, *fair] if not bad else [*bad, *fair, *good]


def _outlook(report: MergeReport) -> "tuple[str, Level]":
    """Return what will happen to the subjects, in one sentence for a newcomer."""
    worst = min(report.subjects, key=lambda fit: fit.share_kept)
    if report.predicted_to_lose:
        lost = next(fit for fit in report.subjects if fit.words == report.predicted_to_lose)
        beside, error = lost.worst_beside
        place = f"beside {beside}" if beside else "in this merge"
        share = _kept(max(error, lost.worst_residual))
        return f"{lost.words} may be lost {place}: it keeps {share:.0%} of its change there. Draw both to see.", "bad"
    if len(report.subjects) == 1:
        text = (
            f"{worst.words} keeps {_kept(worst.worst_residual):.0%} of its change in its contexts and "
            f"{worst.share_kept:.0%} in other sentences."
        )
    elif len(report.subjects) == 2:
        shares = " and ".join(f"{fit.words} keeps {fit.share_kept:.0%}" for fit in report.subjects)
        text = f"Both survive together: {shares} of its change."
    else:
        text = (
            f"All {len(report.subjects)} survive together: {worst.words} keeps least, {worst.share_kept:.0%} of its "
            "change."
        )
    return text, _level(worst.share_kept)


def _of_edit(edit: EditFit) -> "tuple[str, Level]":
    share = _kept(edit.held_out_error)
    if edit.is_erased:
        words, _, becomes = edit.name.partition(ARROW)
        return f"{words} is read as {becomes}: {share:.0%} of the way in sentences unlike its contexts.", _level(share)
    return f"{edit.name} is protected: it moves by {edit.held_out_error:.1%} in other sentences.", _level(share)


def _kept(error: float) -> float:
    """Return what an error leaves of a subject's change; an error above 1 leaves nothing."""
    return max(0.0, 1 - error)


def _level(kept: float) -> "Level":
    return "good" if kept >= MUCH else "fair" if kept >= HALF else "bad"


def _cost(report: MergeReport) -> str:
    return (
        f"Neutral captions drift by {report.drift:.2%}, the empty prompt by {report.unconditional:.2%}. There are "
        f"{report.rank} independent constraints and room for {report.capacity} more; their condition number is "
        f"{report.condition:.3g}."
    )


def _add_pictures(page: "Page", drawn: "Mapping[str, Mapping[str, Sequence[Sample]]]") -> None:
    if drawn:
        page.text("h2", "Before and after, with the same seeds")
    for prompt, by_way in drawn.items():
        page.text("h3", prompt)
        for label, samples in by_way.items():
            page.row(label, [picture.image for picture in samples])


def _add_subjects(page: "Page", report: MergeReport) -> None:
    page.text("h2", "What each subject keeps")
    page.text(
        "p",
        "Per cent of how far the subject's own concept moves the same keys and values: 100% keeps all, 0% loses all. "
        "Its contexts are constraints of the merge. Elsewhere is measured in other captions, together in captions that "
        "name another subject as well. Drift alone is how far neutral captions move with this subject's own concept.",
    )
    page.table(HEAD, judged_rows(report))


def _add_cost(page: "Page", report: MergeReport) -> None:
    page.text("h2", "Cost")
    page.table(
        ("measure", "value"),
        [
            ("drift on held-out neutral captions, relative to their keys and values", f"{report.drift:.2%}"),
            ("neutral captions", f"{report.neutral_captions:,}"),
            ("independent constraints (rank)", str(report.rank)),
            ("further constraints that fit", str(report.capacity)),
            ("condition number of the constraints", f"{report.condition:.3g}"),
        ],
    )


def _add_conflicts(page: "Page", report: MergeReport) -> None:
    if report.conflicts:
        page.text("h2", "Conflicts")
        page.table(
            ("subjects", "cosine", "difference of values"),
            [(f"{c.first} / {c.second}", f"{c.cosine:.4f}", f"{c.difference:.2f}") for c in report.conflicts],
        )


def _add_layers(page: "Page", report: MergeReport) -> None:
    page.text("h2", "Error of the constraints by layer, relative to the change")
    layers = report.subjects[0].residual
    rows = [(layer, *(f"{fit.residual[layer]:.1e}" for fit in report.subjects)) for layer in layers]
    page.table(("layer", *(fit.words for fit in report.subjects)), rows)
