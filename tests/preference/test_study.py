import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.preference import Study, check_rater
from studying import bare_study


def write(folder: Path, study: Study, **changes: object) -> Path:
    (folder / "study.json").write_text(json.dumps({**study.to_json(), **changes}))
    return folder


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    study = bare_study(("a", "b", "c"))
    assert Study.open(write(tmp_path, study)) == study


def test_each_pair_of_each_item_is_asked_once_for_each_question() -> None:
    trials = bare_study(("a", "b", "c"), prompts=5).trials("anna")
    assert Counter(trial.question for trial in trials) == {"text": 15, "image": 15}
    assert len({trial.key for trial in trials}) == 30
    assert [trial.question for trial in trials] == ["text"] * 15 + ["image"] * 15


def test_without_photos_only_the_text_is_asked_about() -> None:
    study = bare_study(targets=False)
    assert study.questions == ("text",)
    assert {trial.question for trial in study.trials("anna")} == {"text"}


def test_order_and_sides_are_those_of_the_rater_and_of_the_seed() -> None:
    study = bare_study(prompts=40)
    assert study.trials("anna") == study.trials("anna")
    assert study.trials("anna") != study.trials("ben")
    assert study.trials("anna") != replace(study, seed=1).trials("anna")
    assert {trial.key for trial in study.trials("anna")} == {trial.key for trial in study.trials("ben")}
    assert [trial.item for trial in study.trials("anna")] != sorted(trial.item for trial in study.trials("anna"))


def test_both_methods_are_on_the_left_about_equally_often() -> None:
    lefts = Counter(trial.left for trial in bare_study(prompts=500).trials("anna"))
    assert abs(lefts["ours"] - 500) < 4 * (1000 * 0.25) ** 0.5


def test_an_item_compares_the_methods_that_drew_it() -> None:
    study = bare_study(("a", "b", "c"), prompts=1, targets=False)
    pictures = {method: study.items[0].pictures[method] for method in ("a", "c")}
    alone = replace(study, items=(replace(study.items[0], pictures=pictures),))
    assert [{trial.left, trial.right} for trial in alone.trials("anna")] == [{"a", "c"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "else"}, "it says format 'else'"),
        ({"version": 2}, "version 2"),
        ({"methods": ["ours", "theirs", "ours"]}, "compares two or more methods"),
        ({"methods": ["ours", "others"]}, "are of the methods ours, theirs"),
        ({"items": []}, "no pictures to compare"),
        ({"items": 3}, "is not a study that can be read"),
        ({"seed": float("inf")}, "is not a study that can be read"),
        (
            {"items": [{"prompt": "p", "targets": [], "pictures": {"ours": "../../secret.png", "theirs": "b"}}]},
            "'../../secret.png' is not a name of a picture",
        ),
        (
            {
                "items": [
                    {"prompt": "p", "targets": [7], "pictures": {"ours": f"{1:016}.png", "theirs": f"{2:016}.png"}}
                ]
            },
            "names a subject that is not listed",
        ),
    ],
)
def test_a_damaged_study_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        Study.open(write(tmp_path, bare_study(), **changes))


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"holds no study \(study.json: No such file"):
        Study.open(tmp_path)


def test_a_study_of_very_many_pairs_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    names = [str(number) for number in range(500)]
    item = {"prompt": "a bear", "targets": [], "pictures": {name: f"{int(name):016x}.png" for name in names}}
    with pytest.raises(OptionError, match="The study has 124750 pairs of pictures to compare; at most 100000"):
        Study.open(write(tmp_path, bare_study(), methods=names, items=[item]))


def test_a_rater_has_a_short_name_that_can_be_printed() -> None:
    assert check_rater("  Anna  Maria ") == "Anna Maria"
    for name in ("", "  ", "x" * 61, "a\x1b[31m"):
        with pytest.raises(OptionError, match="The rater's name"):
            check_rater(name)


def test_a_name_of_any_script_is_kept_without_its_invisible_marks() -> None:
    for name in ("علی\u200cرضا", "👩\u200d👩\u200d👧", "José", "山田"):
        assert check_rater(name) == name
    assert check_rater("\ufeffNo\u00ada\u200f") == "Noa"
    for name in ("\u200d", "a\ud800", "\u202e"):
        with pytest.raises(OptionError, match="The rater's name"):
            check_rater(name)
