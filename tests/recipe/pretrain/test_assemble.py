import json
from dataclasses import replace
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.pocket import weights_folder
from recipe.networks import make_denoiser, write_weights
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


def test_the_number_of_pictures_must_be_known(autoencoder_file: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "denoiser.safetensors", make_denoiser().state_dict())
    paths = {"autoencoder": autoencoder_file, "denoiser": tmp_path / "denoiser.safetensors"}
    options = AssembleOptions(**paths, images=weights_folder(), out=tmp_path / "weights")
    with pytest.raises(OptionError, match=r"does not say how many pictures it has seen. Give --pictures-seen"):
        assemble(options)
    assemble(replace(options, pictures_seen=12))
    assert json.loads((tmp_path / "weights" / "training.json").read_text()) == {"pictures_seen": 12}
