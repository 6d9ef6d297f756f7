import json
from pathlib import Path

import pytest

from command_line import Command, command, fails, run
from moongate.data.pictures import read_picture


def search(query: str, source: object, **options: object) -> Command:
    return command("retrieve search", query, from_=source, device="cpu", **options)


def test_a_collection_is_not_written_among_other_files(
    captioned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(captioned.iterdir())
    monkeypatch.setattr("moongate.backbone.Backbone.load", None)  # it is said before a model is loaded
    message = fails(capsys, command("retrieve index", captioned, out=captioned, device="cpu"))
    assert "holds other files, such as 0.png, and a collection needs a folder of its own. Choose another" in message
    assert sorted(captioned.iterdir()) == before


def test_retrieve_search_writes_captioned_pictures_that_train_takes(
    collection: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reg"
    five = search("photo of a dog on the beach", collection, out=out, count=5, threshold=-1, side=64)
    run(five)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert rows[0]["caption"] == "photo of a dog on the beach"
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert len(rows) == 5
    assert read_picture(out / rows[0]["file_name"]).shape == (64, 80, 3)
    assert "Retrieved 5 pictures with similarities from 1.000 to" in capsys.readouterr().out
    assert "exists already" in fails(capsys, five)
    (out / "0000.png").unlink()
    run(five.but(overwrite=True))
    assert (out / "0000.png").is_file()  # asked for again, it is fetched again
    run(train.but(regularization=out))


def test_retrieve_search_refuses_before_it_replaces_or_loads(
    captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = search("photo of a dog", tmp_path / "nowhere", out=tmp_path / "reg")
    assert "has no retrieval.json" in fails(capsys, nowhere.but(out=captioned, overwrite=True))
    assert (captioned / "0.png").is_file()
    assert "There is no collection in" in fails(capsys, nowhere)
    assert "count is 0" in fails(capsys, nowhere.but(count=0))
    assert "The query is empty" in fails(capsys, nowhere.but(" "))
    pool = search("photo of a dog", "pool", out=tmp_path / "reg", by="pictures")
    assert "no features of pictures" in fails(capsys, pool)
    assert not (tmp_path / "nowhere").exists()


def test_a_collection_finds_its_clip_model_from_any_folder_and_by_option_after_a_move(
    clip: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collection, moved = tmp_path / "collection", tmp_path / "moved"
    monkeypatch.chdir(tmp_path)
    run(command("retrieve index", captioned, encoder="clip", out=collection, device="cpu"))
    one = search("photo of a dog", collection, threshold=-1, count=1)
    monkeypatch.chdir(captioned)
    run(one.but(out=tmp_path / "here"))
    clip.rename(moved)
    message = fails(capsys, one.but(out=tmp_path / "gone"))
    assert f"was indexed with {clip}; say where" in message
    run(one.but(out=tmp_path / "there", encoder=moved))


def test_pictures_need_no_similarity_unless_a_threshold_is_given(clip: Path, captioned: Path, tmp_path: Path) -> None:
    collection = tmp_path / "collection"
    run(command("retrieve index", captioned, encoder=clip, pictures=True, out=collection, device="cpu"))
    run(search("photo of a dog", collection, count=2, by="pictures", out=tmp_path / "reg"))
    assert json.loads((tmp_path / "reg" / "retrieval.json").read_text())["threshold"] == -1


def test_a_source_that_cannot_be_indexed_is_named_before_a_model_is_loaded(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = command("retrieve index", "nowhere/", out=tmp_path / "collection", model="a-model-that-is-nowhere")
    assert "There is no file or folder nowhere/." in fails(capsys, index)
    message = fails(capsys, index.but(pictures))
    assert "Nothing of the source can be used: " in message
    assert "pictures without a caption, such as " in message
    assert "--pictures needs a CLIP model" in fails(capsys, index.but(pictures=True))
    assert not (tmp_path / "collection").exists()


def test_pictures_that_were_not_indexed_are_named_before_a_model_is_loaded(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_pictures = search("photo of a dog", collection, out=tmp_path / "reg", by="pictures", model="nowhere")
    assert "has no features of pictures. Index with --pictures." in fails(capsys, by_pictures)
