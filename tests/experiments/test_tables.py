"""The paper's tables show the records, and a run measures only the records that are missing."""

import json
import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

from experiments import merge_ablation, orderings, table1_single, table3_ablation
from experiments.__main__ import EXPERIMENTS, ON_REQUEST, Options, _write, main
from experiments.edits import MEASURES as EDIT_MEASURES
from experiments.edits import WAYS as EDIT_WAYS
from experiments.edits import EditRecord
from experiments.layers import BLOCKS
from experiments.measuring import Measuring
from experiments.pictures import Attention, Row, Word
from experiments.records import Record, Results, webp_row
from experiments.rendering import interval
from experiments.scores import DEFAULT, MERGES, Base, Several, Single
from experiments.study import EXAMPLES, PAIRS, SEEDS, Size
from moongate.errors import OptionError
from moongate.files import exclusive
from moongate.fleet import Assignment, Job
from moongate.fleet.queue import check_names


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
        for subject in (range(len(getattr(record, "examples", "1"))) if measure == "image alignment" else (0,))
    ]
    layers = [f"unet.{block}.attentions.0.attn2.to_{kind}.weight" for block in BLOCKS for kind in "kv"]
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
        "recognized": {"all": 9, "each": [18, 9], "pictures": 27} if isinstance(record, Several) else 9,
        "merge": {"drift": number, "unconditional": 0.0, "kept": [number, 0.5]},
        "pictures": 20,
        "diversity": number,
        "image": {"pocket-clip": number, "efficientnet-lite0": number / 2},
        **dict.fromkeys(("shape", "color", "style"), number),
        "changes": dict.fromkeys(layers, number),
        "training": {"steps": 100, "seconds": 36.0},
        "seconds": 30.0,
    }
    picture = webp_row([np.zeros((32, 32, 3), np.uint8)] * 3)
    return values | ({"picture": picture} if isinstance(record, WITH_PICTURES) else {})


WITH_PICTURES = (Row, Word, Attention, EditRecord)


def results_in(folder: Path, **options: Any) -> Results:
    return Results(file=folder / "records.jsonl", new=folder / "new", size=options.pop("size", Size()), **options)


