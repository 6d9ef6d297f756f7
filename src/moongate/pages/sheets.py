"""Contact sheets and PNG files."""

import io
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet", "png_bytes"]


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
    height, width = images[0].shape[:2]
    font_px = max(10, width // 12)
    font = ImageFont.load_default(size=font_px)
    lines = [_wrapped(label, font, width) if label else [] for label in labels]
    longest = [max(map(len, lines[first : first + columns]), default=0) for first in range(0, len(images), columns)]
    tops = list(accumulate((height + rows * (font_px + 3) + padding_px for rows in longest), initial=padding_px))
    sheet = Image.new("RGB", (columns * (width + padding_px) + padding_px, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = padding_px + index % columns * (width + padding_px), tops[index // columns]
        sheet.paste(Image.fromarray(image), (left, top))
        if lines:
            draw.multiline_text((left, top + height), "\n".join(lines[index]), fill="black", font=font, spacing=2)
    return sheet


def png_bytes(image: UInt8[np.ndarray, "height width 3"] | Image.Image) -> bytes:
    """Return the content of a PNG file that holds the picture, uint8 [height, width, 3] or a Pillow image."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word that is longer has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
