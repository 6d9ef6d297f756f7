"""What analysis found in a concept, as files for people and programs: JSON, self-contained pages, a PNG picture."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from moongate.analysis import KindOfChange, Spectrum, WordMaps
from moongate.files import write_atomically
from moongate.pages import Chart, Page, SheetGroup, bar_chart, grouped_sheet, line_chart, png_bytes, sparkline

__all__ = [
    "SPECTRUM_HEAD",
    "WEIGHTS_HEAD",
    "layer_name",
    "spectrum_rows",
    "weights_rows",
    "write_attention",
    "write_spectra",
    "write_weights",
]

WEIGHTS_HEAD = ("kind of layer", "mean change", "layers", "changed", "share of the parameters")
SPECTRUM_HEAD = ("weight", "largest", "rank at 60%", "rank at 95%", "full rank")
RED = (255, 60, 20)
OPACITY = 0.7
"""How much of the picture the strongest red hides."""
WORDS_IN_A_ROW = 8
FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "of", "on", "in", "at", "and", "with", "to", "by", "for", "from", "is", "under", "near", "photo")
)
"""Words that say little about the picture; their maps come last."""
LOWEST_SHARE = 1e-4
"""Lower edge of the charts of singular values, relative to the largest."""


def weights_rows(changes: Sequence[KindOfChange]) -> list[Sequence[str]]:
    """Return one row of text for each kind of layer, in the order of `WEIGHTS_HEAD`."""
    return [(c.kind, f"{c.mean:.3%}", str(c.layers), str(c.changed), f"{c.share:.1%}") for c in changes]


def spectrum_rows(spectra: Mapping[str, Spectrum]) -> list[Sequence[str]]:
    """Return one row of text for each weight, in the order of `SPECTRUM_HEAD`."""
    return [
        (layer_name(name), f"{s.values[0]:.3g}", str(s.rank(0.6)), str(s.rank(0.95)), str(len(s.values)))
        for name, s in spectra.items()
    ]


def layer_name(name: str) -> str:
    """Return the name of a weight without the parts that all names have, so that it fits a table."""
    return re.sub(r"^unet\.|\.weight$|(?<=\.)(?:attentions|transformer_blocks)\.", "", name)


def write_weights(changes: Sequence[KindOfChange], folder: Path) -> Path:
    """Write `weights.json` and `weights.html` into `folder`, and return the page's path."""
    _write_json(folder / "weights.json", [dataclasses.asdict(change) for change in changes])
    page = Page(title="Moongate: change of weights")
    page.text("h1", "Change of weights by kind of layer")
    page.text("p", "Mean of |W - W0| / |W0| over the layers of each kind, including those that did not change.")
    page.chart(bar_chart({c.kind: c.mean for c in changes}, x_label="mean change", number_format=".3%"))
    if any(size > 1 for change in changes for size in change.by_layer.values()):
        page.notice(
            "A change of more than 100% is usual after a merge. It lies in directions that ordinary captions do not "
            "use.",
            level="fair",
        )
    page.table(WEIGHTS_HEAD, weights_rows(changes))
    page.text("h2", "Layers that changed")
    rows = [(layer_name(layer), f"{size:.3%}") for change in changes for layer, size in change.by_layer.items()]
    page.table(("layer", "change"), rows)
    page.save(folder / "weights.html")
    return folder / "weights.html"


def write_spectra(spectra: Mapping[str, Spectrum], folder: Path) -> Path:
    """Write `spectrum.json` and `spectrum.html` into `folder`, and return the page's path."""
    _write_json(folder / "spectrum.json", {name: spectrum.values.tolist() for name, spectrum in spectra.items()})
    page = Page(title="Moongate: singular values")
    page.text("h1", "Singular values of each change")
    page.text(
        "p",
        "Each value relative to the largest of its weight, one line for each weight. A steep line is a change of low "
        "rank.",
    )
    shares = {layer_name(name): (spectrum.values / spectrum.values[0]).tolist() for name, spectrum in spectra.items()}
    # In a change of low rank nearly all values are 0: without them the curves fill the chart.
    last = max(sum(share >= LOWEST_SHARE for share in line) for line in shares.values())
    shares = {name: line[: max(2, last)] for name, line in shares.items()}
    visible = {name: [share if share >= LOWEST_SHARE else 0 for share in line] for name, line in shares.items()}
    page.chart(
        line_chart(visible, x_label="index of the singular value", y_label="relative to the largest", log_y=True)
    )
    page.text("h2", "By weight")
    page.text(
        "p",
        f"The curves have one scale, from 1 down to {LOWEST_SHARE:g}. The ranks are those that keep 60% and 95% of the "
        "sum of all values.",
    )
    curves = [
        sparkline(line, label=f"singular values of {name}", low=LOWEST_SHARE, high=1) for name, line in shares.items()
    ]
    rows: list[Sequence[str | Chart]]
    rows = [(*row, curve) for row, curve in zip(spectrum_rows(spectra), curves, strict=True)]
    page.table((*SPECTRUM_HEAD, "curve"), rows)
    page.save(folder / "spectrum.html")
    return folder / "spectrum.html"


def write_attention(pictures: Sequence[WordMaps], folder: Path) -> Path:
    """Write `attention.json`, `attention.png` and `attention.html` into `folder`, and return the page's path.

    Args:
        pictures: Pictures of one prompt, each with the maps of its words.
        folder: Where the files are written; it is created if there is none.
    """
    facts = [
        {
            "prompt": maps.picture.prompt,
            "seed": maps.picture.seed,
            "words": [{"word": word, "map": attention.round(4).tolist()} for word, attention in maps.words],
        }
        for maps in pictures
    ]
    _write_json(folder / "attention.json", facts)
    page = Page(title="Moongate: attention")
    page.text("h1", "Where the picture attends to each word")
    page.text("p", "Mean over heads, layers and steps. For each word, gray is its lowest value and red its highest.")
    groups = []
    for maps in pictures:
        title = f"{maps.picture.prompt}, seed {maps.picture.seed}"
        words = sorted(maps.words, key=lambda pair: pair[0].lower() in FUNCTION_WORDS)
        shown = [maps.picture.image, *(_heat(maps.picture.image, attention) for _, attention in words)]
        captions = ["picture", *(word for word, _ in words)]
        page.text("h2", title)
        for first in range(0, len(shown), WORDS_IN_A_ROW):
            row = slice(first, first + WORDS_IN_A_ROW)
            page.row("", shown[row], captions=captions[row])
        groups.append(SheetGroup(title=title, images=shown, labels=captions))
    sheet = grouped_sheet(groups, columns=min(WORDS_IN_A_ROW, max(len(group.images) for group in groups)))
    write_atomically(folder / "attention.png", png_bytes(sheet))
    page.save(folder / "attention.html")
    return folder / "attention.html"


def _heat(
    image: UInt8[np.ndarray, "height width 3"], attention: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture in gray, and in red where attention is high."""
    height, width = image.shape[:2]
    low, high = float(attention.min()), float(attention.max())
    spread = (attention - low) / max(high - low, 1e-9)
    mask = Image.fromarray((spread * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    strength = OPACITY * np.asarray(mask, dtype=np.float32)[..., None] / 255
    gray = np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.6
    return (gray * (1 - strength) + np.array(RED, dtype=np.float32) * strength).clip(0, 255).astype(np.uint8)


def _write_json(path: Path, facts: Any) -> None:
    write_atomically(path, (json.dumps(facts, indent=1) + "\n").encode())
