"""Charts as HTML and SVG: lines over two axes, bars, and lines that fit into a table's cell.

Colors are classes of `charts.css`, which has them for light and dark pages; dashes tell lines apart without colors.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Chart", "bar_chart", "line_chart", "sparkline"]

COLORS = 6
"""Number of lines that have a color of their own; more than these share one."""
CHART_PX = (400, 220)
"""Width and height of a line chart before it is scaled to the page."""
MARGIN_PX = (8, 14, 40, 48)
"""Top, right, bottom (for the numbers and the label) and left (for the numbers)."""
SPARK_PX = (160, 32)
LETTER_PX = 7
"""Width of a digit at the charts' largest font size, rounded up."""


@dataclass(frozen=True)
class Chart:
    """A drawing that a function of this module made."""

    html: str


def line_chart(
    lines: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    x: Sequence[float] = (),
    log_y: bool = False,
    points: Mapping[str, Sequence[float]] | None = None,
    point_px: float = 1.4,
) -> Chart:
    """Draw lines over a common x axis; the y axis goes from the lowest to the highest value, at round numbers.

    Args:
        lines: Values of each line by name. Up to six lines have colors and a legend; more share one color, and a
            browser shows a line's name under the pointer. A value that is not finite, or not above 0 on a logarithmic
            axis, leaves a gap.
        x_label: What the x axis shows.
        y_label: What the y axis shows; it stands above the chart.
        x: Positions on the x axis in rising order, at least as many as the longest line has values; by default 1, 2, 3
            and so on.
        log_y: Whether the y axis is logarithmic.
        points: Values that are drawn as faint points behind the line of the same name, such as those it is a mean of.
        point_px: Radius of the points.
    """
    few, points = len(lines) <= COLORS, points or {}
    top_px, right_px, bottom_px, left_px = MARGIN_PX
    width, height = CHART_PX
    longest = max(map(len, (*lines.values(), *points.values())), default=0)
    positions = x or range(1, longest + 1)
    seen = [value for values in (*lines.values(), *points.values()) for value in values]
    seen = [value for value in seen if _drawable(value, log_y)]
    x_scale = _linear([*positions[:longest]], (left_px, width - right_px))
    y_scale = (_logarithmic if log_y else _rounded)(seen, (height - bottom_px, top_px))
    title = f"{y_label} by {x_label}"
    parts = [*_axis_y(y_scale, x_scale), *_axis_x(x_scale, x_label, y_scale, height)]
    for index, name in enumerate(lines):
        parts += _dots(points.get(name, ()), positions, (x_scale, y_scale), f"dot-{index if few else 0}", point_px)
    for index, (name, values) in enumerate(lines.items()):
        style = f"line-{index}" if few else "one-of-many"
        parts += _polylines(values, positions, (x_scale, y_scale), style, name)
    legend = f'<ul class="legend">{"".join(_legend(list(lines)))}</ul>' if few else ""
    above = f"<figcaption>{html.escape(y_label)}</figcaption>"
    return Chart(f'<figure class="chart">{legend}{above}{_svg(parts, (width, height), title)}</figure>')


def sparkline(values: Sequence[float], *, label: str, low: float, high: float) -> Chart:
    """Draw one line without axes for a cell of a table, on a logarithmic scale from `low` to `high`, both above 0.

    Args:
        values: Values at equal distances; those below `low` are drawn on the lower edge.
        label: What screen readers say instead.
        low: Value at the lower edge.
        high: Value at the upper edge.
    """
    width, height = SPARK_PX
    scales = (
        _linear([1, len(values)], (2, width - 2)),
        _Scale(low=low, high=high, begin_px=height - 2, end_px=2, ticks=(), log=True),
    )
    shown = [max(low, value) for value in values]
    parts = [*_polylines(shown, range(1, len(values) + 1), scales, "line-0", label)]
    return Chart(_svg(parts, SPARK_PX, label, style="sparkline"))


def bar_chart(bars: Mapping[str, float], *, x_label: str, number_format: str = ".3g") -> Chart:
    """Draw a horizontal bar for each name, from 0 to its value, with the value behind it.

    Args:
        bars: Values by name, each at least 0 and finite.
        x_label: What the bars' length shows.
        number_format: How values are written, as in `format`, such as ".1%".
    """
    longest = max(bars.values(), default=0.0) or 1.0
    lines = "".join(
        f'<div class="name">{html.escape(name)}</div><div class="value"><div class="track">'
        f'<div class="bar" style="width:{100 * value / longest:.2f}%"></div></div>'
        f'<div class="number">{value:{number_format}}</div></div>'
        for name, value in bars.items()
    )
    return Chart(
        f'<figure class="chart"><figcaption>{html.escape(x_label)}</figcaption><div class="bars">{lines}</div></figure>'
    )


