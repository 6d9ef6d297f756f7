"""Fig. 10: edits with the words that were taught, by prompt-to-prompt."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np

from experiments.edits import MEASURES, PLACE, STYLE, WAYS, EditRecord
from experiments.records import Record, Results
from experiments.rendering import interval, save_sheet, table
from moongate.pages import contact_sheet

TITLE = "Fig. 10: edits by prompt-to-prompt"
SUBJECT, COLOR = "a taught subject", "add a color"
PLACES = ("on the beach", "in the snow", "in a forest", "in a meadow", "in the desert")
TAUGHT = {"bulldog": "dog", "sneakers": "shoe"}
"""Examples that are put in the place of their category."""
STRENGTH = 2.0
"""Weight of the attention to an added color."""
SHOWN = 2
"""Edits of each kind in the figure."""


def records() -> Iterator[Record]:
    """Yield the forty edits."""
    yield from edits()


def edits() -> Iterator[EditRecord]:
    """Yield ten edits of each kind."""
    for example, category in TAUGHT.items():
        for noise, place in enumerate(PLACES):
            words = f"<{example}> {category}"
            yield EditRecord(
                SUBJECT, f"photo of a {category} {place}", f"photo of a {words} {place}", example, None, noise
            )
    categories = ("car", "teapot", "horse", "backpack", "lamp", "vase", "teddy bear", "house", "penguin", "chair")
    for noise, category in enumerate(categories):
        before, after = PLACES[noise % 5], PLACES[(noise + 1) % 5]
        yield EditRecord(PLACE, f"photo of a {category} {before}", f"photo of a {category} {after}", noise=noise)
    for noise, category in enumerate(categories):
        style = ("watercolor painting", "drawing", "pixel art", "3d render")[noise % 4]
        place = PLACES[noise % 5]
        yield EditRecord(STYLE, f"photo of a {category} {place}", f"{style} of a {category} {place}", noise=100 + noise)
    for noise, category in enumerate(categories):
        color, place = ("red", "blue", "green", "yellow")[noise % 4], PLACES[noise % 5]
        target = f"photo of a {color} {category} {place}"
        yield EditRecord(COLOR, f"photo of a {category} {place}", target, None, (color, STRENGTH), 200 + noise)


def report(results: Results, out: Path) -> str:
    """Write the figure, and return a table for each measure."""
    kinds: dict[str, list[EditRecord]] = {}
    for record in edits():
        kinds.setdefault(record.kind, []).append(record)
    images, labels = [], []
    for shown in (record for same in kinds.values() for record in same[: 5 * SHOWN : 5]):
        row = np.asarray(results.picture(shown))
        images += np.split(row, len(WAYS) + 1, axis=1)
        labels += [shown.source, f"{shown.target}, with control", "without"]
    sheet = contact_sheet(images, columns=2 * (len(WAYS) + 1), labels=labels)
    text = (
        "Each edit is drawn from the noise of its source, with attention control (prompt-to-prompt's shares of 0.8 and "
        "0.4) and without. Inside is where the recognizer sees the object; for another place it is the rest of the "
        "picture, for another style all of it. Structure and features are those of EfficientNet-Lite0, text alignment "
        "that of pocket-clip. Means with 95 % intervals over the edits, whose number follows where it is not ten: an "
        "edit of the whole picture has no outside.\n\n"
    ) + save_sheet(sheet, out / "fig10_editing.webp")
    for name, title in MEASURES.items():
        rows = [(kind, *(_mean(results, same, way, name) for way in WAYS)) for kind, same in kinds.items()]
        text += f"\n**{title}**\n\n" + table(("edit", *WAYS), rows)
    return text


def _mean(results: Results, same: list[EditRecord], way: str, name: str) -> str:
    values = [results[record]["ways"][way][name] for record in same]
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    number = f", {len(values)} edits" if len(values) < len(same) else ""
    return interval([[value] for value in values], digits=1 if mean(values) > 1 else 3) + number
