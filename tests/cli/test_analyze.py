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
    of_photo = command("analyze", "attention", prompt="a dog", source=bear)
    assert "Maps are shown of pictures that the model draws, not of photos" in fails(capsys, of_photo)
    assert "no concept file to show the spectrum of" in fails(capsys, command("analyze", "spectrum"))
