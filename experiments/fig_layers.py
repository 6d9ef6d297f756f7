"""What keys and values carry, and which levels carry shape, color and style; the paper has no such figure."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from experiments.layers import BLOCKS, PARTS, Part
from experiments.records import Record, Results
from experiments.rendering import difference, differences, save, table
from experiments.study import FEW
from experiments.styles import STYLES

TITLE = "Keys and values, and what each level carries"
COLUMNS = {
    "image": "image alignment",
    "shape": "shape: category recognized",
    "color": "color: distance",
    "style": "style: that of the prompt",
}
"""What is measured of subjects, and its title."""


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (Part(example, part) for example in (*FEW, *STYLES) for part in PARTS)


def report(results: Results, out: Path) -> str:
    """Return how far keys and values move by layer, and what each part of a concept draws."""
    whole, *parts = PARTS
    values = {part: [_values(results, FEW, part, column) for column in COLUMNS] for part in PARTS}
    rows = [(whole, *(f"{mean(column):.3f}" for column in values[whole]))]
    rows += [(part, *map(difference, values[part], values[whole])) for part in parts]
    styles = [(part, *(_each_style(results, part, column) for column in ("image", "color"))) for part in PARTS]
    return (
        "Of finished concepts of our method (seed 0) only a part is applied: keys or values alone, all but one level "
        "of the denoiser, or one level alone; the token stays. Image alignment is measured with held-out pictures, in "
        "features of EfficientNet-Lite0. Shape is the share of pictures in which the recognizer sees the category, "
        "color the distance of the object's mean color from that of the held-out pictures (RGB in 0..1), style the "
        "share of pictures in which the recognizer sees the style of the prompt. A part carries what it brings alone, "
        "and what is lost without it.\n\n"
        f"{_changes(results, out)}\n"
        f"**{len(FEW)} subjects**: the whole concept, and by how much each part differs from it, subject by subject, "
        "with 95 % intervals\n\n"
        + table(("applied", *COLUMNS.values()), rows)
        + f"\n**{len(STYLES)} styles**: {' and '.join(STYLES)}\n\n"
        + table(("applied", "image alignment", "distance of the mean color"), styles)
        + "\n"
        + save(_figure(results), out / "fig_layers.png")
    )


def _values(results: Results, examples: Sequence[str], part: str, column: str) -> list[float]:
    records = (results[Part(example, part)] for example in examples)
    return [values["image"]["efficientnet-lite0"] if column == "image" else values[column] for values in records]


def _each_style(results: Results, part: str, column: str) -> str:
    return ", ".join(f"{value:.3f}" for value in _values(results, tuple(STYLES), part, column))


def _changes(results: Results, out: Path) -> str:
    """Plot |W - W0| / |W0| of keys and values by layer, from the input to the output."""
    by_example = [results[Part(example, "whole")]["changes"] for example in FEW]
    layers = sorted({name.rpartition(".to_")[0] for name in by_example[0]}, key=_depth)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for offset, kind in ((-0.2, "k"), (0.2, "v")):
        means = [mean(changes.get(f"{layer}.to_{kind}.weight", 0.0) for changes in by_example) for layer in layers]
        axes.bar([n + offset for n in range(len(layers))], means, 0.4, label={"k": "keys", "v": "values"}[kind])
    names = [layer.removeprefix("unet.").partition(".transformer")[0].replace(".attentions", "") for layer in layers]
    axes.set_xticks(range(len(layers)), names, rotation=20, fontsize=8)
    axes.set(ylabel="|W - W0| / |W0|")
    axes.legend(fontsize=8)
    return save(figure, out / "fig_layers_changes.png")


def _depth(layer: str) -> tuple[int, str]:
    return next(number for number, block in enumerate(BLOCKS) if f".{block}." in f".{layer}."), layer


def _figure(results: Results) -> Figure:
    """Plot by how much each part differs from the whole concept, as points of the subjects and their mean."""
    whole, *parts = PARTS
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(2, 2).flat, COLUMNS.items(), strict=True):
        for number, part in enumerate(parts):
            values = differences(*(_values(results, FEW, each, column) for each in (part, whole)))
            axes.plot([number] * len(values), values, "o", color="tab:blue", alpha=0.3, markersize=3)
            axes.plot([number], [mean(values)], "_", color="tab:blue", markersize=10)
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set_xticks(range(len(parts)), parts, rotation=60, ha="right", fontsize=6)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    return figure
