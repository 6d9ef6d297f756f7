"""Pages and pictures for people: self-contained HTML files, charts, contact sheets and PNG files.

A page is one file that opens anywhere, without a network: pictures and charts are part of it. This module alone writes
HTML and SVG. It knows nothing of models or concepts.
"""

import base64
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NewType

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from moongate.files import write_atomically

__all__ = ["Chart", "Page", "bar_chart", "contact_sheet", "line_chart", "png_bytes"]

Chart = NewType("Chart", str)
"""An SVG drawing that `line_chart` or `bar_chart` made."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.1rem; margin-top: 2rem } p { max-width: 45rem }
h1, h2, p, code { overflow-wrap: anywhere }
.row { display: flex; gap: .8rem; align-items: center; margin: .3rem 0 }
.row code { flex: 0 0 12rem; font-size: .85rem } .row div { display: flex; flex-wrap: wrap; gap: .4rem }
img { width: 128px; height: 128px; border-radius: 4px }
figure { margin: 0; width: 128px } figcaption { font-size: .85rem; overflow-wrap: anywhere }
svg { display: block; width: 100%; max-width: 40rem; margin: .8rem 0; font-size: 12px }
svg text { fill: #444 } svg .grid { stroke: #e2e2e2 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
td, th { padding: .2rem 1.4rem .2rem 0; text-align: left; vertical-align: top }
td:first-child { overflow-wrap: anywhere; min-width: 6rem }
tr + tr { border-top: 1px solid #ddd } .table { overflow-x: auto }
@media (max-width: 40rem) {
  .row { flex-wrap: wrap } .row code { flex-basis: 100% } svg { font-size: 14px } td, th { padding-right: .8rem }
}
"""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a67c00")
"""Colors that people with color blindness can tell apart (Okabe and Ito); more lines than these share one color."""
CHART_PX = (480, 230)
"""Width and height of a line chart before it is scaled to the page."""
MARGIN_PX = (12, 12, 44, 60)
"""Top, right, bottom (for the numbers and the label) and left (likewise)."""
LEGEND_PX = 22
"""Height of the legend, which is above the chart."""
BAR_PX, BAR_STEP_PX, BAR_LABEL_PX = 14, 24, 130
LETTER_PX = 8
"""Width of a letter at the charts' largest font size, rounded up."""


