import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from moongate.pages import Cell, Page, line_chart


def picture(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


def saved(page: Page, tmp_path: Path) -> str:
    page.save(tmp_path / "below" / "index.html")
    return (tmp_path / "below" / "index.html").read_text()


def test_a_page_is_one_file_with_escaped_texts_and_no_links(tmp_path: Path) -> None:
    page = Page(title="<b> & co")
    page.text("h1", "<new1> dog")
    page.notice("<notice>", level="bad")
    page.row("<label>", [picture(4, 4)], captions=["<caption>"])
    page.table(("<head>",), [("<cell>",), (Cell("<colored>", "good"),)])
    page.chart(line_chart({"<line>": [1.0, 2.0]}, x_label="<x>", y_label="<y>"))
    content = saved(page, tmp_path)
    assert "&lt;b&gt; &amp; co" in content
    for word in ("new1", "notice", "label", "caption", "head", "cell", "colored", "line", "x", "y"):
        assert f"&lt;{word}&gt;" in content
        assert f"<{word}>" not in content.replace("<head>", "", 1)
    assert content.count('src="data:image/webp;base64,') == content.count("src=") == 1
    assert "http" not in content
    assert not re.search(r"url\(|@import|<link|<script", content)


def test_every_picture_has_a_text_that_stands_for_it(tmp_path: Path) -> None:
    page = Page(title="pictures")
    page.row("cats", [picture(4, 4)] * 2, captions=["one", "two"])
    page.row("dogs", [picture(4, 4)])
    page.row("", [picture(4, 4)] * 2)
    alts = re.findall(r'alt="([^"]*)"', saved(page, tmp_path))
    assert alts == ["cats: one", "cats: two", "dogs", "picture 1 of 2", "picture 2 of 2"]


def test_pictures_keep_their_proportions_and_large_ones_are_stored_smaller(tmp_path: Path) -> None:
    page = Page(title="pictures")
    page.row("strip", [picture(128, 384), picture(1024, 512)])
    content = saved(page, tmp_path)
    assert re.findall(r"--width:(\d+)", content) == ["432", "72"]
    stored = re.findall(r"base64,([^\"]*)", content)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in stored]
    assert sizes == [(384, 128), (144, 288)]


def test_a_colored_cell_has_the_class_of_its_level(tmp_path: Path) -> None:
    page = Page(title="table")
    page.table(("a", "b"), [("plain", Cell("lost", "bad"))])
    assert '<td>plain</td><td class="bad">lost</td>' in saved(page, tmp_path)


def test_names_of_weights_break_behind_their_dots_and_numbers_nowhere(tmp_path: Path) -> None:
    page = Page(title="table")
    page.table(("weight", "largest"), [("up_blocks.0.attn2.to_k", "1.25"), ("A. B. C.", "1e-3")])
    content = saved(page, tmp_path)
    assert '<td><span class="dotted">up_blocks.<wbr>0.<wbr>attn2.<wbr>to_k</span></td><td>1.25</td>' in content
    assert "<td>A. B. C.</td>" in content
