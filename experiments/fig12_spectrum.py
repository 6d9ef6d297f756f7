"""Fig. 12: singular values of the changes."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments.records import Record, Results, Spectrum
from experiments.rendering import plot, save
from experiments.study import EXAMPLES

TITLE = "Fig. 12: singular values of the changes"


def records() -> Iterator[Record]:
    """Yield what the figure is made of."""
    yield from (Spectrum(example) for example in EXAMPLES)


def report(results: Results, out: Path) -> str:
    """Draw the mean spectrum of each width of layer, and tell the ranks."""
    found = [results[Spectrum(example)] for example in EXAMPLES]
    curves = {}
    for kind in ("to_k", "to_v"):
        for width in sorted({len(values) for values in found[0]["values"].values()}):
            some = [v for each in found for n, v in each["values"].items() if kind in n and len(v) == width]
            if some:
                curves[f"{kind}, {width} wide"] = [(i + 1, mean(v)) for i, v in enumerate(zip(*some, strict=True))]
    ranks = [rank for each in found for rank in each["rank_at_60"].values()]
    widths = [len(values) for each in found for values in each["values"].values()]
    figure = plot(curves, x="number of the singular value", y="relative to the largest", joined=True)
    return (
        f"Means over {len(EXAMPLES)} things, Custom Diffusion, seed 0. 60 % of the sum of the singular values are in "
        f"the largest {mean(ranks):.1f} of {mean(widths):.0f} on average.\n\n" + save(figure, out / "fig12.png")
    )
