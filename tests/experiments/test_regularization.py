"""What the ablation of regularization compares, and which pictures each way of training gets."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from experiments import regularization as module
from experiments.regularization import WAYS, Options, Pool, RealPictures, means, measure, regularization, split_pool
from moongate import Regularization, pocket
from moongate.demo.judge import Judge
from moongate.errors import OptionError
from moongate.evaluation.metrics import kid
from moongate.sampling import SampleOptions

PICTURE = np.zeros((16, 16, 3), np.uint8)
BY_WORD = Regularization(pictures=(PICTURE,) * 3, captions=("a dog",) * 3, source="word")


def test_the_pictures_that_are_measured_with_are_photos_that_no_training_gets() -> None:
    pool = split_pool("dog", 5)
    assert len(pool.by_word.pictures) == 5
    assert all("dog" in caption for caption in pool.by_word.captions)
    assert len(pool.held_out) >= module.FEWEST_PHOTOS
    assert set(pool.by_word.captions) <= {record.caption for record in pool.records}
    everything = split_pool("dog", 10**6)
    kept = {picture.tobytes() for picture in everything.by_word.pictures}
    assert not kept & {picture.tobytes() for picture in everything.held_out}


def test_a_category_with_too_few_photos_is_refused() -> None:
    with pytest.raises(OptionError, match=r"The pool has 0 photos of a unicorn to measure with; 10 are needed"):
        split_pool("unicorn", 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 1}, "pictures is 1; KID needs at least 2"),
        ({"sampling_steps": 0}, "sampling_steps is 0; it must be at least 1"),
        ({"examples": ()}, "There is no example to teach"),
    ],
)
def test_numbers_that_nothing_can_be_measured_with_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**changes)


def test_each_way_gets_its_own_pictures_and_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(records=[], by_word=BY_WORD, held_out=[])
    asked = []

    def drawn(_backbone: object, prompt: str, seeds: range, _options: object) -> list[np.ndarray]:
        asked.append((prompt, seeds))
        return [PICTURE] * len(seeds)

    monkeypatch.setattr(module, "_drawn", drawn)
    backbone, options = SimpleNamespace(), SampleOptions(steps=1)
    assert regularization("none", pool, backbone, "dog", options) == []  # type: ignore[arg-type]
    assert regularization("word", pool, backbone, "dog", options) == [BY_WORD]  # type: ignore[arg-type]
    (generated,) = regularization("generated", pool, backbone, "dog", options)  # type: ignore[arg-type]
    assert generated.captions == ("photo of a dog",) * 3
    assert asked == [("photo of a dog", range(10_000, 10_003))]


def test_a_row_holds_kid_the_share_that_looks_like_the_subject_and_the_alignment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    category = torch.cat([torch.ones(6, 1), 0.1 * torch.randn(6, 3, generator=generator)], 1)
    subject = torch.tensor([[0.0, 1, 0, 0], [0, 0.6, 0.8, 0]])
    drawn = torch.cat([category[:3], subject[:1]])
    judge = Judge.fit(subject, category, held_out=(subject, category))
    real = RealPictures(
        example=pocket.example("bulldog"),
        pool=Pool(records=[], by_word=BY_WORD, held_out=[]),
        features=lambda _pictures: drawn,  # type: ignore[arg-type]
        category=category,
        subject=subject,
        judge=judge,
    )
    monkeypatch.setattr(module, "_drawn", lambda *_: [PICTURE] * 4)
    row = measure("base", real, SimpleNamespace(), Options(pictures=4))  # type: ignore[arg-type]
    assert row["kid_x1000"] == pytest.approx(1000 * kid(drawn, category), abs=0.01)
    assert row["drawn_as_subject"] == 0.25
    assert row["judge_accuracy"] == 1
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    assert row["image_alignment"] == pytest.approx(float((unit @ subject.T).mean()), abs=1e-4)


def test_means_are_over_examples_and_by_way() -> None:
    columns = ("kid_x1000", "drawn_as_subject", "image_alignment", "judge_accuracy")
    rows: list[module.Row] = [
        {"example": str(number), "way": way, **dict.fromkeys(columns, number + len(way))}
        for number in (1.0, 2.0)
        for way in WAYS
    ]
    assert [row["way"] for row in means(rows)] == list(WAYS)
    assert all(row[column] == 1.5 + len(str(row["way"])) for row in means(rows) for column in columns)


def test_rows_of_an_earlier_run_are_read_only_with_the_same_settings(tmp_path: Path) -> None:
    backbone = SimpleNamespace(settings=SimpleNamespace(guidance=4.0))
    options = Options()
    settings = module._settings("word", backbone, options)  # type: ignore[arg-type]
    row = {"example": "jar", "way": "word", "kid_x1000": 1.0}
    (tmp_path / "jar-word.json").write_text(json.dumps({"settings": settings, "row": row}))
    assert module._known(tmp_path, ("jar", "word"), settings) == row
    assert module._known(tmp_path, ("jar", "none"), settings) is None
    other = module._settings("word", backbone, replace(options, steps=9))  # type: ignore[arg-type]
    assert module._known(tmp_path, ("jar", "word"), other) is None
