"""What pocket's pictures show: its categories, the objects of each, and which objects are held out.

`catalog.json` lists for each category its 3-D models and its drawings, `split.json` the held-out ones. The split is by
object, never by picture, and it is made before anything is rendered. This module knows nothing of scenes or captions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moongate.errors import CorpusError

__all__ = [
    "CATALOG",
    "DRAWN_CONCEPTS",
    "HELD_OUT_MODELS",
    "SPLIT",
    "Object",
    "is_example",
    "is_held_out",
    "read_objects",
]

_HERE = Path(__file__).parent
CATALOG: dict[str, dict[str, Any]] = json.loads((_HERE / "catalog.json").read_text())
"""For each category its `models`, its `drawings` and, where it is not 0, the `azimuth` of its front in degrees."""
SPLIT: dict[str, dict[str, Any]] = json.loads((_HERE / "split.json").read_text())
"""Held-out `models` by category, and the held-out design family of each category in `drawing_families`."""
HELD_OUT_MODELS = {key for keys in SPLIT["models"].values() for key in keys}
DRAWN_CONCEPTS = ("cat", "house", "owl", "penguin", "snowman", "teapot")
"""Categories whose held-out drawings become example concepts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Object:
    """One object that can be put into pictures."""

    key: str
    """Its library or design family, a slash, and its name there."""
    category: str
    name: str
    """The name its maker gave it, in lower case."""
    kind: str
    """The style it is made in: `photo` for 3-D models, `drawing` or `3d render` for icons."""
    views: Sequence[np.ndarray]
    """Cut-outs, RGBA uint8 [height, width, 4] with straight alpha."""


def is_held_out(item: Object) -> bool:
    """Return whether the split keeps an object out of training."""
    family = item.key.split("/")[0]
    return item.key in HELD_OUT_MODELS or SPLIT["drawing_families"].get(item.category) == family


def is_example(item: Object) -> bool:
    """Return whether an object becomes one of pocket's example concepts."""
    return is_held_out(item) and (item.kind == "photo" or item.category in DRAWN_CONCEPTS)


def read_objects(path: Path) -> list[Object]:
    """Read the objects and their cut-outs from `cutouts.npz`.

    Raises:
        CorpusError: there is no such file.
    """
    if not path.is_file():
        raise CorpusError(
            f"There are no cut-outs {path}. Run `python -m recipe.corpus.build --out {path.parent}` first."
        )
    with np.load(path) as archive:
        rows = json.loads(str(archive["objects"]))
        return [
            Object(
                key=row["key"],
                category=row["category"],
                name=row["name"],
                kind=row["kind"],
                views=archive[row["key"]],
            )
            for row in rows
        ]
