import json
from pathlib import Path

import pytest

from command_line import command, fails, run
from moongate.data.pictures import read_mask_beside


def test_masks_are_written_beside_photos_and_listed(
    pictures: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = sorted(pictures.iterdir())
    masks = command("masks", pictures, category="dog", model=tiny_folder, device="cpu")
    run(masks)
    assert f"Wrote {len(photos)} of {len(photos)} masks" in capsys.readouterr().out
    assert all(read_mask_beside(photo) is not None for photo in photos)
    run(masks.but(json=True))
    found = json.loads(capsys.readouterr().out)["masks"]
    assert [entry["written"] for entry in found] == [False] * len(photos)
    assert all(0 < entry["share"] < 1 for entry in found)


def test_a_segmenter_that_is_no_model_is_refused(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no file" in fails(capsys, command("masks", pictures, category="dog", segmenter="none.onnx"))
    assert "of a clipseg model" in fails(capsys, command("masks", pictures, category="dog", segmenter=pictures))


def test_an_empty_category_is_refused_before_a_model_is_loaded(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "The category is empty" in fails(capsys, command("masks", pictures, category="", model="nothing"))
