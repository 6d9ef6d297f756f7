import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.merging import merge
from moongate.merging.page import HEAD, judged, summary_rows, verdict, write_report
from moongate.sampling import Sample


def test_the_report_is_written_as_json_and_as_one_page(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    page = write_report(merge(tiny, pair).report, tmp_path / "report").read_text()
    assert "&lt;one&gt; bear" in page
    assert "src=" not in page
    assert "http" not in page
    assert (tmp_path / "report" / "report.json").read_text().startswith("{")


def test_the_page_names_each_subject_its_conflicts_and_the_one_that_is_lost(tiny: Backbone, tmp_path: Path) -> None:
    bears = [invented(tiny, (None, "bear"), seed=1), invented(tiny, (None, "bear"), seed=2)]
    report = merge(tiny, bears).report
    page = write_report(report, tmp_path).read_text()
    for heading in (
        "What each subject keeps",
        "Cost",
        "Conflicts",
        "Error of the constraints by layer, relative to the change",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "bear may be lost beside bear" in page
    assert json.loads((tmp_path / "report.json").read_text())["predicted_to_lose"] == "bear"
    assert [len(row) for row in summary_rows(report)] == [len(HEAD)] * 2


def test_bad_news_comes_first_and_has_its_color(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    bears = [invented(tiny, (None, "bear"), seed=1), invented(tiny, (None, "bear"), seed=2)]
    bad, good = merge(tiny, bears).report, merge(tiny, pair[:1]).report
    assert next(level for _, level in judged(bad)) == "bad"
    assert judged(good)[0][0].startswith("<one> bear keeps 100% of its change in its contexts and ")
    assert verdict(bad)[0].startswith("bear may be lost beside bear: it keeps ")
    body = write_report(bad, tmp_path).read_text().partition("<body>")[2]
    assert body.index('class="notice bad"') < body.index("<table>")


def test_what_a_subject_keeps_is_one_minus_its_error_in_per_cent(
    tiny: Backbone, pair: Sequence[Concept], tmp_path: Path
) -> None:
    report = merge(tiny, pair).report
    for fit, row in zip(report.subjects, summary_rows(report), strict=True):
        assert row[2] == "100%"
        for cell, error in ((row[3], fit.held_out_error), (row[4], fit.joint_error)):
            assert float(cell.rstrip("%")) == pytest.approx(100 * max(0, 1 - error), abs=0.51)
    assert '<td class="good">100%</td>' in write_report(report, tmp_path).read_text()


def test_pictures_stand_below_their_prompt_and_way(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    picture = Sample(image=np.zeros((8, 8, 3), dtype=np.uint8), prompt="a <one> bear", seed=0)
    drawn = {"a <one> bear": {"before": [picture], "merged": [picture]}}
    page = write_report(merge(tiny, pair).report, tmp_path, drawn=drawn).read_text()
    assert page.index("a &lt;one&gt; bear</h3>") < page.index('alt="before"') < page.index('alt="merged"')
