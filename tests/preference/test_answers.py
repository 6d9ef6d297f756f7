import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moongate.errors import MoongateWarning, OptionError
from moongate.preference import Answer, Study, add, answer, picture_key, read_answers, read_sent
from studying import TIME, bare_study, said


def sent(path: Path, of: Study, answers: list[dict[str, object]], **changes: object) -> Path:
    facts = {"format": "moongate-answers", "version": 1, "study": of.id, "rater": "anna", "answers": answers}
    path.write_text(json.dumps({**facts, **changes}))
    return path


def of_page(
    study: Study, item: int, *, left: str = "ours", right: str = "theirs", **changes: object
) -> dict[str, object]:
    keys = {"left": picture_key(study, item, left), "right": picture_key(study, item, right)}
    return {"question": "text", **keys, "choice": "left", "time": "2026-01-31T12:00:00.000Z", **changes}


def test_answers_are_read_as_they_were_given(tmp_path: Path) -> None:
    study = bare_study()
    given = [said("anna", 0, "ours"), said("ben", 0, None), said("anna", 1, "ours", question="image")]
    for one in given:
        answer(tmp_path, study, one)
    assert read_answers(tmp_path, study) == given
    assert [one.preferred for one in given] == ["ours", None, "ours"]


def test_ends_of_lines_in_the_name_of_a_method_cost_no_answer(tmp_path: Path) -> None:
    plain = bare_study()
    pictures = tuple(replace(item, pictures={"our\u2028s": "a.png", "their\x85s": "b.png"}) for item in plain.items)
    study = replace(plain, methods=("our\u2028s", "their\x85s"), items=pictures)
    given = [Answer.now("anna", trial, "left") for trial in study.trials("anna")]
    for one in given:
        answer(tmp_path, study, one)
    assert read_answers(tmp_path, study) == given


def test_a_rater_may_change_an_answer(tmp_path: Path) -> None:
    study = bare_study()
    trial = study.trials("anna")[0]
    for choice in ("left", "right"):
        answer(tmp_path, study, Answer.now("anna", trial, choice))
    (kept,) = read_answers(tmp_path, study)
    assert kept.choice == "right"


def test_the_sides_do_not_make_another_trial(tmp_path: Path) -> None:
    study = bare_study()
    answer(tmp_path, study, said("anna", 0, "ours"))
    answer(tmp_path, study, said("anna", 0, "theirs", over="ours", time="2026-01-31T13:00:00.000+00:00"))
    assert [one.preferred for one in read_answers(tmp_path, study)] == ["theirs"]


def test_what_is_not_of_the_study_is_not_kept(tmp_path: Path) -> None:
    study = bare_study()
    for wrong in (said("anna", 9, "ours"), said("anna", 0, "others"), replace(said("anna", 0, "ours"), choice="both")):
        with pytest.raises(ValueError, match="the study has no trial|the choice 'both'"):
            answer(tmp_path, study, wrong)
    assert read_answers(tmp_path, study) == []


def test_a_cut_line_costs_one_answer_and_is_named(tmp_path: Path) -> None:
    study = bare_study()
    for item in range(3):
        answer(tmp_path, study, said("anna", item, "ours"))
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    answer(tmp_path, study, said("anna", 3, "ours"))
    with pytest.warns(MoongateWarning, match=r"Line 3 of .*answers.jsonl is left out"):
        assert [one.trial.item for one in read_answers(tmp_path, study)] == [0, 1, 3]


def test_a_time_that_utc_cannot_hold_costs_one_answer_and_is_named(tmp_path: Path) -> None:
    study = bare_study()
    for item in range(2):
        answer(tmp_path, study, said("anna", item, "ours"))
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text().replace(TIME, "0001-01-01T00:00:00+01:00", 1))
    with pytest.warns(MoongateWarning, match=r"Line 1 of .*: the time '0001.*' cannot be written in UTC"):
        assert [one.trial.item for one in read_answers(tmp_path, study)] == [1]


def test_a_killed_process_loses_no_answer_that_was_given(tmp_path: Path) -> None:
    code = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from moongate.preference import answer
from studying import bare_study, said
study = bare_study(prompts=2000)
for item in range(2000):
    answer(Path(sys.argv[1]), study, said("anna", item, "ours"))
    print(item, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *sys.path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.stdout.close()
    process.wait()
    kept = [one.trial.item for one in read_answers(tmp_path, bare_study(prompts=2000))]
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1


def test_answers_of_a_page_are_added_once(tmp_path: Path) -> None:
    study = bare_study()
    file = sent(tmp_path / "anna.json", study, [of_page(study, 0), of_page(study, 1, choice="skip")])
    assert add(tmp_path, study, read_sent(file, study)) == 2
    assert add(tmp_path, study, read_sent(file, study)) == 0
    assert [(one.rater, one.trial.item, one.preferred) for one in read_answers(tmp_path, study)] == [
        ("anna", 0, "ours"),
        ("anna", 1, None),
    ]


def test_an_older_file_does_not_undo_a_later_answer(tmp_path: Path) -> None:
    study = bare_study()
    later = sent(tmp_path / "b.json", study, [of_page(study, 0, choice="right", time="2026-02-01T00:00:00.000Z")])
    older = sent(tmp_path / "a.json", study, [of_page(study, 0)])
    assert [add(tmp_path, study, read_sent(file, study)) for file in (later, older)] == [1, 0]
    assert [one.preferred for one in read_answers(tmp_path, study)] == ["theirs"]


def test_a_file_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    study = bare_study(("ours", "theirs", "third"))
    good = of_page(study, 0)
    mixed = {**good, "right": picture_key(study, 1, "theirs")}
    cases: list[tuple[list[dict[str, object]], dict[str, object], str]] = [
        ([good], {"study": "0123"}, "it is of the study '0123'"),
        ([good], {"version": 2}, "it has version 2, and this Moongate reads up to 1"),
        ([good], {"format": "else"}, "not what the page of a study saves"),
        ([good], {"rater": " "}, "The rater's name"),
        ([good], {"rater": 7}, "cannot be added"),
        ([good, {**good, "left": "0" * 16}], {}, "has no picture '0000"),
        ([good, mixed], {}, "two pictures of different prompts"),
        ([{**good, "right": good["left"]}], {}, "the study has no trial"),
        ([{**good, "question": "beauty"}], {}, "the study has no trial"),
        ([{**good, "choice": "both"}], {}, "the choice 'both'"),
        ([{**good, "time": "noon"}], {}, "Invalid isoformat"),
        ([{**good, "time": "2026-01-31T12:00:00"}], {}, "has no zone"),
        ([{**good, "time": "0001-01-01T00:00:00+01:00"}], {}, "cannot be written in UTC"),
        ([{"question": "text"}], {}, "it lacks 'left'"),
    ]
    for answers, changes, message in cases:
        with pytest.raises(OptionError, match=message):
            read_sent(sent(tmp_path / "x.json", study, answers, **changes), study)
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(OptionError, match="cannot be added"):
        read_sent(tmp_path / "x.json", study)
    with pytest.raises(OptionError, match="cannot be read"):
        read_sent(tmp_path / "nowhere.json", study)
