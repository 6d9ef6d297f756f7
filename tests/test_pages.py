import io
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from moongate.pages import Chart, Page, bar_chart, contact_sheet, line_chart, png_bytes


def elements(chart: Chart, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(chart).iter(tag))


def texts(chart: Chart) -> list[str]:
    return [element.text or "" for element in elements(chart, "text")]


def points(line: ElementTree.Element) -> list[list[float]]:
    return [[float(number) for number in point.split(",")] for point in line.attrib["points"].split()]


def test_a_page_is_one_file_with_escaped_texts_and_no_links(tmp_path: Path) -> None:
    page = Page(title="<b> & co")
    page.text("h1", "<new1> dog")
    page.row("<label>", [np.zeros((4, 4, 3), dtype=np.uint8)], captions=["<caption>"])
    page.table(("<head>",), [("<cell>",)])
    page.chart(line_chart({"<line>": [1.0, 2.0]}, x_label="<x>", y_label="<y>"))
    page.save(tmp_path / "below" / "index.html")
    content = (tmp_path / "below" / "index.html").read_text()
    for escaped in (
        "&lt;b&gt; &amp; co",
        "&lt;new1&gt;",
        "&lt;label&gt;",
        "&lt;caption&gt;",
        "&lt;head&gt;",
        "&lt;cell&gt;",
        "&lt;line&gt;",
    ):
        assert escaped in content
    assert content.count('src="data:image/webp;base64,') == content.count("src=") == 1
    assert "http" not in content


def test_a_line_chart_draws_values_in_proportion_to_its_axes() -> None:
    chart = line_chart({"loss": [4.0, 2.0, 0.0]}, x_label="step", y_label="mean", x_first=10)
    (line,) = elements(chart, "polyline")
    (x0, y0), (x1, y1), (x2, y2) = points(line)
    assert x0 < x1 == pytest.approx((x0 + x2) / 2, abs=0.2)
    assert y0 < y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert {"0", "1", "2", "3", "4", "10", "11", "12", "step", "mean", "loss"} <= set(texts(chart))


def test_lines_have_a_legend_until_they_are_many() -> None:
    few, many = ({f"line {number}": [1.0, 2.0] for number in range(count)} for count in (6, 7))
    charts = [line_chart(lines, x_label="x", y_label="y") for lines in (few, many)]
    assert ["line 0" in texts(chart) for chart in charts] == [True, False]
    colors = [{line.attrib["stroke"] for line in elements(chart, "polyline")} for chart in charts]
    assert [len(used) for used in colors] == [6, 1]
    assert [title.text for title in elements(charts[1], "title")] == list(many)


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    lines = elements(line_chart({"loss": [1, math.nan, 2, 3, math.inf]}, x_label="x", y_label="y"), "polyline")
    assert [len(points(line)) for line in lines] == [1, 2]


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [-3.0, -1.0], [1e-9, 2e-9], [1e6]])
def test_every_value_lies_within_the_axes(values: list[float]) -> None:
    chart = line_chart({"line": values}, x_label="x", y_label="y")
    for line in elements(chart, "polyline"):
        assert all(60 <= x <= 468 and 34 <= y <= 186 for x, y in points(line))


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart({"keys": 0.5, "<values>": 0.25, "rest": 0.0}, x_label="mean change", number_format=".1%")
    lengths = [float(bar.attrib["width"]) for bar in elements(chart, "rect")]
    assert lengths[0] == pytest.approx(2 * lengths[1])
    assert lengths[2] == 0
    assert texts(chart) == ["mean change", "keys", "50.0%", "<values>", "25.0%", "rest", "0.0%"]
    assert [float(bar.attrib["width"]) for bar in elements(bar_chart({"a": 0.0}, x_label="x"), "rect")] == [0]


def test_a_png_file_holds_the_very_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for content in (png_bytes(image), png_bytes(Image.fromarray(image))):
        assert np.array_equal(np.array(Image.open(io.BytesIO(content))), image)


def test_a_contact_sheet_holds_every_picture_in_order() -> None:
    images = [np.full((20, 30, 3), 40 * index, dtype=np.uint8) for index in range(5)]
    sheet = np.array(contact_sheet(images, columns=3, padding_px=2))
    assert sheet.shape == (2 * 22 + 2, 3 * 32 + 2, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        assert (sheet[2 + row * 22 + 10, 2 + column * 32 + 15] == 40 * index).all()
    assert contact_sheet(images, columns=3, labels=["a long label that wraps"] * 5).height > sheet.shape[0]


def test_a_row_of_a_contact_sheet_is_as_high_as_its_own_labels() -> None:
    images = [np.full((20, 30, 3), 40 * index, dtype=np.uint8) for index in range(4)]

    def sheet(*labels: str) -> np.ndarray:
        return np.array(contact_sheet(images, columns=2, labels=labels))

    bare, above, below, both = sheet("", "", "", ""), sheet("x", "", "", ""), sheet("", "", "x", ""), sheet(*"xxxx")
    line = both.shape[0] - above.shape[0]
    assert above.shape == below.shape
    assert above.shape[0] - bare.shape[0] == line > 0
    for drawn, moved in ((bare, 0), (below, 0), (above, line), (both, line)):
        assert (drawn[4 + 24 + moved : 4 + 44 + moved, 4:34] == 80).all()
