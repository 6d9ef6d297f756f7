import itertools
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import retrieval

PARTS = (("photo", "drawing"), ("red", "blue"), ("dog", "cat", "owl"), ("in the snow", "at night"))


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All captions of few parts, in order."""
    kinds, colors, subjects, places = PARTS
    combined = itertools.product(kinds, colors, subjects, colors, subjects, places)
    captions = [f"{k} of a {a} {x} and a {b} {y} {p}" for k, a, x, b, y, p in combined if x != y]
    monkeypatch.setattr(retrieval, "PARTS", PARTS)
    monkeypatch.setattr(retrieval, "CAPTIONS", len(captions))
    return captions


def test_there_are_as_many_captions_as_the_benchmark_says() -> None:
    kinds, colors, subjects, places = map(len, retrieval.PARTS)
    assert kinds * colors * subjects * colors * (subjects - 1) * places == retrieval.CAPTIONS


def test_synthetic_captions_are_a_shuffled_sample_of_all(everything: list[str]) -> None:
    assert sorted(retrieval.synthetic(len(everything))) == sorted(everything)
    assert list(retrieval.synthetic(20)) == random.Random(0).sample(everything, 20)


def test_captions_are_written_some_at_a_time(
    everything: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "ROWS", 7)
    retrieval.write_captions(tmp_path / "captions.parquet", 20)
    rows = pq.read_table(tmp_path / "captions.parquet").to_pydict()
    assert rows["caption"] == list(retrieval.synthetic(20))
    assert rows["url"][-1] == "https://host/19.jpg"
    assert pq.ParquetFile(tmp_path / "captions.parquet").num_row_groups == 3


def test_more_captions_than_there_are_end_the_program_at_once() -> None:
    with pytest.raises(SystemExit, match=rf"there are {retrieval.CAPTIONS:,} synthetic captions"):
        retrieval.Options(captions=retrieval.CAPTIONS + 1)
