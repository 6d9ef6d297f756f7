"""The paper's tables: what they are made of, that a stopped run goes on, and that they show what was measured."""

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from experiments import fig8_alignment, orderings, table1_single, table3_ablation
from experiments.__main__ import EXPERIMENTS, _write
from experiments.records import Base, Pair, Record, Results, Row, Single, _as_text, as_picture
from experiments.study import EXAMPLES, PAIRS, Size, Study, for_pocket
from moongate import METHODS, Backbone, pocket


def made_up(record: Record) -> dict[str, Any]:
    """Return figures that differ between records."""
    number = sum(record.key.encode()) / 10_000
    rows = [
        {"measure": measure, "features": features, "value": number, "thing": thing}
        for measure, features in (
            ("text alignment", "pocket-clip"),
            ("image alignment", "pocket-clip"),
            ("image alignment", "efficientnet-lite0"),
            ("KID", "efficientnet-lite0"),
            ("FID", "efficientnet-lite0"),
        )
        for thing in (range(2) if isinstance(record, Pair) and measure == "image alignment" else (0,))
    ]
    return {
        "measures": rows,
        "bytes": 1_000_000,
        "kinds": {"cross-attention": {"mean": number, "share": 0.05}, "the rest": {"mean": number / 2, "share": 0.95}},
        "values": {"unet.attn2.to_k.weight": [1.0, 0.5], "unet.attn2.to_v.weight": [1.0, number]},
        "rank_at_60": {"unet.attn2.to_k.weight": 1, "unet.attn2.to_v.weight": 1},
        "prompt": "photo of a thing",
        "picture": _as_text([np.zeros((32, 32, 3), np.uint8)]),
        "pictures": _as_text([np.zeros((32, 32, 3), np.uint8)] * 3),
        "words": [{"word": "thing", "map": [[0.0, 1.0], [0.5, 0.0]]}],
    }


@pytest.fixture
def everything(tmp_path: Path) -> Results:
    results = Results(tmp_path / "records", Size())
    for name in EXPERIMENTS:
        for record in results.missing(import_module(f"experiments.{name}").records()):
            results.put(record, made_up(record))
    return results


def test_every_table_is_written_from_its_records(everything: Results, tmp_path: Path) -> None:
    _write(everything, tmp_path)
    written = (tmp_path / "tables.md").read_text()
    assert "missing" not in written
    for picture in re.findall(r"\]\(([^)]+\.(?:png|html))\)", written):
        assert (tmp_path / picture).stat().st_size > 0
    values = [made_up(Single(e, "dreambooth", seed))["measures"][0]["value"] for seed in (0, 1) for e in EXAMPLES]
    row, *_ = [line for line in written.splitlines() if line.startswith("| DreamBooth |")]
    assert row.startswith(f"| DreamBooth | {mean(values):.3f} ± ")


def test_one_seed_is_shown_without_a_spread(everything: Results, tmp_path: Path) -> None:
    (everything.folder / "single" / f"{EXAMPLES[3]}-dreambooth-1.json").unlink()
    report = table1_single.report(everything, tmp_path)
    assert "seed 0." in report
    assert "±" not in report


def test_an_ordering_holds_is_reversed_or_is_too_near_to_tell(everything: Results, tmp_path: Path) -> None:
    claim = orderings.CLAIMS[4]
    assert (claim.column, claim.second) == (orderings.KID, "dreambooth")

    def verdict(distances: list[float]) -> str:
        pairs = zip(claim.records(orderings.OURS), claim.records("dreambooth"), distances, strict=True)
        for ours, theirs, distance in pairs:
            figures = everything.figures(ours, "KID", "efficientnet-lite0")
            for record, figure in zip(theirs, figures, strict=True):
                found = made_up(record)
                found["measures"][3]["value"] = figure + distance
                everything.put(record, found)
        (row,) = [
            line
            for line in orderings.report(everything, tmp_path).splitlines()
            if "Custom Diffusion before DreamBooth" in line and line.startswith("| KID")
        ]
        return row.split(" | ")[-1].rstrip(" |")

    near = [0.01 * (-1) ** n for n in range(len(EXAMPLES))]
    assert verdict([0.01 + step / 10 for step in near]) == "holds"
    assert verdict([-0.01 + step / 10 for step in near]) == "is reversed"
    assert verdict(near) == "too near to tell"


