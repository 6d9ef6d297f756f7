"""Fig. 12: singular values of the changes."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments.layers import Spectrum
from experiments.records import Record, Results
from experiments.rendering import plot, save
from experiments.study import SOME

TITLE = "Fig. 12: singular values of the changes"


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (Spectrum(example) for example in SOME)


def report(results: Results, out: Path) -> str:
    """Plot the mean spectrum of each width of layer, and return it with the ranks."""
    spectra = [results[Spectrum(example)] for example in SOME]
    curves = {}
    for kind in ("to_k", "to_v"):
        for width in sorted({len(values) for values in spectra[0]["values"].values()}):
            some = [v for s in spectra for name, v in s["values"].items() if kind in name and len(v) == width]
            if some:
                curves[f"{kind}, {width} wide"] = [(i + 1, mean(v)) for i, v in enumerate(zip(*some, strict=True))]
    ranks = [rank for spectrum in spectra for rank in spectrum["rank_at_60"].values()]
    widths = [len(values) for spectrum in spectra for values in spectrum["values"].values()]
    figure = plot(curves, x="index of the singular value", y="relative to the largest", joined=True)
    return (
        f"Means over {len(SOME)} subjects, Custom Diffusion, seed 0. 60 % of the sum of the singular values is in "
        f"the largest {mean(ranks):.1f} of {mean(widths):.0f} on average.\n\n" + save(figure, out / "fig12.png")
    )
