"""LoRA in the keys of diffusers and PEFT."""

import copy
import json
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import foreign_files as foreign
from foreign_concepts import assert_changes, denoiser
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import ConceptFileError, OptionError


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


def test_settings_that_a_configuration_leaves_out_are_peft_s_own(tiny: Backbone, tmp_path: Path) -> None:
    path = foreign.lora(tmp_path / "adapter_model.safetensors", denoiser(tiny), style="peft")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    concept = interop.read(path).concept
    for module, (up, down) in foreign.changes(denoiser(tiny)).items():
        assert torch.allclose(concept.deltas[f"unet.{module}.weight"].full(), 8 / 2 * up @ down, rtol=1e-5)


ODD = ("{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": 4, "alpha_pattern": [1]}', '{"lora_alpha": NaN}')


@pytest.mark.parametrize("text", ODD)
def test_a_broken_configuration_beside_a_lora_is_named(tiny: Backbone, tmp_path: Path, text: str) -> None:
    path = foreign.lora(tmp_path / "adapter_model.safetensors", denoiser(tiny), style="peft")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConceptFileError, match="broken JSON|where an object|odd lora_alpha"):
        interop.read(path)


def test_a_token_file_holds_one_row(tiny: Backbone, tmp_path: Path) -> None:
    """The `.bin` of diffusers' example holds the whole table, 152 MB."""
    interop.write(make_concept(tiny), tmp_path / "lora", to="lora")
    assert {key: row.shape for key, row in load_file(tmp_path / "lora" / "<bear>.safetensors").items()} == {
        "<bear>": (16,)
    }


def peft_folder(folder: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    """Write an adapter as PEFT saves it."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "patterns",
    [
        {"attn2.to_k": 8, "to_k": 32},
        {"to_k": 32, "attn2.to_k": 8},
        {"^attentions.0.transformer_blocks.0.attn2.to_k": 16},
        {"^mid_block.attentions.0.transformer_blocks.0.attn2.to_v": 16, "to_v": 4},
        {"o_k": 32},
        {"up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": 5},
    ],
)
@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_alpha_patterns_are_read_as_peft_reads_them(
    tiny: Backbone, tmp_path: Path, patterns: dict[str, float], rank_stabilized: bool
) -> None:
    config = peft.LoraConfig(
        r=2,
        lora_alpha=2,
        alpha_pattern=patterns,
        use_rslora=rank_stabilized,
        target_modules=["attn2.to_k", "attn2.to_v"],
        init_lora_weights=False,
    )
    peft.get_peft_model(copy.deepcopy(tiny.unet), config).save_pretrained(tmp_path / "lora")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.unet), tmp_path / "lora")
    concept = interop.read(tmp_path / "lora", base=tiny).concept
    assert len(concept.deltas) == 14
    for name, change in concept.deltas.items():
        layer = model.base_model.model.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
        assert torch.allclose(change.full(), layer.get_delta_weight("default"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pattern", [".*to_k", "(a+)+$", "to_[kv]", "to_k|to_v", "to_k$"])
def test_a_pattern_that_is_a_regular_expression_is_refused_by_name(
    tiny: Backbone, tmp_path: Path, pattern: str
) -> None:
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft")
    folder = peft_folder(tmp_path / "peft", load_file(path), alpha_pattern={pattern: 4})
    with pytest.raises(ConceptFileError, match=re.escape(repr(pattern))):
        interop.read(folder)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga"])
@pytest.mark.parametrize("where", ["header", "file"])
def test_a_lora_that_also_changes_the_base_is_refused_by_name(
    tiny: Backbone, tmp_path: Path, start: str, where: str
) -> None:
    tensors = load_file(foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft"))
    path = peft_folder(tmp_path / "peft", tensors, init_lora_weights=start)
    if where == "header":
        path = tmp_path / "lora"
        save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": start})})
    with pytest.raises(ConceptFileError, match=f"init_lora_weights='{start}'.*changes the base"):
        interop.read(path)


@pytest.mark.parametrize("text", ["null", '{"unet.lora_alpha": null}'])
def test_a_header_without_settings_leaves_a_lora_unscaled(tiny: Backbone, tmp_path: Path, text: str) -> None:
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft")
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": text})
    assert_changes(interop.read(path).concept, denoiser(tiny))


def test_all_layers_are_written_with_one_rank(tiny: Backbone, tmp_path: Path) -> None:
    """Diffusers before 0.40 takes the rank of the first layer for the alpha of all."""
    concept = make_concept(tiny)
    assert {change.rank for change in concept.deltas.values()} == {1, 2, 3}
    interop.write(concept, tmp_path / "lora", to="lora")
    tensors = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert {len(tensor) for key, tensor in tensors.items() if "lora_A" in key} == {3}
    assert {tensor.shape[1] for key, tensor in tensors.items() if "lora_B" in key} == {3}
    for name, change in concept.deltas.items():
        module = name.removesuffix(".weight")
        product = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        assert torch.allclose(product, change.full(), atol=1e-7)
    assert interop.read(tmp_path / "lora").concept.hash == concept.hash


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA")
@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_a_lora_that_started_from_the_base_s_weights_is_read_as_peft_loads_it(
    tiny: Backbone, tmp_path: Path, start: str, rank_stabilized: bool
) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={"to_v": 2},
        use_rslora=rank_stabilized,
        target_modules=["attn2.to_k", "attn2.to_v"],
        init_lora_weights=start,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(tiny.unet), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "lora")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.unet), tmp_path / "lora")
    loaded.merge_adapter()
    concept = interop.read(tmp_path / "lora", base=tiny).concept
    assert len(concept.deltas) == 14
    for name, change in concept.deltas.items():
        layer = loaded.base_model.model.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
        expected = layer.base_layer.weight.detach() - tiny.parameter(name).detach()
        assert torch.allclose(change.full(), expected, atol=1e-5)
    with pytest.raises(OptionError, match=r"initialized from the weights of its base.*--model"):
        interop.read(tmp_path / "lora")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_whole_change_beside_factors_that_started_from_the_base_is_read_as_it_is(
    tiny: Backbone, tmp_path: Path, start: str
) -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    delta = torch.ones_like(tiny.parameter(f"unet.{module}.weight"))
    folder = peft_folder(tmp_path / "peft", {f"base_model.model.{module}.diff": delta}, init_lora_weights=start)
    assert torch.equal(interop.read(folder, base=tiny).concept.deltas[f"unet.{module}.weight"].full(), delta)


@pytest.mark.parametrize("setting", ["use_qalora", "kasa_config"])
def test_layers_of_plain_keys_that_mean_something_else_are_refused_by_name(
    tiny: Backbone, tmp_path: Path, setting: str
) -> None:
    foreign.lora(tmp_path / "adapter_model.safetensors", denoiser(tiny), style="peft")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2, setting: {"beta": 1.0}}))
    with pytest.raises(ConceptFileError, match=f"was trained with PEFT's {setting}.*Give a plain LoRA"):
        interop.read(tmp_path)
