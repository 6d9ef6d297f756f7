from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moongate.errors import OptionError
from moongate.pocket import weights_folder
from recipe.pretrain.image_tower import ImageTowerOptions, train_image_tower


def test_the_tower_and_the_projection_change_and_the_text_encoder_is_not_written(
    corpus_folder: Path, tmp_path: Path
) -> None:
    train_image_tower(ImageTowerOptions(corpus=corpus_folder, out=tmp_path, steps=2, batch=4))
    for name in ("image_encoder/model.safetensors", "caption_projection.safetensors"):
        before, after = load_file(weights_folder() / name), load_file(tmp_path / name)
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[key].float(), after[key]) for key in before)
    assert not (tmp_path / "text_encoder").exists()


def test_a_folder_without_a_text_encoder_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no tokenizer\. Give a folder of pocket's weights as --text"):
        train_image_tower(ImageTowerOptions(corpus=corpus_folder, text=tmp_path, out=tmp_path / "out"))
