"""Captioned pictures: objects in front of a background, in a style, with a caption that names all of these.

Pure: cut-outs and panoramas come in, a `Scene` goes out; randomness is an argument.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from moongate.data.captions import with_article
from recipe.corpus.catalog import Object
from recipe.corpus.places import PLACES, PLAIN_COLORS, Panorama, draw_place

__all__ = [
    "FILTERED_STYLES",
    "FILTER_SHARE",
    "PICTURE_PX",
    "PLAIN_SHARE",
    "SIZE_PHRASES",
    "STYLES",
    "TWO_OBJECT_SHARE",
    "Scene",
    "article",
    "dominant_color",
    "make_scene",
]

PICTURE_PX = 128
STYLES = ("photo", "drawing", "3d render", "watercolor painting", "pixel art")
FILTERED_STYLES = STYLES[3:]
"""Styles that are filters over a whole picture; the others are the kinds that objects are made in."""
SIZE_PHRASES = {"small": ("far away", "very small"), "large": ("zoomed in", "close up"), "medium": ("",)}
LONG_SIDE = {"small": (0.28, 0.38), "medium": (0.6, 0.74), "large": (0.92, 1.1)}
SIZE_SHARES = {"small": 0.1, "medium": 0.8, "large": 0.1}
HALF_LONG_SIDE = (0.42, 0.5)
"""Long side of each of two objects; all as a share of the picture's side."""
JITTER = 0.04
"""Largest distance of an object from the middle of its slot, as a share of the picture's side. Objects stand in nearly
the same position in all pictures, because a small model then learns their shapes sooner, as with aligned faces."""
TWO_OBJECT_SHARE = 0.3
PLAIN_SHARE = 0.15
COLOR_WORD_SHARE = 0.3
OWN_NAME_SHARE = 0.12
FILTER_SHARE = 0.14
"""Share of pictures in a filtered style."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture and what it shows."""

    picture: np.ndarray
    """RGB uint8 [PICTURE_PX, PICTURE_PX, 3]."""
    caption: str
    categories: tuple[str, ...]
    place: str
    style: str


def article(noun_phrase: str) -> str:
    """Return a noun phrase with "a" or "an" before it; the plural "sunglasses" has neither."""
    return noun_phrase if noun_phrase.endswith("sunglasses") else with_article(noun_phrase)


def dominant_color(cutout: np.ndarray) -> str | None:
    """Name the color that covers most of a cut-out, or None where no color does.

    The names are those of the captions, with "grey" spelled as the tokenizer learned it.
    """
    small = np.asarray(Image.fromarray(cutout).resize((16, 16), Image.Resampling.BOX))
    pixels = small[small[..., 3] > 160][:, :3] / 255
    if len(pixels) < 8:
        return None
    names = [_color_name(*colorsys.rgb_to_hsv(*pixel)) for pixel in pixels]
    best = max(set(names), key=names.count)
    return best if names.count(best) >= 0.55 * len(names) else None


