"""Self-contained HTML pages: text, tables and rows of pictures in one file that opens anywhere."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from moongate.files import write_atomically

__all__ = ["Page", "contact_sheet"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.1rem; margin-top: 2rem } p { max-width: 45rem }
.row { display: flex; gap: .8rem; align-items: center; margin: .3rem 0 }
.row code { flex: 0 0 12rem; font-size: .85rem } .row div { display: flex; flex-wrap: wrap; gap: .4rem }
img { width: 128px; height: 128px; border-radius: 4px }
svg { background: #f6f6f6; border-radius: 4px } .note { color: #666; font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
td, th { padding: .2rem 1.4rem .2rem 0; text-align: left; vertical-align: top }
tr + tr { border-top: 1px solid #ddd } .table { overflow-x: auto }
"""


@dataclass(kw_only=True)
class Page:
    """A page that grows from top to bottom. Text is escaped."""

    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, tag: str, text: str) -> None:
        """Add an element that holds text: h1, h2, p."""
        self.parts.append(f"<{tag}>{html.escape(text)}</{tag}>")

    def row(self, label: str, images: Sequence[np.ndarray]) -> None:
        """Add uint8 pictures [height, width, 3] side by side, with a label before them when it is not empty."""
        pictures = "".join(f'<img alt="{html.escape(label)}" src="{_data_url(image)}">' for image in images)
        code = f"<code>{html.escape(label)}</code>" if label else ""
        self.parts.append(f'<div class="row">{code}<div>{pictures}</div></div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table with one line of headings."""
        lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        self.parts.append(f'<div class="table"><table>{body}</table></div>')

    def save(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        head = f"<meta charset=utf-8><title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        write_atomically(path, f"<!doctype html>{head}{''.join(self.parts)}".encode())


def _data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WebP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(
    images: Sequence[np.ndarray], *, columns: int, labels: Sequence[str] = (), padding_px: int = 4
) -> Image.Image:
    """Put pictures of one size side by side on white, row by row, each with its label below."""
    height, width = images[0].shape[:2]
    font_px = max(10, width // 12)
    font = ImageFont.load_default(size=font_px)
    lines = [_wrapped(label, font, width) if label else [] for label in labels]
    longest = [max(map(len, lines[first : first + columns]), default=0) for first in range(0, len(images), columns)]
    below = list(accumulate((height + rows * (font_px + 3) + padding_px for rows in longest), initial=padding_px))
    sheet = Image.new("RGB", (columns * (width + padding_px) + padding_px, below[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = padding_px + index % columns * (width + padding_px), below[index // columns]
        sheet.paste(Image.fromarray(image), (left, top))
        if lines:
            draw.multiline_text((left, top + height), "\n".join(lines[index]), fill="black", font=font, spacing=2)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
