"""Figures of records as Markdown tables and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from PIL import Image

from .records import Record, Results

__all__ = ["ALIGNMENTS", "MEASURES", "NAMES", "complete_seeds", "means", "plot", "save", "stacked", "table"]

NAMES = {
    "custom-diffusion": "Custom Diffusion",
    "fine-tune-all": "fine-tune all",
    "dreambooth": "DreamBooth",
    "textual-inversion": "Textual Inversion",
    "custom-diffusion-without-augmentation": "without augmentation",
    "custom-diffusion-without-regularization": "without regularization, half the steps",
    "custom-diffusion-generated-regularization": "generated regularization",
    "custom-diffusion-random-token": "V* begins as noise",
    "custom-diffusion-fixed-token": "V* not trained",
    "custom-diffusion-cross-attention": "all of cross-attention",
    "joint": "joint training",
    "merge": "merge in closed form",
    "sequential": "sequential training",
}
"""What methods and ways are called in tables."""
MEASURES = {
    "text": ("text alignment", "pocket-clip"),
    "image": ("image alignment", "pocket-clip"),
    "image (Lite0)": ("image alignment", "efficientnet-lite0"),
    "KID x 1000 (Lite0)": ("KID", "efficientnet-lite0"),
}
"""Columns: the measure and whose features it is taken in."""
ALIGNMENTS = tuple(column for column in MEASURES if not column.startswith("KID"))
"""Those that need no pictures of a category."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def means(results: Results, by_seed: Sequence[Sequence[Record]], column: str) -> str:
    """Return a column's mean over the records of each seed, and half the distance between two seeds."""
    factor, digits = (1000, 0) if column.startswith("KID") else (1, 3)
    found = [factor * mean(results.figures(records, *MEASURES[column])) for records in by_seed]
    spread = f" ± {(max(found) - min(found)) / 2:.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def complete_seeds(results: Results, seeds: Mapping[int, Sequence[Record]]) -> list[int]:
    """Return the seeds all of whose records are there."""
    return [seed for seed, records in seeds.items() if not results.absent(records)]


def plot(curves: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, joined: bool = False) -> Figure:
    """Return points (or lines through them) by name."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", linestyle="-" if joined else "", label=name, alpha=0.8)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> str:
    """Write a plot without the date, so that equal plots are equal files, and return the Markdown that shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return f"![{path.stem}]({path.name})\n"


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Return pictures below one another."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
