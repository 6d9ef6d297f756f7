import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import Command, command, fails, run
from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept, SubjectRecord


@pytest.fixture
def edit(tiny_folder: Path, tmp_path: Path) -> Command:
    """An edit of a picture that the tiny model draws."""
    return command("edit", "photo of a dog", "photo of a red dog", seed=1, steps=2, device="cpu", model=tiny_folder,
                   out=tmp_path / "edited")  # fmt: skip


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)[:, :70]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_edit_writes_the_source_the_edit_and_a_sheet_of_both(edit: Command, tmp_path: Path) -> None:
    run(edit.but(reweight="red=2"))
    sizes = {}
    for name in ("source", "edit", "sheet"):
        with Image.open(tmp_path / "edited" / f"{name}.png") as picture:
            sizes[name] = picture.size
    assert sizes["source"] == sizes["edit"] == (64, 64)
    assert sizes["sheet"][0] > 128
    facts = json.loads((tmp_path / "edited" / "edit.json").read_text())
    assert (facts["source"], facts["target"], facts["seed"]) == ("photo of a dog", "photo of a red dog", 1)
    assert facts["reweight"] == {"red": 2.0}
    assert (facts["scheduler"], facts["guidance"], facts["negative_prompt"]) == ("ddim", 6, "")
    with Image.open(tmp_path / "edited" / "edit.png") as picture:
        said = json.loads(picture.info["moongate"])
    assert (said["prompt"], said["source"], said["seed"]) == ("photo of a red dog", "photo of a dog", 1)
    assert said["guidance"] == 6


def test_a_photo_becomes_a_taught_subject_and_json_says_how(
    edit: Command, photo: Path, bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((64, 70), np.uint8)
    mask[:, :35] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = (photo, "photo of a teddy bear", "photo of a <bear> teddy bear")
    capsys.readouterr()
    run(edit.but(*words, concept=bear, mask=tmp_path / "mask.png", json=True, inversion="edit-friendly"))
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts == json.loads((tmp_path / "edited" / "edit.json").read_text())
    assert facts["concept"] == Concept.load(bear).hash
    assert facts["size"] == {"width_px": 64, "height_px": 64}
    assert facts["scheduler"] == "ddpm"
    assert "Cropped to 64 x 64" in " ".join(printed.err.split())
    with Image.open(photo) as picture, Image.open(tmp_path / "edited" / "edit.png") as edited:
        assert np.array_equal(np.asarray(edited)[:, 40:], np.asarray(picture)[:, 43:67])


def test_a_word_of_several_vectors_is_reweighted_and_blended_as_a_whole(edit: Command, tmp_path: Path) -> None:
    backbone = Backbone.load(edit.options["model"], device="cpu")
    one = invented(backbone, ("<rex>", "dog"))
    rows = {**one.tokens, "<rex-2>": torch.ones(sum(backbone.token_widths))}
    subject = SubjectRecord(category="dog", token="<rex>", more_tokens=("<rex-2>",))
    replace(one, tokens=rows, subjects=(subject,)).save(tmp_path / "rex.safetensors")
    words = ("photo of a dog", "photo of a <rex> dog")
    run(edit.but(*words, concept=tmp_path / "rex.safetensors", reweight="<rex> dog=2", blend="<rex> dog"))
    facts = json.loads((tmp_path / "edited" / "edit.json").read_text())
    assert facts["target"] == "photo of a <rex> <rex-2> dog"
    assert facts["reweight"] == {"<rex> <rex-2> dog": 2.0}
    assert facts["blend"] == ["<rex> <rex-2> dog"]


def test_bad_input_to_edit_is_named_before_any_work(
    edit: Command, photo: Path, bear: Path, other_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "two or three are needed" in fails(capsys, edit.but("a dog"))
    assert "such as --seed 1" in fails(capsys, edit.without("seed"))
    assert "an edit has two prompts" in fails(capsys, edit.but(photo, "photo of a dog").without("seed"))
    assert "There is no picture" in fails(capsys, edit.but(tmp_path / "none.png", "a dog", "a red dog"))
    assert "no word in common" in fails(capsys, edit.but("red", "beach"))
    assert "'green', whose attention is to be reweighted" in fails(capsys, edit.but(reweight="green=2"))
    assert "'red' is not words and a number" in fails(capsys, edit.but(reweight="red"))
    assert "a photo has its own size" in fails(capsys, edit.but(photo, "a dog", "a red dog", width=64)).lower()
    assert "cross_share is 2.0" in fails(capsys, edit.but(cross_share=2))
    assert "The concept was made for" in fails(capsys, edit.but(concept=bear, model=other_folder))
    unloaded = edit.but(model="no-model")
    assert "noise" in fails(capsys, unloaded.but(scheduler="noise"))
    assert "The seed 99999999999999999999 is out of range" in fails(capsys, unloaded.but(seed=99999999999999999999))
    assert not (tmp_path / "edited").exists()
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "edit.png").write_bytes(b"kept")
    assert "exists already" in fails(capsys, edit)
    assert (tmp_path / "edited" / "edit.png").read_bytes() == b"kept"
