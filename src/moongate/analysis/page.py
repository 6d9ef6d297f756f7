"""What was found in a concept as files for people and programs: JSON, a self-contained page, PNG pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moongate.analysis import KindOfChange, Spectrum, WordMaps
from moongate.files import write_atomically
from moongate.pages import Page, bar_chart, contact_sheet, line_chart

__all__ = [
    "SPECTRUM_HEAD",
    "WEIGHTS_HEAD",
    "spectrum_rows",
    "weights_rows",
    "write_attention",
    "write_spectra",
    "write_weights",
]

WEIGHTS_HEAD = ("kind of layer", "mean change", "layers", "changed", "share of the parameters")
SPECTRUM_HEAD = ("weight", "largest", "rank at 60 %", "rank at 95 %", "of")


def weights_rows(changes: Sequence[KindOfChange]) -> list[Sequence[str]]:
    """Return one row of text for each kind of layer, in the order of `WEIGHTS_HEAD`."""
    return [(c.kind, f"{c.mean:.3%}", str(c.layers), str(c.changed), f"{c.share:.1%}") for c in changes]


def spectrum_rows(found: Mapping[str, Spectrum]) -> list[Sequence[str]]:
    """Return one row of text for each weight, in the order of `SPECTRUM_HEAD`."""
    return [
        (name, f"{s.values[0]:.3g}", str(s.rank(0.6)), str(s.rank(0.95)), str(len(s.values)))
        for name, s in found.items()
    ]


def write_weights(changes: Sequence[KindOfChange], folder: Path) -> Path:
    """Write `weights.json` and `weights.html`, and return the page."""
    facts = [{**vars(change), "by_layer": dict(change.by_layer)} for change in changes]
    _write_json(folder / "weights.json", facts)
    page = Page(title="Moongate: change of weights")
    page.text("h1", "Change of weights by kind of layer")
    page.text("p", "Mean of |W - W0| / |W0| over the layers of each kind, those that stayed included.")
    page.table(WEIGHTS_HEAD, weights_rows(changes))
    page.chart(bar_chart({c.kind: c.mean for c in changes}, x_label="mean change", number_format=".3%"))
    page.text("h2", "Layers that changed")
    rows = [(layer, f"{rate:.3%}") for change in changes for layer, rate in change.by_layer.items()]
    page.table(("layer", "change"), rows)
    page.save(folder / "weights.html")
    return folder / "weights.html"


def write_spectra(found: Mapping[str, Spectrum], folder: Path) -> Path:
    """Write `spectrum.json` and `spectrum.html`, and return the page."""
    _write_json(folder / "spectrum.json", {name: spectrum.values.tolist() for name, spectrum in found.items()})
    page = Page(title="Moongate: singular values")
    page.text("h1", "Singular values of each change")
    page.text("p", "Each value relative to the largest of its weight; one line for each weight.")
    shares = {name: (spectrum.values / spectrum.values[0]).tolist() for name, spectrum in found.items()}
    page.chart(line_chart(shares, x_label="index of the singular value", y_label="relative to the largest"))
    page.table(SPECTRUM_HEAD, spectrum_rows(found))
    page.save(folder / "spectrum.html")
    return folder / "spectrum.html"


def write_attention(found: Sequence[WordMaps], folder: Path) -> Path:
    """Write `attention.json`, `attention.png` and `attention.html`, and return the page."""
    facts = [
        {
            "prompt": maps.picture.prompt,
            "seed": maps.picture.seed,
            "words": [{"word": word, "map": where.round(4).tolist()} for word, where in maps.words],
        }
        for maps in found
    ]
    _write_json(folder / "attention.json", facts)
    page = Page(title="Moongate: attention")
    page.text("h1", "Where each word was attended to")
    page.text("p", "Mean over heads, layers and steps, from each word's own least value (gray) to its largest (red).")
    images, labels = [], []
    for maps in found:
        shown = [maps.picture.image, *(_heat(maps.picture.image, where) for _, where in maps.words)]
        page.text("h2", f"{maps.picture.prompt}, seed {maps.picture.seed}")
        for word, image in zip(("picture", *(word for word, _ in maps.words)), shown, strict=True):
            page.row(word, [image])
            images.append(image)
            labels.append(word)
    sheet = contact_sheet(images, columns=len(images) // len(found), labels=labels)
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "attention.png")
    page.save(folder / "attention.html")
    return folder / "attention.html"


def _heat(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the picture in gray, and red where the word looked."""
    height, width = image.shape[:2]
    spread = (where - where.min()) / max(float(where.max() - where.min()), 1e-9)
    mask = Image.fromarray((spread * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.asarray(mask, dtype=np.float32)[..., None] / 255
    gray = np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.6
    return (gray * (1 - strength) + np.array([255, 60, 20], dtype=np.float32) * strength).clip(0, 255).astype(np.uint8)


def _write_json(path: Path, facts: Any) -> None:
    write_atomically(path, (json.dumps(facts, indent=1) + "\n").encode())
