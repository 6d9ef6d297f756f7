"""The folder of diffusers' example."""

from pathlib import Path

import pytest
import torch

import foreign_files as foreign
from foreign_concepts import WIDTH, assert_changes, denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import ConceptFileError


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_folder_of_diffusers_is_read(tiny: Backbone, tmp_path: Path, suffix: str) -> None:
    before = denoiser(tiny)
    folder = foreign.diffusers_folder(tmp_path / "model", before, "<new1>", foreign.row(WIDTH), suffix=suffix)
    imported = interop.read(folder, base=tiny)
    assert imported.format == "diffusers"
    assert_changes(imported.concept, before, exactly=False)
    assert torch.equal(imported.concept.tokens["<new1>"], foreign.row(WIDTH))
    assert imported.concept.tokens["<new1>"].untyped_storage().nbytes() == 4 * WIDTH


@pytest.mark.parametrize("wrapper", ["unet.", "module.", "_orig_mod.", "base_model.model.", "module.unet."])
def test_the_names_of_a_wrapped_model_are_read(tiny: Backbone, tmp_path: Path, wrapper: str) -> None:
    before = denoiser(tiny)
    folder = foreign.diffusers_folder(tmp_path / "model", before, "<new1>", foreign.row(WIDTH), suffix="bin")
    file = folder / "pytorch_custom_diffusion_weights.bin"
    content = torch.load(file)
    torch.save({f"{wrapper}{key}": value for key, value in content.items()}, file)
    assert_changes(interop.read(folder, base=tiny).concept, before, exactly=False)
    torch.save(content | {f"{wrapper}{key}": value for key, value in content.items()}, file)
    with pytest.raises(ConceptFileError, match=r"holds 'unet\.down.*' twice, as 'down.* Give one of them"):
        interop.read(folder, base=tiny)