@dataclass(kw_only=True)
class Page:
    """A page that grows from top to bottom. Texts are escaped."""

    title: str
    _parts: list[str] = field(default_factory=list, init=False, repr=False)

    def text(self, tag: str, text: str) -> None:
        """Add an element that holds text, such as h1, h2 or p."""
        self._parts.append(f"<{tag}>{html.escape(text)}</{tag}>")

    def row(self, label: str, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, captions: Sequence[str] = ()) -> None:
        """Add pictures side by side.

        Args:
            label: Text before the pictures; none when it is empty.
            images: Pictures, each uint8 [height, width, 3].
            captions: A text below each picture, or none at all.
        """
        texts = captions or [""] * len(images)
        pictures = "".join(_figure(image, label, caption) for image, caption in zip(images, texts, strict=True))
        code = f"<code>{html.escape(label)}</code>" if label else ""
        self._parts.append(f'<div class="row">{code}<div>{pictures}</div></div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table with one line of headings."""
        lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        self._parts.append(f'<div class="table"><table>{body}</table></div>')

    def chart(self, chart: Chart) -> None:
        """Add a chart made by `line_chart` or `bar_chart`."""
        self._parts.append(chart)

    def save(self, path: Path) -> None:
        """Write the page to `path`, whole or not at all.

        Raises:
            OptionError: If the file cannot be written.
        """
        head = (
            '<meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        )
        write_atomically(path, f"<!doctype html>{head}{''.join(self._parts)}".encode())


def line_chart(lines: Mapping[str, Sequence[float]], *, x_label: str, y_label: str, x_first: float = 1) -> Chart:
    """Draw lines over a common x axis in steps of one; the y axis begins at 0 unless a value is below it.

    Args:
        lines: Values of each line by name. Up to six lines have colors and a legend; more share one color, and a
            browser shows a line's name under the pointer. A value that is not finite leaves a gap.
        x_label: What the x axis shows.
        y_label: What the y axis shows.
        x_first: Position of each line's first value on the x axis.
    """
    few = len(lines) <= len(COLORS)
    top_px, right_px, bottom_px, left_px = MARGIN_PX
    top_px += LEGEND_PX if few else 0
    width, height = CHART_PX
    finite = [float(value) for values in lines.values() for value in values if math.isfinite(value)]
    x = _Scale.of([x_first, x_first + max(map(len, lines.values()), default=0) - 1], left_px, width - right_px)
    y = _Scale.of([0.0, *finite], height - bottom_px, top_px)
    parts = [*_axis_y(y, y_label, x), *_axis_x(x, x_label, (top_px, height - bottom_px), height)]
    for index, (name, values) in enumerate(lines.items()):
        color, opacity = (COLORS[index], 1) if few else (COLORS[0], 0.4)
        for points in _unbroken(values, x_first):
            path = " ".join(f"{x.px(position):.1f},{y.px(value):.1f}" for position, value in points)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" stroke-opacity="{opacity}" '
                f'stroke-width="1.5"><title>{html.escape(name)}</title></polyline>'
            )
    parts += _legend(list(lines), left_px) if few else []
    return _svg(parts, width, height, f"{y_label} by {x_label}")


def bar_chart(bars: Mapping[str, float], *, x_label: str, number_format: str = ".3g") -> Chart:
    """Draw a horizontal bar for each name, from 0 to its value, with the value written at its end.

    Args:
        bars: Values by name, each at least 0 and finite.
        x_label: What the bars' length shows.
        number_format: How values are written, as in `format`, such as ".1%".
    """
    width, height = CHART_PX[0], 22 + BAR_STEP_PX * len(bars)
    longest = max(bars.values(), default=0.0) or 1.0
    room = width - BAR_LABEL_PX - 60  # for the value behind the longest bar
    parts = [f'<text x="{BAR_LABEL_PX}" y="14">{html.escape(x_label)}</text>']
    for index, (name, value) in enumerate(bars.items()):
        top = 22 + BAR_STEP_PX * index
        length = room * value / longest
        text = f'y="{top + BAR_PX - 3}"'
        parts.append(f'<text x="{BAR_LABEL_PX - 8}" {text} text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect x="{BAR_LABEL_PX}" y="{top}" width="{length:.1f}" height="{BAR_PX}" fill="{COLORS[0]}"/>')
        parts.append(f'<text x="{BAR_LABEL_PX + length + 6:.1f}" {text}>{value:{number_format}}</text>')
    return _svg(parts, width, height, x_label)


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


# --- charts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Numbers on one axis: the range that is shown, where it lies in the drawing, and the ticks on it."""

    low: float
    high: float
    begin_px: float
    end_px: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], begin_px: float, end_px: float) -> "_Scale":
        """Return a scale over all values, with three to six ticks at round numbers (1, 2 or 5 times a power of ten)."""
        low, high = min(values), max(values)
        high = high if high > low else low + 1
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        return cls(low=low, high=high, begin_px=begin_px, end_px=end_px, ticks=tuple(step * tick for tick in ticks))

    def px(self, value: float) -> float:
        """Return where a value lies in the drawing."""
        return self.begin_px + (value - self.low) / (self.high - self.low) * (self.end_px - self.begin_px)


def _axis_y(y: _Scale, label: str, x: _Scale) -> Iterator[str]:
    for tick in y.ticks:
        at = y.px(tick)
        yield f'<line class="grid" x1="{x.begin_px}" x2="{x.end_px}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{x.begin_px - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    middle = (y.begin_px + y.end_px) / 2
    yield (f'<text transform="translate(11 {middle:.1f}) rotate(-90)" text-anchor="middle">{html.escape(label)}</text>')


def _axis_x(x: _Scale, label: str, from_to_px: tuple[float, float], height: float) -> Iterator[str]:
    top, bottom = from_to_px
    for tick in x.ticks:
        at = x.px(tick)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.6g}</text>'
    middle = (x.begin_px + x.end_px) / 2
    yield f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">{html.escape(label)}</text>'


def _legend(names: Sequence[str], left_px: float) -> Iterator[str]:
    at = left_px
    for name, color in zip(names, COLORS, strict=False):
        yield f'<rect x="{at:.0f}" y="8" width="12" height="12" fill="{color}"/>'
        yield f'<text x="{at + 17:.0f}" y="18">{html.escape(name)}</text>'
        at += 17 + LETTER_PX * len(name) + 14


def _unbroken(values: Sequence[float], x_first: float) -> Iterator[list[tuple[float, float]]]:
    """Yield the stretches of finite values as points (x, value)."""
    points: list[tuple[float, float]] = []
    for index, value in enumerate([*map(float, values), math.nan]):
        if math.isfinite(value):
            points.append((x_first + index, value))
        elif points:
            yield points
            points = []


def _svg(parts: Sequence[str], width: float, height: float, title: str) -> Chart:
    return Chart(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def _figure(image: UInt8[np.ndarray, "height width 3"], label: str, caption: str) -> str:
    picture = f'<img alt="{html.escape(caption or label)}" src="{_data_url(image)}">'
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>" if caption else picture


def _data_url(image: UInt8[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WebP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


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
