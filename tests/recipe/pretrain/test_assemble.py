from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.pocket import weights_folder
from recipe.pretrain.assemble import AssembleOptions, assemble


def test_missing_parts_are_named_and_nothing_is_written(autoencoder_file: Path, tmp_path: Path) -> None:
    parts = {"autoencoder": autoencoder_file, "out": tmp_path / "weights"}
    with pytest.raises(OptionError, match=r"There is no .*image_encoder"):
        assemble(AssembleOptions(**parts, images=tmp_path))
    with pytest.raises(OptionError, match=r"There are no weights .*denoiser\.safetensors"):
        assemble(AssembleOptions(**parts, images=weights_folder(), denoiser=tmp_path / "denoiser.safetensors"))
    with pytest.raises(OptionError, match=r"has no tokenizer/"):
        assemble(AssembleOptions(**parts, images=weights_folder(), text=tmp_path))
    assert not (tmp_path / "weights").exists()
