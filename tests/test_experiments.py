"""The paper's tables show the records, and a run measures only the records that are missing."""

import json
import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from experiments import fig8_alignment, orderings, table1_single, table3_ablation
from experiments.__main__ import EXPERIMENTS, _write
from experiments.edits import MEASURES as EDIT_MEASURES
from experiments.edits import WAYS as EDIT_WAYS
from experiments.edits import EditRecord
from experiments.measuring import Measuring
from experiments.records import Attention, Base, Pair, Record, Results, Row, Single, webp_row
from experiments.study import EXAMPLES, PAIRS, Size, Study, for_pocket
from moongate import METHODS, Backbone, pocket
from moongate.fleet import Assignment


def made_up(record: Record) -> dict[str, Any]:
    """Return values that differ between records."""
    number = sum(record.key.encode()) / 10_000
    rows = [
        {"measure": measure, "features": features, "value": number, "subject": subject}
        for measure, features in (
            ("text alignment", "pocket-clip"),
            ("image alignment", "pocket-clip"),
            ("image alignment", "efficientnet-lite0"),
            ("KID", "efficientnet-lite0"),
            ("FID", "efficientnet-lite0"),
        )
        for subject in (range(2) if isinstance(record, Pair) and measure == "image alignment" else (0,))
    ]
    values = {
        "measures": rows,
        "bytes": 1_000_000,
        "kinds": {"cross-attention": {"mean": number, "share": 0.05}, "the rest": {"mean": number / 2, "share": 0.95}},
        "values": {"unet.attn2.to_k.weight": [1.0, 0.5], "unet.attn2.to_v.weight": [1.0, number]},
        "rank_at_60": {"unet.attn2.to_k.weight": 1, "unet.attn2.to_v.weight": 1},
        "kind": record.kind if isinstance(record, EditRecord) else "",
        "ways": {way: dict.fromkeys(EDIT_MEASURES, number) for way in EDIT_WAYS},
        "prompt": "photo of a vase",
        "words": [{"word": "vase", "map": [[0.0, 1.0], [0.5, 0.0]]}],
    }
    picture = webp_row([np.zeros((32, 32, 3), np.uint8)] * 3)
    return values | ({"picture": picture} if isinstance(record, Row | Attention | EditRecord) else {})


def results_in(folder: Path, **options: Any) -> Results:
    return Results(file=folder / "records.jsonl", new=folder / "new", size=options.pop("size", Size()), **options)


