import json
from pathlib import Path

import pytest
from PIL import Image

from command_line import command, fails, run


def test_analyze_writes_tables_and_pages(
    bear: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "analysis"
    for what in ("weights", "spectrum", "attention"):
        run(command("analyze", what, bear, steps=1, out=out, device="cpu"))
        assert f"{what}.html" in capsys.readouterr().out
        assert "<h1>" in (out / f"{what}.html").read_text()
    kinds = [change["kind"] for change in json.loads((out / "weights.json").read_text())]
    assert kinds == ["cross-attention", "self-attention", "the rest"]
    assert len(json.loads((out / "spectrum.json").read_text())) == 14
    words = json.loads((out / "attention.json").read_text())[0]["words"]
    assert [word["word"] for word in words] == ["photo", "of", "a", "<bear>", "teddy", "bear"]
    with Image.open(out / "attention.png") as sheet:
        assert sheet.width > 7 * 64
    run(command("analyze", "attention", model=tiny_folder, prompt="a dog", steps=1, out=out))
    assert "neither a concept file nor a --prompt" in fails(capsys, command("analyze", "attention"))
    of_file = command("analyze", "attention", prompt="a dog", source=bear)
    assert "Give the file with --photo" in fails(capsys, of_file)
    assert "no concept file to show the spectrum of" in fails(capsys, command("analyze", "spectrum"))
    unloaded = command("analyze", "attention", prompt="a dog", model="no-model", seed=99999999999999999999)
    assert "is out of range" in fails(capsys, unloaded)


def test_the_maps_of_a_photo_and_of_its_edit_are_shown(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "maps"
    Image.effect_noise((64, 64), 90).convert("RGB").save(photo)
    attention = command(
        "analyze", "attention", bear, photo=photo, prompt="a <bear> bear", steps=2, out=out, device="cpu"
    )
    assert "--photo" in fails(capsys, attention)
    assert "there is one photo" in fails(capsys, attention.but(source="a bear", count=2))
    run(attention.but(source="a bear"))
    source, target = json.loads((out / "attention.json").read_text())
    assert [word["word"] for word in source["words"]] == ["a", "bear"]
    assert [word["word"] for word in target["words"]] == ["a", "<bear>", "bear"]
