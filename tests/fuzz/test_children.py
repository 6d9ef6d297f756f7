import os
import time
from pathlib import Path

import numpy as np
import pytest

from fuzz import children
from fuzz.children import outcome


def test_a_case_in_order_has_no_outcome(tmp_path: Path) -> None:
    assert outcome(lambda: None, tmp_path / "report") == ""


def test_an_exception_an_end_and_a_hang_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ZeroDivisionError" in outcome(lambda: 1 / 0, tmp_path / "report")
    assert "status 3" in outcome(lambda: os._exit(3), tmp_path / "report")
    monkeypatch.setattr(children, "SECONDS", 0.3)
    assert outcome(lambda: time.sleep(9), tmp_path / "report").startswith("hang")


def test_memory_above_that_of_the_parent_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESIDENT_BYTES", 0)
    assert outcome(lambda: np.ones(400_000_000, np.uint8).sum(), tmp_path / "report").startswith("memory")