def _color_name(hue: float, saturation: float, value: float) -> str:
    if value < 0.22:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.75 else "grey"
    degrees = hue * 360
    if 15 <= degrees < 48 and value < 0.7:
        return "brown"
    for limit, name in ((15, "red"), (45, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (290, "purple")):
        if degrees < limit:
            return name
    return "pink" if degrees < 340 else "red"


def make_scene(
    objects: Sequence[Object],
    *,
    rng: np.random.Generator,
    panoramas: Mapping[str, Panorama],
    place: str | None = None,
    style: str | None = None,
    size: str | None = None,
) -> Scene:
    """Paint one or two objects in front of a background; what is not given is chosen at random.

    Args:
        objects: one, or two of the same kind: the first stands left, the second right.
        rng: all randomness of the scene.
        panoramas: by name, those that places need.
        place: a caption phrase, see `draw_place`.
        style: the kind of the objects, or a filtered style.
        size: a key of `SIZE_PHRASES`, for a single object.

    Returns:
        The picture, its caption and its labels.
    """
    if place is None:
        if rng.random() < PLAIN_SHARE:
            place = f"on {article(str(rng.choice(list(PLAIN_COLORS))))} background"
        else:
            place = str(rng.choice(PLACES))
    if style is None:
        style = str(rng.choice(FILTERED_STYLES)) if rng.random() < FILTER_SHARE else objects[0].kind
    if size is None:
        # Two objects need their halves, and the filtered styles leave nothing of a small object.
        free = len(objects) == 1 and style not in FILTERED_STYLES
        size = str(rng.choice(list(SIZE_SHARES), p=list(SIZE_SHARES.values()))) if free else "medium"
    canvas = Image.fromarray((draw_place(place, PICTURE_PX, rng, panoramas) * 255).astype(np.uint8))
    nouns = []
    for position, item in enumerate(objects):
        cutout = item.views[int(rng.integers(len(item.views)))]
        slot = None if len(objects) == 1 else position
        flipped = item.kind == "photo" and rng.random() < 0.5
        _paste(canvas, cutout[:, ::-1] if flipped else cutout, size=size, slot=slot, rng=rng)
        nouns.append(_noun(item, cutout, rng))
    picture = _apply_style(canvas, style)
    phrase = str(rng.choice(SIZE_PHRASES[size]))
    caption = f"{phrase} {style} of {' and '.join(map(article, nouns))} {place}".strip()
    return Scene(
        picture=np.asarray(picture),
        caption=caption,
        categories=tuple(item.category for item in objects),
        place=place,
        style=style,
    )


def _noun(item: Object, cutout: np.ndarray, rng: np.random.Generator) -> str:
    noun = item.category
    if item.name != noun and rng.random() < OWN_NAME_SHARE:
        return item.name if rng.random() < 0.4 or noun in item.name else f"{item.name} {noun}"
    if rng.random() < COLOR_WORD_SHARE and (color := dominant_color(cutout)):
        noun = f"{color} {noun}"
    return noun


def _paste(canvas: Image.Image, cutout: np.ndarray, *, size: str, slot: int | None, rng: np.random.Generator) -> None:
    """Put a cut-out onto the canvas, in the left (0) or right (1) half when `slot` is given."""
    ys, xs = np.nonzero(cutout[..., 3] > 16)
    if not len(xs):
        return
    image = Image.fromarray(np.ascontiguousarray(cutout)).crop((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    low, high = LONG_SIDE[size] if slot is None else HALF_LONG_SIDE
    scale = rng.uniform(low, high) * PICTURE_PX / max(image.size)
    width, height = (max(2, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    middle = 0.5 if slot is None else 0.25 + 0.5 * slot
    left = round((middle + rng.uniform(-JITTER, JITTER)) * PICTURE_PX - image.width / 2)
    if size == "large":
        top = round(rng.uniform(0.35, 0.65) * (PICTURE_PX - image.height))
    else:
        top = max(1, round((0.88 + rng.uniform(-JITTER, JITTER)) * PICTURE_PX) - image.height)
        _shadow(canvas, left, top, image)
    canvas.paste(image, (left, top), image)


def _shadow(canvas: Image.Image, left: int, top: int, image: Image.Image) -> None:
    width, height = image.width, max(3, image.width // 6)
    y, x = np.mgrid[: 2 * height, :width]
    inside = ((x - width / 2) / (width / 2)) ** 2 + ((y - height) / height) ** 2
    alpha = Image.fromarray((90 * np.clip(1 - inside, 0, 1)).astype(np.uint8))
    canvas.paste((15, 15, 20), (left, top + image.height - height), alpha)


def _apply_style(image: Image.Image, style: str) -> Image.Image:
    if style == "watercolor painting":
        soft = image.filter(ImageFilter.ModeFilter(5)).filter(ImageFilter.SMOOTH_MORE)
        values = np.asarray(soft, np.float32) / 255
        gray = values.mean(-1, keepdims=True)
        values = 0.97 * (0.16 + 0.86 * (gray + 1.2 * (values - gray)))
        return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))
    if style == "pixel art":
        small = image.resize((32, 32), Image.Resampling.BOX).quantize(16)
        return small.convert("RGB").resize(image.size, Image.Resampling.NEAREST)
    return image
