"""Values of records as Markdown tables and plots."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import t

from experiments.records import Record, Results, webp_bytes
from moongate.files import write_atomically
from moongate.pages import SheetGroup, grouped_sheet

__all__ = [
    "ALIGNMENTS",
    "KID",
    "MEASURES",
    "NAMES",
    "complete_seeds",
    "counted",
    "difference",
    "differences",
    "interval",
    "labeled_rows",
    "means",
    "over_seeds",
    "plot",
    "recognized",
    "save",
    "save_sheet",
    "scale",
    "stacked",
    "table",
]

NAMES = {
    "base": "pocket itself",
    "custom-diffusion": "Custom Diffusion",
    "fine-tune-all": "fine-tune all",
    "dreambooth": "DreamBooth",
    "textual-inversion": "Textual Inversion",
    "custom-diffusion-with-augmentation": "with augmentation",
    "custom-diffusion-without-regularization": "without regularization, half the steps",
    "custom-diffusion-generated-regularization": "generated regularization",
    "custom-diffusion-without-neutral-decay": "without neutral decay, as in the paper",
    "custom-diffusion-random-token": "V* starts as noise",
    "custom-diffusion-fixed-token": "V* not trained",
    "custom-diffusion-cross-attention": "all of cross-attention",
    "fine-tune-all-in-full": "fine-tune all, the paper's steps",
    "dreambooth-in-full": "DreamBooth, the paper's steps",
    "joint": "joint training",
    "merge": "merge in closed form",
    "sequential": "sequential training",
}
"""Names of methods and ways in the tables."""
KID = "KID x 1000 (Lite0)"
"""The column of the tables whose values are multiplied by 1000 and without decimals, and better when lower."""
MEASURES = {
    "text": ("text alignment", "pocket-clip"),
    "image": ("image alignment", "pocket-clip"),
    "image (Lite0)": ("image alignment", "efficientnet-lite0"),
    KID: ("KID", "efficientnet-lite0"),
}
"""Columns of the tables: a measure, and the network in whose features it is measured."""
ALIGNMENTS = tuple(column for column in MEASURES if column != KID)
"""The columns that need no pictures of a category."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def scale(column: str) -> tuple[int, int]:
    """Return the factor on the values of a column of `MEASURES`, and the number of their decimals."""
    return (1000, 0) if column == KID else (1, 3)


def means(results: Results, by_seed: Sequence[Sequence[Record]], column: str) -> str:
    """Return a column's mean over the records of all seeds, and half the distance between their extremes."""
    factor, digits = scale(column)
    values = [factor * mean(results.values(records, *MEASURES[column])) for records in by_seed]
    spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def counted(results: Results, records: Sequence[Record]) -> tuple[int, int]:
    """Return the number of pictures in which the recognizer sees the categories of all subjects, and of all."""
    counts = [results[record]["recognized"] for record in records]
    return sum(count["all"] for count in counts), sum(count["pictures"] for count in counts)


def recognized(results: Results, records: Sequence[Record]) -> str:
    """Return the share of `counted` as text, with the counts."""
    seen, pictures = counted(results, records)
    return f"{seen / pictures:.0%} ({seen} of {pictures})"


def interval(groups: Sequence[Sequence[float]], *, digits: int = 3, percent: bool = False, signed: bool = False) -> str:
    """Return the mean of the groups' means with its 95 % interval, by Student's t, which holds for few groups too.

    With `percent` the values are shares; what an interval has below 0 or above 1 is cut off, unless they are `signed`.
    """
    values = [mean(group) for group in groups]
    middle, half = mean(values), 0.0
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    low, high = middle - half, middle + half
    if percent and not signed:
        low, high = max(low, 0.0), min(high, 1.0)
    spec = f"{'+' if signed else ''}.{digits}{'%' if percent else 'f'}"
    return f"{middle:{spec}} ({low:{spec}} to {high:{spec}})"


def differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return by how much values differ from others of the same subjects, pair by pair."""
    return [value - other for value, other in zip(values, others, strict=True)]


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Return the mean of `differences` as `interval` does."""
    return interval([[each] for each in differences(values, others)], signed=True)


def over_seeds(seeds: Sequence[int]) -> str:
    """Return which seeds a table has, and what its ± means."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    *first, last = map(str, seeds)
    return f"seeds {', '.join(first)} and {last}, ± half the distance between the lowest and the highest"


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
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, content.getvalue())
    return f"![{path.stem}]({path.name})\n"


def save_sheet(sheet: Image.Image, path: Path) -> str:
    """Write a sheet of pictures as a WebP file, and return the Markdown that shows it."""
    write_atomically(path, webp_bytes(sheet))
    return f"![{path.stem}]({path.name})\n"


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Return pictures stacked from top to bottom."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def labeled_rows(rows: Mapping[str, Image.Image], path: Path) -> str:
    """Write rows of square pictures, each below its name, into one file, and return the Markdown that shows it."""
    split = {name: np.split(np.asarray(row), row.width // row.height, axis=1) for name, row in rows.items()}
    groups = [SheetGroup(title=name, images=images, labels=()) for name, images in split.items()]
    return save_sheet(grouped_sheet(groups, columns=max(map(len, split.values()))), path)