# --- scales -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Numbers on one axis: the range that is shown, where it lies in the drawing, and the ticks on it."""

    low: float
    high: float
    begin_px: float
    end_px: float
    ticks: tuple[float, ...]
    log: bool = False

    def px(self, value: float) -> float:
        """Return where a value lies in the drawing."""
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.begin_px + (at - low) / (high - low) * (self.end_px - self.begin_px)


def _linear(values: Sequence[float], begin_end_px: tuple[float, float], *, step: float | None = None) -> _Scale:
    """Return a scale over exactly these values, with ticks at round numbers (1, 2 or 5 times a power of ten)."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    high = high if high > low else low + max(1.0, abs(low))
    step = step or _round_step(high - low)
    ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    begin, end = begin_end_px
    return _Scale(low=low, high=high, begin_px=begin, end_px=end, ticks=tuple(step * tick for tick in ticks))


def _rounded(values: Sequence[float], begin_end_px: tuple[float, float]) -> _Scale:
    """Return a scale from a round number at or below all values to one at or above them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = (low, low + 1) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    step = _round_step(high - low)
    ends = [step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)]
    return _linear(ends, begin_end_px, step=step)


def _logarithmic(values: Sequence[float], begin_end_px: tuple[float, float]) -> _Scale:
    """Return a logarithmic scale over all values between powers of ten, or between 1, 2 and 5 times those."""
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    powers = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    if len(powers) > 3:
        every = math.ceil((len(powers) - 1) / 6)
        marks = [10.0**power for power in powers if (power - powers[0]) % every == 0 or power == powers[-1]]
    else:
        marks = [factor * 10.0**power for power in range(powers[0] - 1, powers[-1] + 1) for factor in (1, 2, 5)]
        marks.append(10.0 ** (powers[-1] + 1))
        first = max(index for index, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
        last = min(index for index, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
        marks = marks[first : max(last, first + 1) + 1]
    begin, end = begin_end_px
    return _Scale(
        low=min(marks[0], low), high=max(marks[-1], high), begin_px=begin, end_px=end, ticks=tuple(marks), log=True
    )


def _round_step(span: float) -> float:
    """Return the distance of four to six ticks in a span."""
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


# --- drawing ----------------------------------------------------------------------------------------------------------


def _axis_y(y: _Scale, x: _Scale) -> Iterator[str]:
    for tick in y.ticks:
        at = y.px(tick)
        yield f'<line class="grid" x1="{x.begin_px}" x2="{x.end_px}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{x.begin_px - 5}" y="{at + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>'


def _axis_x(x: _Scale, label: str, y: _Scale, height: float) -> Iterator[str]:
    for tick in x.ticks:
        at = x.px(tick)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{y.end_px}" y2="{y.begin_px}"/>'
        half = LETTER_PX * len(f"{tick:.6g}") / 2
        middle = min(at, CHART_PX[0] - half)
        yield f'<text x="{middle:.1f}" y="{y.begin_px + 14}" text-anchor="middle">{tick:.6g}</text>'
    middle = (x.begin_px + x.end_px) / 2
    yield f'<text x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{html.escape(label)}</text>'


def _polylines(
    values: Sequence[float], positions: Sequence[float], scales: tuple[_Scale, _Scale], style: str, name: str
) -> Iterator[str]:
    """Yield the stretches of drawable values."""
    x, y = scales
    title = f"<title>{html.escape(name)}</title>"
    points: list[str] = []
    for index, value in enumerate([*map(float, values), math.nan]):
        if _drawable(value, y.log):
            points.append(f"{x.px(positions[index]):.1f},{y.px(value):.1f}")
        elif points:
            yield f'<polyline class="{style}" points="{" ".join(points)}">{title}</polyline>'
            points = []


def _dots(
    values: Sequence[float], positions: Sequence[float], scales: tuple[_Scale, _Scale], style: str, px: float
) -> Iterator[str]:
    x, y = scales
    for position, value in zip(positions, values, strict=False):
        if _drawable(value, y.log):
            yield f'<circle class="{style}" cx="{x.px(position):.1f}" cy="{y.px(value):.1f}" r="{px:g}"/>'


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _legend(names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        line = f'<polyline class="line-{index}" points="0,5 28,5"/>'
        yield f'<li><svg viewBox="0 0 28 10" aria-hidden="true">{line}</svg>{html.escape(name)}</li>'


def _svg(parts: Sequence[str], size_px: tuple[float, float], title: str, *, style: str = "") -> str:
    width, height = size_px
    classes = f'class="{style}" ' if style else ""
    return (
        f'<svg {classes}viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
