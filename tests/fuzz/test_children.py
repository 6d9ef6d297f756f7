import os
import time
from pathlib import Path

import numpy as np
import pytest

from fuzz import children
from fuzz.children import outcome


def test_a_case_in_order_has_no_outcome(tmp_path: Path) -> None:
    assert outcome(lambda: None, tmp_path / "report").wrong == ""


def test_an_exception_an_end_and_a_hang_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ZeroDivisionError" in outcome(lambda: 1 / 0, tmp_path / "report").wrong
    assert "status 3" in outcome(lambda: os._exit(3), tmp_path / "report").wrong
    monkeypatch.setattr(children, "SECONDS", 3)
    hang = outcome(lambda: time.sleep(9), tmp_path / "report").wrong
    assert hang.startswith("hang")
    assert "test_children.py" in hang, "it says where"


def test_a_program_that_a_hanging_case_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "SECONDS", 0.5)
    late = tmp_path / "late"
    outcome(lambda: os.system(f"sleep 1; touch {late}") and None, tmp_path / "report")
    time.sleep(1)
    assert not late.exists()


def test_memory_above_that_of_the_parent_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESIDENT_BYTES", 200_000_000)
    result = outcome(lambda: np.ones(400_000_000, np.uint8).sum(), tmp_path / "report")
    assert result.wrong.startswith("memory")
    assert result.megabytes > 390
