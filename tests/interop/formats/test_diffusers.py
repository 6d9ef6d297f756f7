"""The folder of diffusers' example."""

from pathlib import Path

import pytest
import torch

import foreign_files as foreign
from foreign_concepts import WIDTH, assert_changes, denoiser
from moongate import interop
from moongate.backbone import Backbone


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_folder_of_diffusers_is_read(tiny: Backbone, tmp_path: Path, suffix: str) -> None:
    before = denoiser(tiny)
    folder = foreign.diffusers_folder(tmp_path / "model", before, "<new1>", foreign.row(WIDTH), suffix=suffix)
    imported = interop.read(folder, base=tiny)
    assert imported.format == "diffusers"
    assert_changes(imported.concept, before, exactly=False)
    assert torch.equal(imported.concept.tokens["<new1>"], foreign.row(WIDTH))
    assert imported.concept.tokens["<new1>"].untyped_storage().nbytes() == 4 * WIDTH
