import json
from collections.abc import Sequence
from pathlib import Path

from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.merging import merge
from moongate.merging.page import HEAD, summary_rows, write_report


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
    for heading in ("Subjects", "Cost", "Conflicts", "Residual by layer"):
        assert f"<h2>{heading}</h2>" in page
    assert "The merge will probably lose bear" in page
    assert json.loads((tmp_path / "report.json").read_text())["predicted_to_lose"] == "bear"
    assert [len(row) for row in summary_rows(report)] == [len(HEAD)] * 2
