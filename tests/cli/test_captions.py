import json
from pathlib import Path

import pytest

from command_line import command, fails, run


def test_captions_are_written_beside_photos_and_listed(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = command("captions", pictures, category="dog")
    run(captions)
    out = capsys.readouterr().out
    texts = [path.read_text() for path in sorted(pictures.glob("*.txt"))]
    assert f"Wrote {len(texts)} of {len(texts)} captions" in out
    assert texts
    assert all(text.count("{}") == 1 for text in texts)
    run(captions.but(json=True))
    found = json.loads(capsys.readouterr().out)["captions"]
    assert [entry["written"] for entry in found] == [False] * len(texts)
    assert [entry["caption"] for entry in found] == [text.strip() for text in texts]
    run(captions.but(json=True, overwrite=True))
    found = json.loads(capsys.readouterr().out)["captions"]
    assert {*found[0]["found"]} == {"place", "style", "color"}


def test_a_model_without_an_image_tower_gives_the_template(
    pictures: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(command("captions", pictures, category="dog", model=tiny_folder))
    assert "all photos get one caption" in capsys.readouterr().out
    assert {path.read_text() for path in pictures.glob("*.txt")} == {"photo of a {}\n"}


def test_a_captioner_that_is_no_blip_is_refused(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, command("captions", pictures, category="dog", captioner=pictures))
    assert "of a blip model" in error
    assert not list(pictures.glob("*.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "There is no device 'gpu'. Known: cpu"),
        (
            {"model": "nothing"},
            "There is no model 'nothing' here. Give a folder in transformers' layout, or a model id",
        ),
        ({"category": ""}, "The category is empty."),
        ({"template": "a {}", "color": True}, "--color would be ignored, because --template gives the captions."),
        ({"template": "a {}", "captioner": "blip"}, "--captioner would be ignored, because --template gives"),
        ({"captioner": "blip", "model": "clip"}, "--model would be ignored, because --captioner gives"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_message(
    options: dict[str, object], message: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, command("captions", pictures, category="dog").but(**options))
    assert not list(pictures.glob("*.txt"))
