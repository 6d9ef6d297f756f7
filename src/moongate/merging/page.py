"""The report of a merge as files for people and programs: `report.json` and a self-contained `index.html`."""

import json
from collections.abc import Sequence
from pathlib import Path

from moongate.files import write_atomically
from moongate.merging.report import MergeReport
from moongate.pages import Page

__all__ = ["summary_rows", "verdict", "write_report"]

HEAD = ("subject", "contexts", "constraints", "residual", "error elsewhere", "error beside others", "drift alone")


def write_report(report: MergeReport, folder: Path) -> Path:
    """Write both files into `folder` and return the page."""
    write_atomically(folder / "report.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())
    page = Page(title="Moongate: merge")
    page.text("h1", "Merge of " + ", ".join(fit.words for fit in report.subjects))
    for line in verdict(report):
        page.text("p", line)
    page.text("h2", "Subjects")
    page.text(
        "p",
        "Errors are relative to how far the subject's own concept moves the same keys and values: 0 keeps all of it, "
        "1 loses all. The residual is at the contexts that had to be kept, the errors are at contexts that had not.",
    )
    page.table(HEAD, summary_rows(report))
    page.text("h2", "The rest")
    page.table(
        ("measure", "value"),
        [
            ("drift on held-out neutral captions, relative to the keys and values", f"{report.drift:.2%}"),
            ("neutral captions", f"{report.neutral_captions:,}"),
            ("independent constraints (rank)", str(report.rank)),
            ("room for further ones", str(report.capacity)),
            ("condition number of the constraints", f"{report.condition:.3g}"),
        ],
    )
    if report.conflicts:
        page.text("h2", "Conflicts")
        page.table(
            ("subjects", "cosine", "difference of values", "advice"),
            [(f"{c.first} / {c.second}", f"{c.cosine:.4f}", f"{c.difference:.2f}", c.advice) for c in report.conflicts],
        )
    page.text("h2", "Residual by layer")
    layers = list(report.subjects[0].residual)
    rows = [(name, *(f"{fit.residual[name]:.1e}" for fit in report.subjects)) for name in layers]
    page.table(("layer", *(fit.words for fit in report.subjects)), rows)
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
        f"Neutral captions drift by {report.drift:.2%}. {report.rank} independent constraints, room for "
        f"{report.capacity} more, condition number {report.condition:.3g}."
    ]
    lines += [f"Two concepts use the token {old}; the later one's is now {new}." for old, new in report.renamed]
    if not report.feasible:
        lines.append(
            "The constraints contradict one another; what is written is the least squares compromise, which remains "
            "when one of the subjects is taken out again. The conflicts below say which are concerned."
        )
    if report.predicted_to_lose:
        lines.append(f"{report.predicted_to_lose} is likely to be lost: more than half of what it learned is gone.")
    lines += [f"{c.first} and {c.second} conflict (cosine {c.cosine:.3f}). {c.advice}" for c in report.conflicts]
    return lines
