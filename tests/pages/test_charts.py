import math
import re
from xml.etree import ElementTree

import pytest

from moongate.pages import Chart, bar_chart, line_chart, sparkline


def elements(chart: Chart, tag: str, *, inside: str = "svg[@role]") -> list[ElementTree.Element]:
    tree = ElementTree.fromstring(f"<page>{chart.html}</page>")
    return [element for part in tree.iterfind(f".//{inside}") for element in part.iter(tag)]


def texts(chart: Chart) -> list[str]:
    return [element.text or "" for element in elements(chart, "text")]


def points(line: ElementTree.Element) -> list[list[float]]:
    return [[float(number) for number in point.split(",")] for point in line.attrib["points"].split()]


def test_a_line_chart_draws_values_in_proportion_to_its_axes() -> None:
    chart = line_chart({"loss": [4.0, 2.0, 0.0]}, x_label="step", y_label="mean", x=(10, 11, 13))
    (line,) = elements(chart, "polyline")
    (x0, y0), (x1, y1), (x2, y2) = points(line)
    assert x1 - x0 == pytest.approx((x2 - x0) / 3, abs=0.2)
    assert y0 < y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert {"0", "1", "2", "3", "4", "10", "11", "12", "13", "step"} <= set(texts(chart))
    assert "mean</figcaption>" in chart.html
    assert "loss</li>" in chart.html


def test_the_y_axis_shows_the_range_of_the_values_between_round_numbers() -> None:
    chart = line_chart({"loss": [0.103, 0.098, 0.1005]}, x_label="step", y_label="loss")
    assert {"0.098", "0.099", "0.1", "0.103"} <= set(texts(chart))
    assert "0" not in texts(chart)


def test_on_a_logarithmic_axis_equal_ratios_are_equal_distances() -> None:
    chart = line_chart({"values": [1.0, 1e-2, 1e-4]}, x_label="index", y_label="value", log_y=True)
    (_, y0), (_, y1), (_, y2) = points(elements(chart, "polyline")[0])
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert {"1", "0.1", "0.01", "0.001", "0.0001"} <= set(texts(chart))
    near = texts(line_chart({"values": [30.0, 60.0]}, x_label="index", y_label="value", log_y=True))
    assert {"20", "50", "100"} <= set(near)
    assert "10" not in near


def test_lines_have_a_legend_and_dashes_until_they_are_many() -> None:
    few, many = ({f"line {number}": [1.0, 2.0] for number in range(count)} for count in (6, 7))
    charts = [line_chart(lines, x_label="x", y_label="y") for lines in (few, many)]
    assert [len(elements(chart, "li", inside="ul")) for chart in charts] == [6, 0]
    styles = [{line.attrib["class"] for line in elements(chart, "polyline")} for chart in charts]
    assert [len(used) for used in styles] == [6, 1]
    assert [title.text for title in elements(charts[1], "title")] == list(many)


@pytest.mark.parametrize("log_y", [False, True])
def test_a_value_that_cannot_be_drawn_leaves_a_gap(log_y: bool) -> None:
    lines = {"loss": [1, math.nan, 2, 3, math.inf, 4, 0, -1]}
    found = elements(line_chart(lines, x_label="x", y_label="y", log_y=log_y), "polyline")
    assert [len(points(line)) for line in found] == ([1, 2, 1] if log_y else [1, 2, 3])


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [-3.0, -1.0], [1e-9, 2e-9], [1e6], [1e-12, 1e12], [7, 9]])
def test_every_value_lies_within_the_axes(values: list[float], log_y: bool) -> None:
    chart = line_chart({"line": values}, x_label="x", y_label="y", log_y=log_y)
    for line in elements(chart, "polyline"):
        assert all(48 <= x <= 386 and 8 <= y <= 180 for x, y in points(line))
    assert 2 <= sum(line.attrib["x1"] == "48" for line in elements(chart, "line")) <= 9


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart({"keys": 0.5, "<values>": 0.25, "rest": 0.0}, x_label="mean change", number_format=".1%")
    lengths = [float(width) for width in re.findall(r"width:([\d.]+)%", chart.html)]
    assert lengths == [100, 50, 0]
    names = [div.text for div in elements(chart, "div", inside="figure") if div.attrib["class"] in ("name", "number")]
    assert names == ["keys", "50.0%", "<values>", "25.0%", "rest", "0.0%"]
    assert "width:0.00%" in bar_chart({"a": 0.0}, x_label="x").html


def test_a_sparkline_shares_its_scale_with_others() -> None:
    first, second = (sparkline(values, label="a", low=0.01, high=1.0) for values in ([1, 0.1, 0.01], [0.1, 0.001]))
    (line,), (other,) = (elements(chart, "polyline") for chart in (first, second))
    assert points(other)[0][1] == points(line)[1][1]
    assert points(other)[1][1] == points(line)[2][1] == 30
