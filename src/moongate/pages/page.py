"""Self-contained HTML pages: one file that opens anywhere, without a network, on small and large screens.

Pictures, charts and the style (`*.css`) are part of the file. The style follows the reader's choice of light or dark.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from moongate.files import write_atomically
from moongate.pages.charts import Chart

__all__ = ["Cell", "Level", "Page", "style"]

Level = Literal["good", "fair", "bad"]
"""How good news is, shown by a color."""
PICTURE_PX = 144
"""Height of a picture on a wide page; on a narrow one it is three fifths of that, so that four fit."""
STORED_PX = 2 * PICTURE_PX
"""Largest height that a page stores, for screens with two dots for each CSS pixel."""
LARGEST_WIDTH_PX = 8 * PICTURE_PX
"""Width of a very wide picture; it is then lower than others."""


@dataclass(frozen=True)
class Cell:
    """A text in a table, colored by how good it is."""

    text: str
    level: Level


@dataclass(kw_only=True)
class Page:
    """A page that grows from top to bottom. Texts are escaped."""

    title: str
    refresh_s: int | None = None
    """Seconds after which a browser loads the page again, for one that still changes; None for a finished page."""
    _parts: list[str] = field(default_factory=list, init=False, repr=False)

    def text(self, tag: str, text: str) -> None:
        """Add an element that holds text, such as h1, h2 or p."""
        self._parts.append(f"<{tag}>{html.escape(text)}</{tag}>")

    def notice(self, text: str, *, level: Level) -> None:
        """Add a paragraph that stands out, in the color of good or bad news."""
        self._parts.append(f'<div class="notice {level}">{html.escape(text)}</div>')

    def row(self, label: str, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, captions: Sequence[str] = ()) -> None:
        """Add pictures side by side, in their proportions and all of one height.

        Args:
            label: Text above the pictures. With it, the captions and the numbers of the pictures, it is also what
                screen readers say instead of a picture.
            images: Pictures, each uint8 [height, width, 3].
            captions: A text below each picture, or none at all.
        """
        texts = captions or [""] * len(images)
        pictures = "".join(
            _figure(image, _alt(label, caption, number, len(images)), caption)
            for number, (image, caption) in enumerate(zip(images, texts, strict=True), start=1)
        )
        shown = f'<div class="label">{html.escape(label)}</div>' if label else ""
        self._parts.append(f'<div class="row">{shown}<div class="pictures">{pictures}</div></div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str | Cell | Chart]]) -> None:
        """Add a table with one line of headings; its cells are texts, colored texts or charts."""
        lines = ["".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)]
        lines += ["".join(map(_cell, row)) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        self._parts.append(f'<div class="table"><table>{body}</table></div>')

    def chart(self, chart: Chart) -> None:
        """Add a chart made by `line_chart` or `bar_chart`."""
        self._parts.append(chart.html)

    def save(self, path: Path) -> None:
        """Write the page to `path`, whole or not at all.

        Raises:
            OptionError: If the file cannot be written.
        """
        again = f'<meta http-equiv="refresh" content="{self.refresh_s}">' if self.refresh_s else ""
        head = (
            f'{again}<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{style('colors', 'style', 'charts')}</style>"
        )
        body = f"<main>{''.join(self._parts)}</main>"
        write_atomically(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'.encode())


def style(*names: str) -> str:
    """Return style sheets of this package, such as `colors`, one after the other."""
    folder = files("moongate.pages")
    return "".join(folder.joinpath(f"{name}.css").read_text(encoding="utf-8") for name in names)


def _cell(cell: str | Cell | Chart) -> str:
    if isinstance(cell, Chart):
        return f"<td>{cell.html}</td>"
    if isinstance(cell, Cell):
        return f'<td class="{cell.level}">{html.escape(cell.text)}</td>'
    return f"<td>{_breakable(cell)}</td>"


def _breakable(text: str) -> str:
    """Return a text in HTML whose dotted names, such as those of weights, break behind their dots and nowhere else."""
    escaped = html.escape(text)
    if " " in text or text.count(".") < 2:
        return escaped
    return f'<span class="dotted">{escaped.replace(".", ".<wbr>")}</span>'


def _alt(label: str, caption: str, number: int, count: int) -> str:
    """Return what stands for a picture where it cannot be seen."""
    return ": ".join(part for part in (label, caption) if part) or f"picture {number} of {count}"


def _figure(image: UInt8[np.ndarray, "height width 3"], alt: str, caption: str) -> str:
    height, width = image.shape[:2]
    shown_px = min(round(PICTURE_PX * width / height), LARGEST_WIDTH_PX)
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure style="--width:{shown_px}"><img alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'src="{_data_url(image)}">{below}</figure>'
    )


def _data_url(image: UInt8[np.ndarray, "height width 3"]) -> str:
    picture = Image.fromarray(image)
    if picture.height > STORED_PX:
        size = max(1, round(picture.width * STORED_PX / picture.height)), STORED_PX
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WebP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
