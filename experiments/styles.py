"""Two styles that pocket has not seen, made from photos of its pool by code (paper, Fig. 9).

The paper's are 13 and 15 paintings by two artists, captioned "A painting in the style of V* art". Ours are captioned
"<woodcut> drawing of a car in a room": `drawing` is the category that pocket knows.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from moongate import Subject, pocket
from moongate.data.pictures import read_picture

__all__ = ["STYLES", "STYLE_CATEGORY", "StylePictures", "style_pictures", "style_subject"]

STYLE_CATEGORY = "drawing"
TRAINING, HELD_OUT = 14, 16
LINE_PX = 6
"""Distance of the lines of a woodcut."""
INK, PAPER = np.array([24, 24, 84]), np.array([244, 232, 204])
POSTER = np.array([[20, 12, 60], [150, 20, 110], [236, 84, 60], [250, 176, 72], [255, 244, 200]])
"""Colors of a poster, from dark to light."""
LUMINANCE = np.array([0.299, 0.587, 0.114])

Picture = UInt8[np.ndarray, "height width 3"]


def woodcut(light: Float[np.ndarray, "height width"]) -> Picture:
    """Return dark lines on paper, the thicker the darker the picture is; `light` is in 0..1."""
    row = np.arange(len(light)) % LINE_PX
    threshold = (np.abs(row - LINE_PX / 2) + 0.5) / (LINE_PX / 2 + 1)
    return np.where((light < threshold[:, None])[..., None], INK, PAPER).astype(np.uint8)


def poster(light: Float[np.ndarray, "height width"]) -> Picture:
    """Return a picture of five flat colors; `light` is in 0..1."""
    return POSTER[np.minimum((light * len(POSTER)).astype(int), len(POSTER) - 1)].astype(np.uint8)


STYLES: Mapping[str, Callable[[Float[np.ndarray, "height width"]], Picture]] = {"woodcut": woodcut, "poster": poster}
"""How each style draws the luminance of a photo."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StylePictures:
    """Pictures in one style."""

    training: tuple[Picture, ...]
    captions: tuple[str, ...]
    """Of the training pictures, each with `{}` for the words of the style."""
    held_out: tuple[Picture, ...]


@cache
def style_pictures(name: str) -> StylePictures:
    """Return the pictures of a style: photos of the pool, spread over its categories, drawn in it."""
    rows = [json.loads(line) for line in (pocket.pool_folder() / "metadata.jsonl").read_text().splitlines()]
    photos = [row for row in rows if row["caption"].startswith("photo of") and len(row["categories"]) == 1]
    chosen = sorted(photos, key=lambda row: str(row["categories"]))[:: len(photos) // (TRAINING + HELD_OUT)]
    pictures = [STYLES[name](_light(read_picture(pocket.pool_folder() / row["file_name"]))) for row in chosen]
    captions = [re.sub("^photo", "{}", str(row["caption"])) for row in chosen]
    return StylePictures(
        training=tuple(pictures[::2][:TRAINING]),
        captions=tuple(captions[::2][:TRAINING]),
        held_out=tuple(pictures[1::2][:HELD_OUT]),
    )


def style_subject(name: str) -> Subject:
    """Return a style as a subject to teach."""
    found, token = style_pictures(name), f"<{name}>"
    captions = tuple(caption.replace("{}", f"{token} {STYLE_CATEGORY}") for caption in found.captions)
    return Subject(pictures=found.training, captions=captions, category=STYLE_CATEGORY, token=token)


def _light(picture: Picture) -> Float[np.ndarray, "height width"]:
    """Return the luminance, stretched to 0..1."""
    values = picture @ LUMINANCE
    low, high = np.quantile(values, [0.02, 0.98])
    return np.asarray((values - low) / max(high - low, 1.0)).clip(0, 1)
