"""Contact sheets and PNG files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moongate.pages.letters import draw_text, text_width_px

__all__ = ["SheetGroup", "contact_sheet", "grouped_sheet", "png_bytes"]

Picture = UInt8[np.ndarray, "height width 3"]
LINE_HEIGHT = 1.25
"""Distance of two lines of text, relative to the size of its letters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetGroup:
    """Pictures that belong together on a contact sheet: they begin in a row of their own, below a title."""

    title: str
    images: Sequence[Picture]
    labels: Sequence[str]
    """A label for each picture, or none at all."""


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    *,
    columns: int,
    labels: Sequence[str] = (),
    padding_px: int = 4,
) -> Image.Image:
    """Put pictures of one size side by side on white, row by row, each with its label below.

    Args:
        images: Pictures of one size, each uint8 [height, width, 3].
        columns: Pictures in a row.
        labels: A label for each picture, or none at all. A row is as high as its longest label, wrapped.
        padding_px: Space around each picture.
    """
    return grouped_sheet([SheetGroup(title="", images=images, labels=labels)], columns=columns, padding_px=padding_px)


def grouped_sheet(groups: Sequence[SheetGroup], *, columns: int, heading: str = "", padding_px: int = 4) -> Image.Image:
    """Put groups of pictures below each other, each with a title above and a label below each picture.

    Args:
        groups: At least one, with pictures of one size.
        columns: Pictures in a row.
        heading: Text above everything.
        padding_px: Space around each picture.
    """
    width = groups[0].images[0].shape[1]
    letter_px = max(12, width // 14)
    full_px = columns * (width + padding_px) - padding_px
    blocks = [_text_block(heading, letter_px, full_px)] if heading else []
    for group in groups:
        blocks += [_text_block(group.title, letter_px, full_px)] if group.title else []
        labels = group.labels or [""] * len(group.images)
        for first in range(0, len(group.images), columns):
            row = slice(first, first + columns)
            blocks.append(_row_block(group.images[row], labels[row], letter_px, padding_px))
    tops = list(accumulate((block.height + padding_px for block in blocks), initial=padding_px))
    sheet = Image.new("RGB", (full_px + 2 * padding_px, tops[-1]), "white")
    for block, top in zip(blocks, tops, strict=False):
        sheet.paste(block, (padding_px, top))
    return sheet


def png_bytes(
    image: UInt8[np.ndarray, "height width 3"] | Image.Image,
    *,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return the content of a PNG file.

    Args:
        image: A picture, uint8 [height, width, 3], or a Pillow image.
        texts: What the file says of itself, by keyword.
    """
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _row_block(images: Sequence[Picture], labels: Sequence[str], letter_px: int, padding_px: int) -> Image.Image:
    """Return one row of pictures with their labels."""
    height, width = images[0].shape[:2]
    below = [_text_block(label, letter_px, width) if label else None for label in labels]
    row_height = height + max((block.height for block in below if block), default=0)
    row = Image.new("RGB", (len(images) * (width + padding_px) - padding_px, row_height), "white")
    for index, (image, block) in enumerate(zip(images, below, strict=True)):
        left = index * (width + padding_px)
        row.paste(Image.fromarray(image), (left, 0))
        if block:
            row.paste(block, (left, height))
    return row


def _text_block(text: str, letter_px: int, width: int) -> Image.Image:
    """Return a picture of a text, wrapped to a width."""
    lines = _wrapped(text, letter_px, width)
    line_px = round(letter_px * LINE_HEIGHT)
    block = Image.new("RGB", (width, len(lines) * line_px + 2), "white")
    for index, line in enumerate(lines):
        draw_text(block, (0, index * line_px), line, letter_px)
    return block


def _wrapped(text: str, letter_px: int, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words where it can be."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width_px(longer, letter_px) <= width:
            lines[-1] = longer
            continue
        pieces = _pieces(word, letter_px, width)
        lines = [*lines, *pieces] if lines[-1] else pieces
    return lines


def _pieces(word: str, letter_px: int, width: int) -> list[str]:
    """Break a word into pieces that fit, as scripts without spaces need it."""
    pieces = [word[:1]]
    for letter in word[1:]:
        if text_width_px(pieces[-1] + letter, letter_px) > width:
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces
