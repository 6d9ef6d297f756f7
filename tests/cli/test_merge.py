import json
import re
from pathlib import Path

import pytest

from command_line import command, fails, run
from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept


def test_merge_writes_a_concept_and_a_report(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "both.safetensors", tmp_path / "report"
    run(command("merge", bear, bear, out=out, report=report, device="cpu"))
    assert list(Concept.load(out).tokens) == ["<bear>", "<bear2>"]
    assert "the later one is now <bear2>" in capsys.readouterr().out
    facts = json.loads((report / "report.json").read_text())
    assert [fit["words"] for fit in facts["subjects"]] == ["<bear> teddy bear", "<bear2> teddy bear"]
    assert (report / "index.html").is_file()
    assert len(list((tmp_path / "cache" / "moongate").glob("gram-*.safetensors"))) == 1
    run(command("merge", out, without="<bear2>", out=tmp_path / "one.safetensors", device="cpu"))
    assert list(Concept.load(tmp_path / "one.safetensors").tokens) == ["<bear>"]


def test_a_concept_is_merged_at_a_strength(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half.safetensors"
    run(command("merge", f"{bear}:0.5", out=out, device="cpu"))
    half = Concept.load(bear).scaled(0.5).save(tmp_path / "scaled.safetensors")
    run(command("merge", half, out=tmp_path / "same.safetensors", device="cpu"))
    assert Concept.load(out).hash == Concept.load(tmp_path / "same.safetensors").hash
    for strength, message in (("inf", "The strength of"), ("0", "has no effect at strength 0")):
        assert message in fails(capsys, command("merge", f"{bear}:{strength}", out=tmp_path / "x.safetensors"))


def test_merge_refuses_before_it_works(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, out = tmp_path / "missing.txt", tmp_path / "out.safetensors"
    merge = command("merge", bear, out=out)
    assert "exists already" in fails(capsys, merge.but(out=bear))
    assert str(missing) in fails(capsys, merge.but(captions=missing))
    assert "no concept to merge" in fails(capsys, command("merge", out=out))
    assert "is a file" in fails(capsys, merge.but(report=bear))
    assert not out.exists()


def test_captions_in_another_encoding_are_named(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("a café".encode("latin-1"))
    message = fails(capsys, command("merge", bear, captions=text, out=tmp_path / "out.safetensors"))
    assert "text.txt cannot be read: it is not text in UTF-8" in message


def test_a_merge_can_be_checked_without_being_written(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.safetensors", tmp_path / "report"
    run(command("merge", bear, check=True, report=report, device="cpu"))
    assert capsys.readouterr().out.startswith("<bear> teddy bear keeps 100% of its change")
    assert (report / "report.json").is_file()
    assert list(tmp_path.glob("*.safetensors")) == [bear]
    assert "either --out" in fails(capsys, command("merge", bear, check=True, out=out))
    assert "either --out" in fails(capsys, command("merge", bear))


def test_words_of_the_base_are_erased_and_protected_without_a_concept(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "edited.safetensors", tmp_path / "words.txt"
    words.write_text("cat\nbeach\n")
    edit = command("merge", model=tiny_folder, out=out, device="cpu", contexts=1)
    run(edit.but(erase="dog=>chair", protect=words))
    edited = Concept.load(out)
    assert [block["words"] for block in edited.record["rows"]] == ["dog=>chair", "cat", "beach"]
    assert (edited.tokens, edited.subjects) == ({}, ())
    assert capsys.readouterr().out.startswith("dog is read as chair: ")
    wrong = edit.but(out=tmp_path / "other.safetensors", model=tmp_path / "no-model")  # before a model is looked for
    assert "cannot be read" in fails(capsys, wrong.but(erase="dog"))
    assert "contradict each other" in fails(capsys, wrong.but(erase="dog=>chair", protect="dog"))
    assert "no file of words to protect" in fails(capsys, wrong.but(protect="missing.txt"))


def test_the_report_has_pictures_before_and_after_on_request(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.cli.merge.SEEDS", range(1))
    merge = command("merge", bear, out=tmp_path / "clean.safetensors", draw=True, device="cpu")
    assert "Say where it goes with --report" in fails(capsys, merge)
    run(merge.but(report=tmp_path / "report"))
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<img") == 3
    assert 'alt="after the merge"' in page
    assert "Drawing 3 pictures for the report." in capsys.readouterr().out


def test_words_that_are_erased_or_protected_are_drawn_too(
    bear: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.cli.merge.SEEDS", range(1))
    edit = command("merge", erase="dog=>cat", protect="chair", check=True, draw=True, device="cpu")
    for merge, pictures in ((edit, 4), (edit.but(bear), 7)):
        run(merge.but(model=tiny_folder, report=tmp_path / str(pictures)))
        assert (tmp_path / str(pictures) / "index.html").read_text().count("<img") == pictures


def test_a_concept_that_knows_all_subjects_draws_them_together_before_the_merge(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.cli.merge.SEEDS", range(1))
    file = invented(tiny, ("<one>", "bear"), ("<two>", "cat")).save(tmp_path / "joint.safetensors")
    run(command("merge", file, check=True, draw=True, report=tmp_path / "report", device="cpu"))
    assert (tmp_path / "report" / "index.html").read_text().count("<img") == 9


def test_two_concepts_of_the_same_words_and_more_than_one_prompt_holds_are_drawn(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.cli.merge.SEEDS", range(1))
    names = [(None, "chair"), (None, "chair"), ("<a>", "small red chair"), ("<b>", "small red chair")]
    for number, name in enumerate(names):
        invented(tiny, name, seed=number).save(tmp_path / f"{number}.safetensors")
    files = [tmp_path / f"{number}.safetensors" for number in range(len(names))]
    run(command("merge", *files, check=True, draw=True, report=tmp_path / "report", device="cpu"))
    labels = re.findall('alt="([^"]+)"', (tmp_path / "report" / "index.html").read_text())
    named = ("chair", "&lt;a&gt; small red chair", "&lt;b&gt; small red chair")
    before = [f"{words} before the merge" for words in named] + ["chair before the merge (2)"]
    assert {label: labels.count(label) for label in labels} == {
        **dict.fromkeys(("the base alone", "after the merge"), 3),
        **dict.fromkeys(before, 1),
    }


def test_the_report_draws_with_each_concept_what_it_knows(
    bear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.cli.merge.SEEDS", range(1))
    options = {"out": tmp_path / "both.safetensors", "report": tmp_path / "report", "draw": True, "device": "cpu"}
    run(command("merge", bear, bear, **options))
    page = (tmp_path / "report" / "index.html").read_text()
    labels = re.findall('alt="([^"]+)"', page)
    before = [f"&lt;{token}&gt; teddy bear before the merge" for token in ("bear", "bear2")]
    wanted = {"the base alone": 3, before[0]: 1, before[1]: 1, "after the merge": 3}
    assert {label: labels.count(label) for label in labels} == wanted
