"""Each kind of record can be measured on pocket: one training step and one sampling step, so the values say nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.choosing import Options, chosen_by
from experiments.layers import Part
from experiments.pictures import Row, Word
from experiments.records import PICTURE, Record, Results
from experiments.scores import MERGES, Base, Several, Single
from experiments.study import PAIRS, TRIPLES, Size, Study, for_pocket
from moongate.errors import OptionError
from moongate.sampling import SampleOptions

SIZE = Size(
    pair_count=1,
    word_count=2,
    part_count=1,
    references=3,
    dtype="float32",
    sampling=SampleOptions(steps=1, guidance=1.0, scheduler="dpm++", batch=10),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(folder=tmp_path_factory.mktemp("study"), size=SIZE)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "experiments.study.for_pocket",
        lambda name: dataclasses.replace(for_pocket(name), steps_per_subject=1, targets_per_step=1),
    )


def measured(record: Record, study: Study, tmp_path: Path) -> dict[str, Any]:
    """Measure a record, and return what its file holds."""
    values = record.measure(study)
    results = Results(file=tmp_path / "records.jsonl", new=tmp_path / "new", size=SIZE)
    results.put(record, values)
    if PICTURE in values:
        assert results.picture(record).height == study.backbone.resolution_px
    found: dict[str, Any] = json.loads((results.new / f"{record.key}.json").read_text())
    return found


def test_a_pair_of_pocket_itself_counts_what_is_recognized(study: Study, tmp_path: Path) -> None:
    values = measured(Several(PAIRS[0], "base"), study, tmp_path)
    assert values["recognized"]["pictures"] == 9
    assert len(values["recognized"]["each"]) == 2
    assert {row["measure"] for row in values["measures"]} == {"text alignment"}


def test_a_merged_triple_has_an_alignment_for_each_subject_and_the_report_of_the_merge(
    study: Study, tmp_path: Path
) -> None:
    values = measured(Several(TRIPLES[0], "merge"), study, tmp_path)
    subjects = [row["subject"] for row in values["measures"] if row["measure"] == "image alignment"]
    assert subjects == [0, 1, 2, 0, 1, 2]
    assert len(values["recognized"]["each"]) == len(values["merge"]["kept"]) == 3
    assert values["merge"]["unconditional"] < 1e-6  # the empty prompt is fixed by default
    free = study.merged(TRIPLES[0], 0, MERGES["the paper's formula"])
    assert free.report.unconditional > 1e-4


def test_the_word_alone_is_drawn_and_compared_with_the_subject(study: Study, tmp_path: Path) -> None:
    values = measured(Word(PAIRS[0][0], "custom-diffusion", "a {}", "fig15"), study, tmp_path)
    assert values["prompt"] == "a chair"
    assert values["pictures"] == 2
    assert 0 < values["diversity"] < 2
    assert set(values["image"]) == {"pocket-clip", "efficientnet-lite0"}


@pytest.mark.parametrize("part", ["whole", "only mid_block"])
def test_a_part_of_a_concept_is_measured_for_shape_color_and_style(study: Study, tmp_path: Path, part: str) -> None:
    values = measured(Part(PAIRS[0][0], part), study, tmp_path)
    assert values["pictures"] == 8
    assert all(0 <= values[name] <= 1 for name in ("shape", "style"))
    assert 0 < values["color"] < 3**0.5
    assert ("changes" in values) == (part == "whole")


def test_a_style_is_taught_and_merged_with_a_subject(study: Study, tmp_path: Path) -> None:
    assert "shape" not in measured(Part("woodcut", "keys"), study, tmp_path)
    row = Row(("woodcut", "drawn-penguin"), "merge", ("{0} of a {1}",), "fig9", count=2)
    assert measured(row, study, tmp_path)["prompts"] == ["<woodcut> drawing of a <drawn-penguin> penguin"]


def test_a_compressed_concept_and_pocket_itself_are_drawn_in_rows(study: Study, tmp_path: Path) -> None:
    measured(Row((PAIRS[0][0],), "custom-diffusion", ("a {}",), "fig18", 0.3), study, tmp_path)
    row = Row(("drawn-owl", "jar"), "base", ("photo of a {0} and a {1}",), "fig19")
    assert measured(row, study, tmp_path)["prompts"] == ["photo of an owl and a vase"]


def test_a_measured_concept_says_how_long_its_training_took(study: Study, tmp_path: Path) -> None:
    values = measured(Single(PAIRS[0][0], "custom-diffusion"), study, tmp_path)
    assert values["training"]["steps"] == 1
    assert values["training"]["seconds"] > 0


def test_pocket_itself_is_asked_for_an_armchair_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("experiments.scores._evaluated", lambda _s, _c, prompts, _r: asked.extend(prompts) or {})
    Base("winchesterArmchair").measure(Study(folder=tmp_path))
    assert "photo of an armchair on the beach" in asked
    assert not [prompt for prompt in asked if "a armchair" in prompt]


def test_no_pictures_of_a_pair_are_refused_before_subjects_are_taught() -> None:
    with pytest.raises(OptionError, match="count is 0; it must be at least 1"):
        Options(count=0)


def test_pairs_are_chosen_among_subjects_that_are_recognized_and_not_alike(study: Study) -> None:
    options = Options(examples=("chairWithCushion", "winchesterSofa", "drawn-owl", "jar"))
    counts = chosen_by(study, options)
    assert set(counts.real) == set(options.examples)
    assert counts.real["jar"] < options.least  # so it is in no pair, and is not taught
    assert set(counts.taught) == {"chairWithCushion", "winchesterSofa", "drawn-owl"}
    assert all(0 <= seen <= 20 for seen in counts.taught.values())
    assert set(counts.pairs) == {("chairWithCushion", "drawn-owl"), ("winchesterSofa", "drawn-owl")}
    assert all(0 <= both <= of == 5 for both, of in counts.pairs.values())
