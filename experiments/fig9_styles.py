"""Fig. 9: a style is taught, alone and together with a subject."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.layers import Part
from experiments.pictures import Row
from experiments.records import Record, Results
from experiments.rendering import labeled_rows, table
from experiments.scores import BASE, OURS
from experiments.styles import STYLES, style_pictures

TITLE = "Fig. 9: styles"
FIGURE = "fig9"
ALONE = tuple(f"{{}} of a {thing}" for thing in ("house in the snow", "teapot on the beach", "dog in a garden", "car"))
WITH_SUBJECT = ("{0} of a {1}", "{0} of a {1} on the beach", "{0} of a {1} in a garden", "{0} of a {1} in a city")
SUBJECTS = ("drawn-penguin", "chairWithCushion")
WAYS = {"merge": "with a subject, merged", "joint": "with a subject, taught together"}


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    for style, subject in zip(STYLES, SUBJECTS, strict=True):
        yield from (Row((style,), method, ALONE, FIGURE) for method in (BASE, OURS))
        yield from (Row((style, subject), way, WITH_SUBJECT, FIGURE) for way in WAYS)
        yield from (Part(style, part) for part in ("token", "whole"))


def report(results: Results, out: Path) -> str:
    """Return the pictures of each style, and how near they are to held-out ones."""
    text = (
        "The styles are made by code (`experiments/styles.py`) from 14 photos, and captioned like "
        '"<woodcut> drawing of a car in a room". Image alignment is measured with pictures in the style that no '
        "training saw.\n\n"
    )
    rows = []
    for style in STYLES:
        for part, name in (("token", "token alone"), ("whole", "token and weights")):
            values = results[Part(style, part)]["image"]
            rows.append((style, name, *(f"{values[network]:.3f}" for network in values)))
    text += table(("style", "applied", "image alignment", "image alignment (Lite0)"), rows)
    for style, subject in zip(STYLES, SUBJECTS, strict=True):
        shown = {
            "taught pictures": Image.fromarray(np.concatenate(style_pictures(style).training[:4], axis=1)),
            "pocket itself (a drawing)": results.picture(Row((style,), BASE, ALONE, FIGURE)),
            "our method": results.picture(Row((style,), OURS, ALONE, FIGURE)),
            **{
                f"{name} ({subject})": results.picture(Row((style, subject), way, WITH_SUBJECT, FIGURE))
                for way, name in WAYS.items()
            },
        }
        text += f"\n{style}:\n\n" + labeled_rows(shown, out / f"{FIGURE}_{style}.webp")
    return text
