"""Full weights, and the base that they need."""

from pathlib import Path

import pytest
import torch

import foreign_files as foreign
from foreign_concepts import denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import BaseMismatchError, OptionError


def test_full_weights_need_the_base_in_float32(tiny: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    path = foreign.adobe(tmp_path / "delta.bin", denoiser(tiny), {})
    with pytest.raises(OptionError, match=r"stores full weights.*--base"):
        interop.read(path)
    half = Backbone.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(OptionError, match=r"loaded in torch.bfloat16.*--dtype float32"):
        interop.read(path, base=half)


def test_a_file_for_another_base_is_refused_with_the_list_of_what_does_not_fit(
    tiny: Backbone, other_folder: Path, tmp_path: Path
) -> None:
    before = denoiser(tiny)
    path = foreign.adobe(tmp_path / "delta.bin", before, {})
    other = Backbone.load(other_folder, device="cpu")
    with pytest.raises(BaseMismatchError, match=r"differ from those of .* by 1\d\d%.*Name the base"):
        interop.read(path, base=other)
    content = torch.load(path)
    names = list(content["unet"])
    content["unet"][names[0]] = torch.ones(3, 5)
    content["unet"]["down_blocks.7.attn2.to_k.weight"] = torch.ones(2, 2)
    torch.save(content, path)
    with pytest.raises(BaseMismatchError) as refused:
        interop.read(path, base=tiny)
    assert f"'unet.{names[0]}' is (32, 16) there and (3, 5) here" in str(refused.value) or "(16, 16) there" in str(
        refused.value
    )
    assert "no weight 'unet.down_blocks.7.attn2.to_k.weight'" in str(refused.value)
