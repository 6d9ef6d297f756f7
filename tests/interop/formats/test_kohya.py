"""LoRA in kohya's keys."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Dense, LowRank
from moongate.interop import WriteOptions
from moongate.merging import merge


def test_a_merged_concept_is_written_at_its_own_rank_and_nothing_is_lost(tiny: Backbone, tmp_path: Path) -> None:
    merged = merge(tiny, [make_concept(tiny, low_rank=False)]).concept
    written = interop.write(merged, tmp_path / "lora", to="kohya")
    assert written.notes == ()
    tensors = load_file(tmp_path / "lora" / "lora.safetensors")
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in tensors.items() if key.endswith(".alpha")}
    assert alphas == {key: tensors[f"{key}.lora_down.weight"].shape[0] for key in alphas}
    assert len(alphas) == len(merged.deltas)
    assert interop.read(tmp_path / "lora").concept.hash == merged.hash


def _read_by_a1111(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, object]]:
    """The rule of A1111's `load_network`: the first part is `bundle_emb`, the second the word, the rest the field."""
    words: dict[str, dict[str, object]] = {}
    for key, tensor in tensors.items():
        first, _, rest = key.partition(".")
        if first == "bundle_emb":
            word, field = rest.split(".", 1)
            inner = field.partition(".")[2]
            words.setdefault(word, {}).update({field.split(".")[0]: {inner: tensor} if inner else tensor})
    return words


