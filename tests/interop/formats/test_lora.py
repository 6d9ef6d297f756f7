"""LoRA in the keys of diffusers and PEFT."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import foreign_files as foreign
from foreign_concepts import denoiser
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import ConceptFileError


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("where", ["header", "file"])
def test_the_alpha_of_peft_is_multiplied_in(tiny: Backbone, tmp_path: Path, where: str, rank_stabilized: bool) -> None:
    path = foreign.lora(tmp_path / "adapter_model.safetensors", denoiser(tiny), style="peft")
    special = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    config = {"r": 2, "lora_alpha": 8, "alpha_pattern": {special: 4}, "use_rslora": rank_stabilized}
    if where == "file":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    else:
        header = json.dumps({f"unet.{key}": value for key, value in config.items()})
        save_file(load_file(path), path, metadata={"lora_adapter_metadata": header})
    concept = interop.read(path).concept
    by = 2**0.5 if rank_stabilized else 2
    for module, (up, down) in foreign.changes(denoiser(tiny)).items():
        scale = (4 if module == special else 8) / by
        assert torch.allclose(concept.deltas[f"unet.{module}.weight"].full(), scale * up @ down, rtol=1e-5)


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": 4, "alpha_pattern": [1]}'])
def test_a_broken_configuration_beside_a_lora_is_named(tiny: Backbone, tmp_path: Path, text: str) -> None:
    path = foreign.lora(tmp_path / "adapter_model.safetensors", denoiser(tiny), style="peft")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConceptFileError, match="broken JSON|where an object|odd alpha"):
        interop.read(path)


def test_a_token_file_holds_one_row(tiny: Backbone, tmp_path: Path) -> None:
    """The `.bin` of diffusers' example holds the whole table, 152 MB."""
    interop.write(make_concept(tiny), tmp_path / "lora", to="lora")
    assert {key: row.shape for key, row in load_file(tmp_path / "lora" / "<bear>.safetensors").items()} == {
        "<bear>": (16,)
    }