def test_what_is_not_measured_yet_is_said_and_the_rest_is_shown(everything: Results, tmp_path: Path) -> None:
    (everything.folder / "pair" / f"{'-'.join(PAIRS[0])}-merge-0.json").unlink()
    _write(everything, tmp_path)
    written = (tmp_path / "tables.md").read_text()
    assert written.count("Not measured yet: 1 records are missing.") == 2  # the table of pairs, and Fig. 8
    rows = [line for line in written.splitlines() if line.endswith("| not measured yet |")]
    assert len(rows) == 1
    assert "joint training before merge" in rows[0]


def test_only_what_is_missing_or_of_another_size_is_measured(everything: Results) -> None:
    records = list(table3_ablation.records())
    assert everything.missing(records) == []
    (everything.folder / f"{records[2].key}.json").unlink()
    assert everything.missing([*records, records[2]]) == [records[2]]
    larger = Results(everything.folder, replace(everything.size, count=3))
    assert larger.missing(records) == records


def test_records_of_other_weights_are_measured_again_and_meanwhile_called_so(
    everything: Results, tmp_path: Path
) -> None:
    records = list(table3_ablation.records())
    renewed = replace(everything, weights="of today")
    renewed.put(records[0], made_up(records[0]))
    assert renewed.absent(records) == []
    assert records[0] not in renewed.missing(records)
    assert len(renewed.missing(records)) == len(set(records)) - 1
    _write(renewed, tmp_path)
    assert "records were measured on other weights" in (tmp_path / "tables.md").read_text()
    _write(everything, tmp_path)
    assert re.findall(r"(\d+) of \d+ records were measured on other", (tmp_path / "tables.md").read_text()) == ["1"]


def test_records_that_differ_have_files_that_differ() -> None:
    records = {record for name in EXPERIMENTS for record in import_module(f"experiments.{name}").records()}
    assert len({record.key for record in records}) == len(records)


def test_what_is_measured_exists() -> None:
    assert set(EXAMPLES) <= set(pocket.examples())
    assert {example for pair in PAIRS for example in pair} <= set(EXAMPLES)
    for record in fig8_alignment.records():
        assert (record.method if isinstance(record, Single) else "custom-diffusion") in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_methods_on_pocket_take_fewer_steps_and_never_go_further(name: str) -> None:
    scaled, paper = for_pocket(name), METHODS[name]
    assert scaled.steps_per_subject <= paper.steps_per_subject // 2
    further = scaled.steps_per_subject * scaled.lr_per_picture / (paper.steps_per_subject * paper.lr_per_picture)
    assert further <= 1 + 1e-9


def test_pictures_to_judge_by_are_not_those_to_train_against(tmp_path: Path) -> None:
    pool = Study(folder=tmp_path).pool("dog")
    trained = {picture.tobytes() for picture in pool.regularization.pictures}
    assert not trained & {picture.tobytes() for picture in pool.reference.pictures}
    assert len(pool.reference.pictures) == Size().references


def test_a_concept_is_trained_once(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(folder=tmp_path)
    monkeypatch.setattr(study, "backbone", tiny, raising=False)
    first = study.single("jar", "textual-inversion", 0, steps=1)
    monkeypatch.setattr("experiments.study.train", lambda *_, **__: pytest.fail("trained again"))
    assert study.single("jar", "textual-inversion", 0, steps=1).hash == first.hash


def test_a_row_of_pictures_survives_its_file() -> None:
    picture = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    shown = np.asarray(as_picture(_as_text([picture, picture])))
    assert shown.shape == (32, 64, 3)
    assert abs(shown[:, :32].astype(int) - picture).mean() < 8


def test_pocket_itself_is_asked_for_an_armchair_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("experiments.records._judged", lambda _s, _c, prompts, _r: asked.extend(prompts) or {})
    Base("winchesterArmchair").measure(Study(folder=tmp_path))
    assert "photo of an armchair on the beach" in asked
    assert not [prompt for prompt in asked if "a armchair" in prompt]


def test_records_are_plain_json(everything: Results) -> None:
    for path in everything.folder.rglob("*.json"):
        assert json.loads(path.read_text())["size"]["count"] == everything.size.count
    assert Row(("jar",), "dreambooth", ("a",)).key == "row/jar-dreambooth"