def all_records() -> list[Record]:
    records = (record for name in EXPERIMENTS for record in import_module(f"experiments.{name}").records())
    return list(dict.fromkeys(records))


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a record of every key, folded into one file."""
    results = results_in(tmp_path_factory.mktemp("records"))
    for record in all_records():
        results.put(record, made_up(record))
    results.fold()
    return results.file.parent


@pytest.fixture
def everything(folded: Path, tmp_path: Path) -> Results:
    return results_in(shutil.copytree(folded, tmp_path / "results"))


def without(results: Results, record: Record) -> Results:
    """Delete the line of a record and read the others anew."""
    lines = results.file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if f'{{"key":"{record.key}",' not in line]
    assert len(kept) == len(lines) - 1
    results.file.write_text("".join(kept))
    return results_in(results.file.parent)


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
    report = table1_single.report(without(everything, Single(EXAMPLES[3], "dreambooth", 1)), tmp_path)
    assert "seed 0." in report
    assert "±" not in report


def test_an_ordering_holds_is_reversed_or_is_too_near_to_tell(everything: Results, tmp_path: Path) -> None:
    claim = orderings.CLAIMS[4]
    assert (claim.column, claim.second) == (orderings.KID, "dreambooth")

    def verdict(distances: list[float]) -> str:
        pairs = zip(claim.records(orderings.OURS), claim.records("dreambooth"), distances, strict=True)
        for ours, theirs, distance in pairs:
            figures = everything.values(ours, "KID", "efficientnet-lite0")
            for record, figure in zip(theirs, figures, strict=True):
                values = made_up(record)
                values["measures"][3]["value"] = figure + distance
                everything.put(record, values)
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


def test_the_tables_name_what_is_not_measured_yet_and_show_the_rest(everything: Results, tmp_path: Path) -> None:
    _write(without(everything, Pair(PAIRS[0], "merge")), tmp_path)
    written = (tmp_path / "tables.md").read_text()
    assert written.count("Not measured yet: 1 records are missing.") == 2  # the table of pairs, and Fig. 8
    rows = [line for line in written.splitlines() if line.endswith("| not measured yet |")]
    assert len(rows) == 1
    assert "joint training before merge" in rows[0]


def test_only_what_is_missing_or_of_another_size_is_measured(everything: Results) -> None:
    records = list(table3_ablation.records())
    assert everything.missing(records) == []
    assert without(everything, records[2]).missing([*records, records[2]]) == [records[2]]
    larger = results_in(everything.file.parent, size=replace(everything.size, count=3))
    assert larger.missing(records) == records


def test_new_records_are_folded_into_one_file_with_the_settings_once(tmp_path: Path) -> None:
    results, records = results_in(tmp_path), [*table3_ablation.records(), Row(("jar",), "dreambooth", ("a",))]
    for record in records:
        results.put(record, made_up(record))
    before = {record.key: results_in(tmp_path)[record] for record in records}
    results.fold()
    assert not [path for path in results.new.rglob("*") if path.is_file()]
    lines = [json.loads(line) for line in results.file.read_text().splitlines()]
    assert ["settings" in line for line in lines] == [True] + [False] * len(before)
    again = results_in(tmp_path)
    assert {record.key: again[record] for record in records} == before
    assert again.missing(records) == []
    assert again.picture(records[-1]).size == (96, 32)


def test_a_folded_record_of_other_settings_keeps_them_until_it_is_measured_again(everything: Results) -> None:
    records = list(table3_ablation.records())
    renewed = results_in(everything.file.parent, weights="of today")
    renewed.put(records[0], made_up(records[0]))
    renewed.fold()
    again = results_in(everything.file.parent, weights="of today")
    assert records[0] not in again.missing(records)
    assert again.stale(records) == again.missing(records) == list(dict.fromkeys(records))[1:]
    assert sum("settings" in json.loads(line) for line in everything.file.read_text().splitlines()) == 2


def test_the_committed_records_are_those_of_the_tables_and_below_one_megabyte() -> None:
    file = Path(__file__).parents[1] / "experiments" / "results" / "records.jsonl"
    assert file.stat().st_size < 1e6
    committed = Results(file=file, new=file.parent / "none", size=Size())
    records = all_records()
    assert committed.absent(records) == []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["key"] for line in lines if "settings" not in line} == {record.key for record in records}
    pictures = file.parent / "pictures"
    keys = {path.relative_to(pictures).with_suffix("").as_posix() for path in pictures.rglob("*.webp")}
    assert keys == {record.key for record in records if isinstance(record, Row | Attention | EditRecord)}


def test_records_of_other_weights_are_measured_again_and_until_then_the_tables_say_so(
    everything: Results, tmp_path: Path
) -> None:
    records = list(table3_ablation.records())
    renewed = results_in(everything.file.parent, weights="of today")
    renewed.put(records[0], made_up(records[0]))
    assert renewed.absent(records) == []
    assert records[0] not in renewed.missing(records)
    assert len(renewed.missing(records)) == len(set(records)) - 1
    _write(renewed, tmp_path)
    assert "records were measured on earlier weights" in (tmp_path / "tables.md").read_text()
    _write(results_in(everything.file.parent), tmp_path)
    assert re.findall(r"(\d+) of \d+ records were measured on earlier", (tmp_path / "tables.md").read_text()) == ["1"]


def test_records_that_differ_have_keys_that_differ() -> None:
    records = all_records()
    assert len({record.key for record in records}) == len(records)


def test_a_worker_measures_the_record_of_its_job_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Row(("jar",), "custom-diffusion", ("photo of a {}",))
    monkeypatch.setattr(Row, "measure", lambda self, study: made_up(self) | {"folder": str(study.folder)})
    results = results_in(tmp_path)
    measuring = Measuring(records={"row-jar": record}, results=results, folder=tmp_path / "study")
    settings = {"record": record.key}
    measuring(Assignment(name="row-jar", settings=settings, folder=tmp_path, device="cpu", report=lambda *_: None))
    again = results_in(tmp_path)
    assert again.missing([record]) == []
    assert again[record]["folder"] == str(tmp_path / "study")
    assert again.picture(record).height == 32


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


def test_the_pictures_of_kid_are_not_those_of_training(tmp_path: Path) -> None:
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


def test_a_row_of_pictures_survives_its_file(tmp_path: Path) -> None:
    picture = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    record, results = Row(("jar",), "dreambooth", ("a",)), results_in(tmp_path)
    results.put(record, {"picture": webp_row([picture, picture])})
    shown = np.asarray(results.picture(record))
    assert shown.shape == (32, 64, 3)
    assert abs(shown[:, :32].astype(int) - picture).mean() < 8


def test_pocket_itself_is_asked_for_an_armchair_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("experiments.records._evaluation", lambda _s, _c, prompts, _r: asked.extend(prompts) or {})
    Base("winchesterArmchair").measure(Study(folder=tmp_path))
    assert "photo of an armchair on the beach" in asked
    assert not [prompt for prompt in asked if "a armchair" in prompt]


def test_a_new_record_is_plain_json_with_its_settings(tmp_path: Path) -> None:
    results, record = results_in(tmp_path), Row(("jar",), "dreambooth", ("a",))
    results.put(record, made_up(record))
    content = json.loads((results.new / "row" / "jar-dreambooth.json").read_text())
    assert content["settings"]["size"]["count"] == results.size.count
