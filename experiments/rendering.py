"""Values of records as Markdown tables and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from PIL import Image

from experiments.records import Record, Results

__all__ = ["ALIGNMENTS", "MEASURES", "NAMES", "complete_seeds", "means", "plot", "save", "stacked", "table"]

NAMES = {
    "custom-diffusion": "Custom Diffusion",
    "fine-tune-all": "fine-tune all",
    "dreambooth": "DreamBooth",
    "textual-inversion": "Textual Inversion",
    "custom-diffusion-without-augmentation": "without augmentation",
    "custom-diffusion-without-regularization": "without regularization, half the steps",
    "custom-diffusion-generated-regularization": "generated regularization",
    "custom-diffusion-random-token": "V* starts as noise",
    "custom-diffusion-fixed-token": "V* not trained",
    "custom-diffusion-cross-attention": "all of cross-attention",
    "joint": "joint training",
    "merge": "merge in closed form",
    "sequential": "sequential training",
}
"""Names of methods and ways in the tables."""
MEASURES = {
    "text": ("text alignment", "pocket-clip"),
    "image": ("image alignment", "pocket-clip"),
    "image (Lite0)": ("image alignment", "efficientnet-lite0"),
    "KID x 1000 (Lite0)": ("KID", "efficientnet-lite0"),
}
"""Columns of the tables: a measure, and the network in whose features it is measured."""
ALIGNMENTS = tuple(column for column in MEASURES if not column.startswith("KID"))
"""The columns that need no pictures of a category."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def means(results: Results, by_seed: Sequence[Sequence[Record]], column: str) -> str:
    """Return a column's mean over the records of all seeds, and half the distance between the seeds' means."""
    factor, digits = (1000, 0) if column.startswith("KID") else (1, 3)
    values = [factor * mean(results.values(records, *MEASURES[column])) for records in by_seed]
    spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def complete_seeds(results: Results, seeds: Mapping[int, Sequence[Record]]) -> list[int]:
    """Return the seeds whose records are all measured."""
    return [seed for seed, records in seeds.items() if not results.absent(records)]


def plot(curves: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, joined: bool = False) -> Figure:
    """Return a plot of named sets of points, joined by lines if `joined`."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", linestyle="-" if joined else "", label=name, alpha=0.8)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> str:
    """Write a plot without a date, so that equal plots give equal files, and return the Markdown that shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return f"![{path.stem}]({path.name})\n"


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Return pictures stacked from top to bottom."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
