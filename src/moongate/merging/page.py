"""The report of a merge for people and programs: sentences, rows of a table, `report.json` and `index.html`."""

import json
from collections.abc import Sequence
from pathlib import Path

from moongate.files import write_atomically
from moongate.merging.report import MergeReport
from moongate.pages import Page

__all__ = ["HEAD", "summary_rows", "verdict", "write_report"]

HEAD = ("subject", "contexts", "constraints", "residual", "error elsewhere", "error together", "drift alone")


def write_report(report: MergeReport, folder: Path) -> Path:
    """Write `report.json` and the self-contained `index.html` into `folder`, and return the page's path.

    Raises:
        OptionError: A file cannot be written.
    """
    write_atomically(folder / "report.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())
    page = Page(title="Moongate: merge")
    page.text("h1", "Merge of " + ", ".join(fit.words for fit in report.subjects))
    for line in verdict(report):
        page.text("p", line)
    _add_subjects(page, report)
    _add_cost(page, report)
    _add_conflicts(page, report)
    _add_layers(page, report)
    page.save(folder / "index.html")
    return folder / "index.html"


def summary_rows(report: MergeReport) -> list[Sequence[str]]:
    """Return one row of text for each subject, in the order of `HEAD`."""
    return [
        (
            fit.words,
            str(fit.contexts),
            str(fit.constraints),
            f"{fit.worst_residual:.1e}",
            f"{fit.held_out_error:.1%}",
            f"{fit.joint_error:.1%}" if len(report.subjects) > 1 else "",
            f"{fit.drift_alone:.2%}",
        )
        for fit in report.subjects
    ]


def verdict(report: MergeReport) -> list[str]:
    """Return what a user should know, in sentences."""
    lines = [
        "Every subject keeps its values in its contexts."
        if report.feasible
        else "The constraints contradict one another. The merged concept is their least-squares compromise, which "
        "stays if one of the subjects is taken out again."
    ]
    if report.predicted_to_lose:
        lines.append(
            f"The merge will probably lose {report.predicted_to_lose}: next to another subject, more than half of what "
            "it learned is gone."
        )
    lines += [f"{c.first} and {c.second} conflict (cosine {c.cosine:.3f}). {c.advice}" for c in report.conflicts]
    lines += [f"Two concepts use the token {old}; the later one is now {new}." for old, new in report.renamed]
    lines.append(
        f"Neutral captions drift by {report.drift:.2%}. There are {report.rank} independent constraints and room for "
        f"{report.capacity} more; their condition number is {report.condition:.3g}."
    )
    return lines


def _add_subjects(page: Page, report: MergeReport) -> None:
    page.text("h2", "Subjects")
    page.text(
        "p",
        "Errors are relative to how far the subject's own concept moves the same keys and values: 0% keeps all of it, "
        "100% loses all. The residual is the error in the contexts that are constraints. The error elsewhere is "
        "measured in other contexts, the error together in captions that name another subject as well.",
    )
    page.table(HEAD, summary_rows(report))


def _add_cost(page: Page, report: MergeReport) -> None:
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


def _add_conflicts(page: Page, report: MergeReport) -> None:
    if report.conflicts:
        page.text("h2", "Conflicts")
        page.table(
            ("subjects", "cosine", "difference of values"),
            [(f"{c.first} / {c.second}", f"{c.cosine:.4f}", f"{c.difference:.2f}") for c in report.conflicts],
        )


def _add_layers(page: Page, report: MergeReport) -> None:
    page.text("h2", "Residual by layer")
    layers = report.subjects[0].residual
    rows = [(layer, *(f"{fit.residual[layer]:.1e}" for fit in report.subjects)) for layer in layers]
    page.table(("layer", *(fit.words for fit in report.subjects)), rows)