def _read_by_comfyui(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """The rule of ComfyUI's `load_embed` for a file without other embeddings: all words, one after the other."""
    for suffix in (".string_to_param.*", f".{key}"):
        found = [t for name, t in tensors.items() if name.startswith("bundle_emb.") and name.endswith(suffix)]
        if found:
            return torch.cat(found)
    raise AssertionError("no embedding")


def test_one_file_holds_the_embedding_where_a1111_and_comfyui_look_for_it(each: Backbone, tmp_path: Path) -> None:
    concept = make_concept(each)
    written = interop.write(concept, tmp_path / "bear-lora.safetensors", to="kohya")
    assert written.files == (tmp_path / "bear-lora.safetensors",)
    tensors = load_file(tmp_path / "bear-lora.safetensors")
    rows = concept.rows("<bear>")
    word = _read_by_a1111(tensors)["bear"]
    if len(rows) == 1:
        field = word["string_to_param"]
        assert isinstance(field, dict)
        assert list(field) == ["*"]
        assert torch.equal(field["*"][0], rows[0])
    else:
        assert word.keys() == {"clip_l", "clip_g"}
    for key, row in zip(("clip_l", "clip_g"), rows, strict=False):
        assert torch.equal(_read_by_comfyui(tensors, key), row[None])
    again = interop.read(tmp_path / "bear-lora.safetensors")
    assert again.notes == ()
    assert again.concept.hash == concept.hash


def test_a_dot_in_a_token_does_not_end_its_name_in_one_file(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny, tokens=("<v1.0>", "<v1-0>"))
    interop.write(concept, tmp_path / "two.safetensors", to="kohya")
    assert sorted(_read_by_a1111(load_file(tmp_path / "two.safetensors"))) == ["v1-0", "v1-0-2"]
    assert interop.read(tmp_path / "two.safetensors").concept.hash == concept.hash


def test_some_blocks_of_sdxl_get_their_published_numbers(tmp_path: Path) -> None:
    """By hand: three blocks a level, input blocks counted from one, output blocks from zero."""
    end = "transformer_blocks.0.attn2.to_k"
    names = {
        f"down_blocks.2.attentions.0.{end}": "input_blocks_7_1",
        f"up_blocks.0.attentions.0.{end}": "output_blocks_0_1",
        f"up_blocks.1.attentions.1.{end}": "output_blocks_4_1",
        f"mid_block.attentions.0.{end}": "middle_block_1",
    }
    source = {}
    for module in names:
        down, up = torch.ones(2, 2048), torch.ones(64, 2)
        source |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    save_file(source, tmp_path / "blocks.safetensors")
    concept = interop.read(tmp_path / "blocks.safetensors").concept
    interop.write(concept, tmp_path / "out", to="kohya")
    tensors = load_file(tmp_path / "out" / "out.safetensors")
    modules = {key.split(".")[0] for key in tensors}
    assert modules == {f"lora_unet_{block}_{end.replace('.', '_')}" for block in names.values()}
    assert interop.read(tmp_path / "out").concept.deltas.keys() == concept.deltas.keys()


@pytest.mark.parametrize("to", ["kohya", "lora"])
def test_diffusers_loads_every_layer_of_a_concept_that_changes_the_whole_denoiser(
    each: Backbone, family_folder: Path, tmp_path: Path, to: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, Dense | LowRank] = {}
    for name, weight in each.unet.named_parameters():
        if weight.ndim == 2 and name.endswith(".weight"):
            up, down = (torch.randn(shape, generator=generator) for shape in ((len(weight), 1), (1, weight.shape[1])))
            deltas[f"unet.{name}"] = LowRank(up=0.1 * up, down=down)
    assert any("add_embedding" in name for name in deltas) == (len(each.token_widths) > 1)
    concept = dataclasses.replace(make_concept(each), deltas=deltas)
    interop.write(concept, tmp_path / "out", to=to, options=WriteOptions(base=each))
    pipeline = DiffusionPipeline.from_pretrained(family_folder)
    file = "out.safetensors" if to == "kohya" else "pytorch_lora_weights.safetensors"
    pipeline.load_lora_weights(tmp_path / "out", weight_name=file)
    pipeline.fuse_lora()
    for name, change in deltas.items():
        module = pipeline.unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
        before = each.parameter(name).detach()
        assert hasattr(module, "base_layer"), name
        assert torch.allclose(module.base_layer.weight - before, change.full(), atol=1e-6), name


@pytest.mark.parametrize(
    ("width", "widths", "expected"),
    [
        (768, (768,), ("sd_v1", "False", "stable-diffusion-v1/lora")),
        (1024, (), ("sd_v2", "True", "stable-diffusion-v2-512/lora")),
        (2048, (768, 1280), ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora")),
        (2048, (), ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora")),
        (16, (16,), (None, None, None)),
    ],
)
def test_the_header_says_which_family_a_lora_is_for(
    tiny: Backbone, tmp_path: Path, width: int, widths: tuple[int, ...], expected: tuple[str | None, ...]
) -> None:
    """In the entries that A1111's detect_version, Forge and kohya's svd_merge_lora look at."""
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    tokens = {"<bear>": torch.ones(sum(widths))} if widths else {}
    concept = dataclasses.replace(
        make_concept(tiny),
        deltas={name: LowRank(up=torch.ones(4, 1), down=torch.ones(1, width))},
        tokens=tokens,
        token_widths=widths,
    )
    interop.write(concept, tmp_path / "out", to="kohya")
    with safe_open(tmp_path / "out" / "out.safetensors", "pt") as file:
        header = file.metadata()
    assert tuple(map(header.get, ("ss_base_model_version", "ss_v2", "modelspec.architecture"))) == expected


def test_a_base_that_predicts_velocity_makes_a_lora_of_sd_2_one_for_768_pixels(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.interop.formats.kohya.SD2_WIDTH", 16)
    assert tiny.schedule.config.prediction_type == "v_prediction"
    interop.write(make_concept(tiny), tmp_path / "out", to="kohya", options=WriteOptions(base=tiny))
    with safe_open(tmp_path / "out" / "out.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"


def test_a_key_that_is_no_matrix_does_not_hide_the_family(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    first = next(iter(concept.deltas))
    odd = dataclasses.replace(concept, deltas={**concept.deltas, first: Dense(delta=torch.ones(5))})
    assert f"cannot hold the changes of {first}" in interop.write(odd, tmp_path / "lora", to="kohya").notes[0]