def all_records(names: tuple[str, ...] = (*EXPERIMENTS, *ON_REQUEST)) -> list[Record]:
    records = (record for name in names for record in import_module(f"experiments.{name}").records())
    return list(dict.fromkeys(records))


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a record of every key, folded into one file."""
    results = results_in(tmp_path_factory.mktemp("records"))
    for record in all_records():
        results.put(record, made_up(record))
    results.fold()
    return results.file.parent


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b'{"key": "a/b", "steps', r"Line 3 of .*records.jsonl is no record: .*Restore the file, or delete the line"),
        (b'{"steps": 3}', r"Line 3 of .* it lacks 'key'"),
        (b"[]", r"Line 3 of .*records.jsonl is no record"),
        (b'{"settings": {}, "a": "\xff"}', r"Line 3 of .*records.jsonl is no record"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, damage: bytes, message: str) -> None:
    results = results_in(tmp_path)
    results.file.write_bytes(b'{"settings": {"size": {}}}\n{"key": "a"}\n' + damage + b"\n")
    with pytest.raises(OptionError, match=message):
        results.missing(all_records(("table1_single",)))


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_new_record_that_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    results = results_in(tmp_path)
    results.new.mkdir()
    (results.new / "a.json").write_text(content)
    with pytest.raises(OptionError, match=r"a.json is no record: .*Delete it: the record is measured again"):
        results.missing(all_records(("table1_single",)))


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
    for picture in re.findall(r"\]\(([^)]+\.(?:png|webp|html))\)", written):
        assert (tmp_path / picture).stat().st_size > 0
    values = [made_up(Single(e, "dreambooth", seed))["measures"][0]["value"] for seed in SEEDS for e in EXAMPLES]
    row, *_ = [line for line in written.splitlines() if line.startswith("| DreamBooth |")]
    assert row.startswith(f"| DreamBooth | {mean(values):.3f} ± ")


def test_one_seed_is_shown_without_a_spread(everything: Results, tmp_path: Path) -> None:
    fewer = without(without(everything, Single(EXAMPLES[3], "dreambooth", 1)), Single(EXAMPLES[5], "dreambooth", 2))
    report = table1_single.report(fewer, tmp_path)
    assert "seed 0." in report
    assert "±" not in report


def test_an_ordering_holds_is_reversed_or_is_too_near_to_tell(everything: Results, tmp_path: Path) -> None:
    claim = orderings.CLAIMS[4]
    assert (claim.column, claim.second) == (orderings.KID, "dreambooth")

    def verdict(distances: list[float]) -> str:
        pairs = zip(claim.records(orderings.OURS, SEEDS), claim.records("dreambooth", SEEDS), distances, strict=True)
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
    _write(without(everything, Several(PAIRS[0], "merge")), tmp_path)
    written = (tmp_path / "tables.md").read_text()
    assert written.count("Not measured yet: 1 records are missing.") == 2  # pairs and Fig. 8
    pairs, triples = written.split("**five pairs**")[1].split("**three triples**")
    assert ("\n| with both |" in pairs, "\n| with both |" in triples) == (False, True)
    assert "\n| with further contexts |" in pairs


def test_an_ordering_is_told_from_the_seeds_that_both_sides_have(everything: Results, tmp_path: Path) -> None:
    claim = next(claim for claim in orderings.CLAIMS if claim.second == "merge")
    two = without(everything, Several(PAIRS[0], "merge", 1))
    assert claim.measured(two) == [0, 2]
    (row,) = [line for line in orderings.report(two, tmp_path).splitlines() if "joint training before merge" in line]
    difference, error = (float(number) for number in row.split(" | ")[2].split(" ± "))
    differences = claim.differences(two, [0, 2])
    assert difference == pytest.approx(mean(differences), abs=1e-3)
    assert error == pytest.approx(stdev(differences) / len(differences) ** 0.5, abs=1e-3)
    none = without(without(two, Several(PAIRS[0], "merge", 0)), Several(PAIRS[0], "merge", 2))
    (row,) = [line for line in orderings.report(none, tmp_path).splitlines() if line.endswith("| not measured yet |")]
    assert "joint training before merge" in row


def test_records_of_another_precision_count_as_measured_and_the_tables_tell_them(
    everything: Results, tmp_path: Path
) -> None:
    records = list(dict.fromkeys(table3_ablation.records()))
    other = {"bfloat16": "float32", "float32": "bfloat16"}[everything.size.dtype]
    elsewhere = results_in(everything.file.parent, size=replace(everything.size, dtype=other))
    assert elsewhere.missing(records) == []
    elsewhere.put(records[0], made_up(records[0]))
    assert elsewhere.precisions(records) == {everything.size.dtype: len(records) - 1, other: 1}
    _write(elsewhere, tmp_path)
    assert f"1 records in {other}" in (tmp_path / "tables.md").read_text()


def test_only_what_is_missing_or_of_another_size_is_measured(everything: Results) -> None:
    records = list(table3_ablation.records())
    assert everything.missing(records) == []
    assert without(everything, records[2]).missing([*records, records[2]]) == [records[2]]
    larger = results_in(everything.file.parent, size=replace(everything.size, count=3))
    assert larger.missing(records) == records


def test_a_record_of_other_prompts_is_measured_again(everything: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.records.read_prompts", lambda _name: ["photo of a {} on the moon"])
    records = list(table3_ablation.records())
    assert results_in(everything.file.parent).missing(records) == list(dict.fromkeys(records))


def test_new_records_are_folded_into_one_file_with_the_settings_once(tmp_path: Path) -> None:
    results, records = results_in(tmp_path), [*table3_ablation.records(), Row(("jar",), "dreambooth", ("a",))]
    for record in records:
        results.put(record, made_up(record))
    unfolded = results_in(tmp_path)
    before = {record.key: unfolded[record] for record in records}
    results.fold()
    assert not [path for path in results.new.rglob("*") if path.is_file()]
    lines = [json.loads(line) for line in results.file.read_text().splitlines()]
    assert ["settings" in line for line in lines] == [True] + [False] * len(before)
    again = results_in(tmp_path)
    assert {record.key: again[record] for record in records} == before
    assert again.missing(records) == []
    assert again.picture(records[-1]).size == (96, 32)


def test_what_an_interrupted_run_left_is_folded_when_the_tables_are_written(
    everything: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(
        records=everything.file, folder=tmp_path / "runs", results=tmp_path / "tables", render_only=True, workers=1
    )
    record = Single(EXAMPLES[0], "dreambooth")
    left = Results(file=everything.file, new=options.folder / "records", size=options.size)
    left.put(record, made_up(record) | {"bytes": 7})
    with exclusive(options.folder):
        main(options)
    assert left.unfolded
    assert "while another process measures" in capsys.readouterr().out
    main(options)
    assert not left.unfolded
    assert results_in(everything.file.parent)[record]["bytes"] == 7
    assert results_in(everything.file.parent).missing(all_records()) == []
    assert (options.results / "tables.md").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("table9",)}, "There is no experiment 'table9'"),
        ({"seeds": 4}, "There are 3 seeds, not 4"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_measured(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        main(Options(folder=tmp_path / "runs", results=tmp_path / "tables", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_folded_record_of_other_settings_keeps_them_until_it_is_measured_again(everything: Results) -> None:
    records = list(table3_ablation.records())
    renewed = results_in(everything.file.parent, weights="of today")
    renewed.put(records[0], made_up(records[0]))
    renewed.fold()
    again = results_in(everything.file.parent, weights="of today")
    assert records[0] not in again.missing(records)
    assert again.stale(records) == again.missing(records) == list(dict.fromkeys(records))[1:]
    assert sum("settings" in json.loads(line) for line in everything.file.read_text().splitlines()) == 2


def test_the_committed_records_are_those_of_the_tables() -> None:
    file = Path(__file__).parents[2] / "experiments" / "results" / "records.jsonl"
    assert file.stat().st_size < 1.5e6
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    committed_keys = {line["key"] for line in lines if "settings" not in line}
    assert committed_keys <= {record.key for record in all_records()}
    pictures = file.parent / "pictures"
    assert {
        path.relative_to(pictures).with_suffix("").as_posix() for path in pictures.rglob("*.webp")
    } <= committed_keys


def test_records_of_tables_that_are_no_more_are_dropped_with_their_pictures(everything: Results) -> None:
    gone = Row(("jar",), "dreambooth", ("a {}",), "fig0")
    known = {record.key for record in all_records()}
    everything.put(gone, made_up(gone))
    everything.fold(known | {gone.key})
    assert results_in(everything.file.parent).picture(gone).height == 32
    everything.put(Base(EXAMPLES[0]), made_up(Base(EXAMPLES[0])))
    everything.fold(known)
    assert results_in(everything.file.parent).missing([gone]) == [gone]
    assert not list(everything.file.parent.rglob("fig0/*.webp"))
    assert results_in(everything.file.parent).missing(all_records()) == []


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


def test_records_that_differ_have_keys_that_differ_and_can_name_jobs() -> None:
    records = all_records()
    assert len({record.key for record in records}) == len(records)
    check_names([Job(name=record.key.replace("/", "-"), settings={}) for record in records])


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


def test_a_row_of_pictures_survives_its_file(tmp_path: Path) -> None:
    picture = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    record, results = Row(("jar",), "dreambooth", ("a",)), results_in(tmp_path)
    results.put(record, {"picture": webp_row([picture, picture])})
    shown = np.asarray(results.picture(record))
    assert shown.shape == (32, 64, 3)
    assert abs(shown[:, :32].astype(int) - picture).mean() < 8


def test_a_new_record_is_plain_json_with_its_settings(tmp_path: Path) -> None:
    results, record = results_in(tmp_path), Row(("jar",), "dreambooth", ("a",))
    results.put(record, made_up(record))
    content = json.loads((results.new / "row" / "fig6" / "jar-dreambooth.json").read_text())
    assert content["settings"]["size"]["count"] == results.size.count


def test_the_ablation_of_merges_shows_every_option_with_intervals_and_counts(
    everything: Results, tmp_path: Path
) -> None:
    better = made_up(Several(PAIRS[0], "merge", 0, "with further contexts"))
    better["recognized"]["all"] = 9 + 27  # in one of three seeds of one of five pairs: 100 / 15 points in the mean
    everything.put(Several(PAIRS[0], "merge", 0, "with further contexts"), better)
    report = merge_ablation.report(everything, tmp_path)
    for merging in MERGES:
        pairs, triples = [line for line in report.splitlines() if line.startswith(f"| {merging} |")]
        assert ", 81 of 243 |" in triples
        if merging == "with further contexts":
            assert "| +7 (-12 to +25) |" in pairs
        else:
            assert "33% (33% to 33%), 135 of 405 |" in pairs  # five pairs, three seeds, 27 pictures of each
            assert ("| +0 (+0 to +0) |" in pairs) == (merging != DEFAULT)
    assert report.count("| pocket itself |") == 2


def test_an_interval_over_few_groups_is_as_wide_as_students_t_makes_it() -> None:
    # Means 1 to 5: standard error (2.5 / 5)^(1/2), and 2.776 is the 97.5 % quantile for four degrees of freedom.
    assert interval([[0.5, 1.5], [2], [3], [4], [5]], digits=2) == "3.00 (1.04 to 4.96)"
    assert interval([[0.25]], percent=True, digits=0) == "25% (25% to 25%)"
    assert interval([[0.1], [0.9]], percent=True, digits=0) == "50% (0% to 100%)"  # 12.7 standard errors of 0.4


def test_an_ordering_says_how_many_subjects_would_decide_it() -> None:
    # A difference of one standard error over 10 subjects needs four times as many for two.
    assert orderings._needed(0.1, 0.1, 10) == "40"
    assert orderings._needed(-0.2, 0.1, 10) == "10"
    assert orderings._needed(0.0, 0.1, 10) == "over 1000"
