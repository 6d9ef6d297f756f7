import json
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import Command, command, run
from making import invented
from moongate.backbone import Backbone
from moongate.interop import FORMATS


def test_info_prints_what_is_in_the_file(bear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run(command("info", bear, json=True))
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == FORMATS["moongate"].title
    assert facts["tokens"] == ["<bear>"]
    assert facts["categories"] == ["teddy bear"]
    assert facts["prompts"] == ["photo of a <bear> teddy bear"]
    assert facts["method"] == "custom-diffusion"
    assert (facts["changed_weights"], facts["low_rank"], facts["largest_rank"]) == (14, 0, None)
    assert facts["bytes"] == bear.stat().st_size
    assert facts["steps"] == 3
    assert set(facts["versions"]) == {"python", "moongate", "torch", "diffusers", "transformers"}
    run(command("info", bear))
    assert "<bear>" in capsys.readouterr().out


def test_info_says_the_same_of_a_file_that_it_reads_with_its_model(
    bear: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for options in ({}, {"model": tiny_folder, "device": "cpu"}):
        capsys.readouterr()
        run(command("info", bear, json=True, **options))
        told.append(json.loads(capsys.readouterr().out))
    assert told[1] == {**told[0], "notes": []}


def test_the_table_of_a_merge_shows_words_and_no_python(
    train: Command, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(train)
    run(command("merge", train.options["out"], out=tmp_path / "merged.safetensors", model=tiny_folder, device="cpu"))
    capsys.readouterr()
    run("info", tmp_path / "merged.safetensors")
    shown = capsys.readouterr().out
    assert "words <bear> teddy bear" in shown
    assert not any(mark in shown for mark in ("{'", "['", "[{"))


def test_the_record_of_a_file_cannot_stand_for_what_the_file_is(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concept = replace(invented(tiny, ("<rex>", "dog")), record={"bytes": "few", "tokens": 3, "steps": 7})
    file = concept.save(tmp_path / "dog.safetensors")
    run("info", file)
    assert "few" not in capsys.readouterr().out
    run("info", file, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bytes"], facts["tokens"], facts["steps"]) == (file.stat().st_size, ["<rex>"], 7)
