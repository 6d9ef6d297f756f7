import json
from pathlib import Path

import pytest

from command_line import Command, command, fails, run
from moongate.preference import Answer, Study, answer, picture_key
from studying import make_picture, make_pictures


@pytest.fixture
def make(tmp_path: Path) -> Command:
    prompts = [f"a <bear> teddy bear, number {number}" for number in range(6)]
    for number, name in enumerate(("ours", "theirs", "third")):
        make_pictures(tmp_path / name, prompts, seed=1000 * number)
    make_picture(tmp_path / "photos" / "0.png", seed=7)
    methods = tuple(f"{name}={tmp_path / name}" for name in ("ours", "theirs", "third"))
    return command("judge make", tmp_path / "study", method=methods, subject=f"<bear> teddy bear={tmp_path / 'photos'}")


def test_a_study_is_made_answered_and_measured(
    make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make)
    study = Study.open(tmp_path / "study")
    assert (study.methods, len(study.items), study.targets[0].words) == (("ours", "theirs", "third"), 6, "teddy bear")
    assert (tmp_path / "study" / "judge.html").is_file()
    assert "36 trials of ours, theirs, third" in capsys.readouterr().out
    for rater in ("anna", "ben"):
        for trial in study.trials(rater)[:18]:
            is_for_ours = "ours" in (trial.left, trial.right) and trial.item != 5
            best = "ours" if is_for_ours else max(trial.left, trial.right)
            choice = "left" if trial.left == best else "right"
            answer(tmp_path / "study", study, Answer.now(rater, trial, choice))
    run(command("judge results", tmp_path / "study", json=True))
    facts = json.loads(capsys.readouterr().out)
    (pair,) = [
        p for p in facts["preferences"] if (p["question"], p["first"], p["second"]) == ("text", "ours", "theirs")
    ]
    assert pair["share"] == pytest.approx(5 / 6)
    assert pair["low"] < 5 / 6 < pair["high"]
    assert (pair["raters"], pair["prompts"], facts["raters"]) == (2, 6, ["anna", "ben"])
    run(command("judge results", tmp_path / "study"))
    shown = capsys.readouterr().out
    assert "83.3%" in shown
    assert "No answers connect these groups of methods: ours; theirs; third." in shown


def test_files_of_raters_are_added_all_or_none(
    make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make)
    study = Study.open(tmp_path / "study")
    keys = {side: picture_key(study, 0, method) for side, method in (("left", "ours"), ("right", "third"))}
    one = {"question": "text", **keys, "choice": "left", "time": "2026-01-31T12:00:00Z"}
    facts = {"format": "moongate-answers", "version": 1, "study": study.id, "rater": "anna", "answers": [one]}
    good, bad = tmp_path / "anna.json", tmp_path / "ben.json"
    good.write_text(json.dumps(facts))
    bad.write_text(json.dumps({**facts, "study": "another"}))
    add = command("judge add", tmp_path / "study", good, bad)
    assert "ben.json cannot be added: it is of the study 'another'" in fails(capsys, add)
    assert not (tmp_path / "study" / "answers.jsonl").exists()
    run(add.but(tmp_path / "study", good))
    assert "1 new of 1 answers" in capsys.readouterr().out
    run(add.but(tmp_path / "study", good))
    assert "0 new of 1 answers" in capsys.readouterr().out


def test_what_cannot_be_judged_is_named(make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--method 'ours' is not a name and a folder" in fails(capsys, make.but(method="ours"))
    twice = (f"a={tmp_path / 'ours'}", f"a={tmp_path / 'third'}")
    assert "The method 'a' is given twice" in fails(capsys, make.but(method=twice))
    assert "1 methods are given" in fails(capsys, make.but(method=twice[:1]))
    assert "holds no study" in fails(capsys, command("judge results", tmp_path / "study"))
    run(make)
    assert "holds a study already" in fails(capsys, make)


def test_a_folder_may_have_an_equals_sign_in_its_name(
    make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").rename(tmp_path / "lr=0.1")
    run(make.but(method=(f"ours={tmp_path / 'ours'}", f"theirs={tmp_path / 'lr=0.1'}")))
    assert "trials of ours, theirs" in capsys.readouterr().out
    gone = (f"ours={tmp_path / 'ours'}", f"theirs={tmp_path / 'lr=0.2'}")
    message = fails(capsys, make.but(tmp_path / "another", method=gone))
    assert f"There is no folder of pictures {tmp_path / 'lr=0.2'}." in message


def test_a_seed_with_which_a_study_could_not_be_read_again_is_refused_before_it_is_written(
    make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"The seed {10**22} is out of range" in fails(capsys, make.but(seed=10**22))
    assert not (tmp_path / "study").exists()
