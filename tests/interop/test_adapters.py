"""Layers of LoRA files, whatever their keys."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import foreign_files as foreign
from foreign_concepts import WIDTH, assert_changes, denoiser
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Dense, LowRank
from moongate.errors import ConceptFileError, OptionError
from moongate.interop import WriteOptions
from moongate.interop.adapters import factors_of
from moongate.merging import merge


@pytest.mark.parametrize(
    ("style", "alpha"),
    [("peft", None), ("old", None), ("kohya", None), ("kohya", 1.0), ("kohya-compvis", 1.0)],
)
def test_a_lora_is_read_with_its_scale(tiny: Backbone, tmp_path: Path, style: str, alpha: float | None) -> None:
    before = denoiser(tiny)
    imported = interop.read(foreign.lora(tmp_path / "lora", before, style=style, alpha=alpha))
    assert imported.format == ("kohya" if style.startswith("kohya") else "lora")
    assert_changes(imported.concept, before)
    assert imported.notes == ()


def test_other_layers_of_a_lora_are_listed_and_the_rest_can_be_merged(tiny: Backbone, tmp_path: Path) -> None:
    some, block = torch.ones(2, 2), "down_blocks_0_attentions_0_transformer_blocks_0"
    others = {
        f"lora_unet_{block}_attn1_to_k.lora_down.weight": some,
        f"lora_unet_{block}_attn1_to_k.lora_up.weight": some,
        f"lora_unet_{block}_attn2_to_q.lora_down.weight": some,
        f"lora_unet_{block}_attn2_to_out_0.lora_down.weight": some,
        f"lora_unet_{block}_ff_net_0_proj.lora_down.weight": some,
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": some,
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": some,
        "strange": some,
    }
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", **others)
    imported = interop.read(path, base=tiny, categories=("bear",))
    (note,) = imported.notes
    for kind in (
        "attn1) (2",
        "attn2.to_q",
        "attn2.to_out",
        "feed-forward",
        "convolutions",
        "text encoder",
        "'strange'",
    ):
        assert kind in note
    assert merge(tiny, [imported.concept]).concept.subjects[0].words == "bear"
    with pytest.raises(OptionError, match="names no subject"):
        merge(tiny, [interop.read(path, base=tiny).concept])


def test_a_layer_with_dora_is_not_read_as_plain_factors(tiny: Backbone, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", **{f"{key}.dora_scale": torch.ones(32, 1)})
    imported = interop.read(path)
    assert len(imported.concept.deltas) == 13
    assert "DoRA" in imported.notes[0]


def test_tokens_that_are_bundled_with_a_lora_are_read(tiny: Backbone, tmp_path: Path) -> None:
    row = foreign.row(WIDTH)
    bundled = {"bundle_emb.bear.string_to_param.*": row[None]}
    concept = interop.read(foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", **bundled), base=tiny).concept
    assert torch.equal(concept.tokens["<bear>"], row)


def test_an_alpha_of_integers_is_read(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.lora(tmp_path / "lora", before, style="kohya", alpha=1.0)
    save_file({k: v.long() if k.endswith("alpha") else v for k, v in load_file(path).items()}, path)
    assert_changes(interop.read(path).concept, before)


def test_a_layer_with_one_factor_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya")
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_up" in key)
    save_file({**tensors, key: torch.ones(16, 5)}, tmp_path / "odd")
    del tensors[key]
    save_file(tensors, path)
    with pytest.raises(ConceptFileError, match="not both factors"):
        interop.read(path)
    with pytest.raises(ConceptFileError, match="do not fit together"):
        interop.read(tmp_path / "odd")


def test_the_loss_of_cutting_a_dense_change_to_a_rank_is_stated(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny, low_rank=False)
    written = interop.write(concept, tmp_path / "lora", to="lora", options=WriteOptions(rank=4))
    again = interop.read(tmp_path / "lora").concept
    cut = sum(float((again.deltas[n].full() - c.full()).square().sum()) for n, c in concept.deltas.items())
    whole = sum(float(c.full().square().sum()) for c in concept.deltas.values())
    assert f"rank 4, which loses {(cut / whole) ** 0.5:.1%}" in written.notes[0]
    with pytest.raises(OptionError, match="rank is 0"):
        interop.write(concept, tmp_path / "other", to="lora", options=WriteOptions(rank=0))


def test_a_rank_beyond_both_sides_is_cut_before_all_layers_are_padded_to_it(tiny: Backbone) -> None:
    concept = make_concept(tiny)
    name = next(iter(concept.deltas))
    rows, columns = concept.deltas[name].shape
    wide = LowRank(up=torch.randn(rows, 5000), down=torch.randn(5000, columns))
    factors, _ = factors_of(dataclasses.replace(concept, deltas={**concept.deltas, name: wide}), None)
    assert factors[name].rank <= rows + columns
    torch.testing.assert_close(factors[name].full(), wide.full(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "end", [".lora_A.default_0.weight", ".lora_A.my-style.weight", ".lora_linear_layer.down.weight"]
)
def test_the_name_of_an_adapter_and_older_names_of_its_layers_are_read(
    end: str, tiny: Backbone, tmp_path: Path
) -> None:
    before = denoiser(tiny)
    path = foreign.lora(tmp_path / "lora", before, style="peft")
    up = end.replace("lora_A", "lora_B").replace("down", "up")
    ends = {".lora_A.weight": end, ".lora_B.weight": up}
    save_file({key[:-14] + ends[key[-14:]]: value for key, value in load_file(path).items()}, path)
    assert_changes(interop.read(path).concept, before)


def test_a_file_that_holds_a_layer_twice_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    """In two spellings, or for two adapters of PEFT."""
    before = denoiser(tiny)
    first = load_file(foreign.lora(tmp_path / "a", before, style="peft"))
    others = [load_file(foreign.lora(tmp_path / "b", before, style=style)) for style in ("old", "kohya-compvis")]
    others.append({key.replace(".weight", ".second.weight"): value.clone() for key, value in first.items()})
    for other in others:
        save_file({**first, **other}, tmp_path / "two")
        with pytest.raises(ConceptFileError, match="holds two tensors 'down' of 'unet.down_blocks.0"):
            interop.read(tmp_path / "two")
    save_file(
        {**first, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.diff": torch.ones(32, 16)},
        tmp_path / "x",
    )
    with pytest.raises(ConceptFileError, match=r"diff and down and up of 'unet.mid_block.*, changes of two kinds"):
        interop.read(tmp_path / "x")


@pytest.mark.parametrize("part", ["dora_scale", "lora_mid.weight", "scalar", "scale", "set_weight", "bias_values"])
def test_a_layer_with_a_part_that_is_not_read_is_not_taken(part: str, tiny: Backbone, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", **{f"{key}.{part}": torch.ones(1)})
    imported = interop.read(path, base=tiny)
    assert len(imported.concept.deltas) == 13
    assert "Not taken" in imported.notes[0]


def test_an_alpha_that_was_pickled_as_a_number_is_read(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.lora(tmp_path / "lora", before, style="kohya", alpha=1.0)
    torch.save({k: 1 if k.endswith("alpha") else v for k, v in load_file(path).items()}, tmp_path / "lora.pt")
    assert_changes(interop.read(tmp_path / "lora.pt").concept, before)


def test_parameters_that_were_pickled_as_such_are_read_without_a_remark(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.lora(tmp_path / "lora", before, style="kohya", alpha=1.0)
    torch.save({key: torch.nn.Parameter(value) for key, value in load_file(path).items()}, tmp_path / "lora.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_changes(interop.read(tmp_path / "lora.pt").concept, before)


def test_a_layer_of_whole_numbers_or_of_another_dimension_is_named(tmp_path: Path) -> None:
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{key}.diff": torch.ones(3, 4, dtype=torch.int8)}, tmp_path / "int8")
    with pytest.raises(ConceptFileError, match=rf"the file holds '{key}.diff' \(torch.int8\)"):
        interop.read(tmp_path / "int8")
    save_file({f"{key}.diff": torch.ones(3)}, tmp_path / "vector")
    with pytest.raises(ConceptFileError, match=r"the shape \(3,\); it must be a matrix"):
        interop.read(tmp_path / "vector")
    save_file({f"{key}.diff": torch.ones(3, 4, 1, 1)}, tmp_path / "pixel")
    assert interop.read(tmp_path / "pixel").concept.deltas[f"{key}.weight"].shape == (3, 4)


def test_there_is_no_lora_of_matrices_without_numbers(tiny: Backbone) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    concept = dataclasses.replace(make_concept(tiny), deltas={name: Dense(delta=torch.zeros(0, 3))})
    with pytest.raises(OptionError, match="changes no weights"):
        factors_of(concept, None)


def test_an_alpha_beyond_all_numbers_is_named(tiny: Backbone, tmp_path: Path) -> None:
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", alpha=1.0)
    torch.save({k: 10**400 if k.endswith("alpha") else v for k, v in load_file(path).items()}, tmp_path / "lora.pt")
    with pytest.raises(ConceptFileError, match="The alpha of 'unet.* is too large"):
        interop.read(tmp_path / "lora.pt")
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", alpha=float("inf"))
    with pytest.raises(ConceptFileError, match="The alpha of 'unet.* is inf, which is not a number to scale with"):
        interop.read(path)


def test_the_layers_of_a_controlnet_are_not_those_of_the_denoiser(tiny: Backbone, tmp_path: Path) -> None:
    tensors = load_file(foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft"))
    save_file({key.replace("unet.", "controlnet.", 1): value for key, value in tensors.items()}, tmp_path / "control")
    with pytest.raises(ConceptFileError, match="would change nothing"):
        interop.read(tmp_path / "control", base=tiny)
    save_file(tensors | {f"controlnet.{key[5:]}": 2 * value for key, value in tensors.items()}, tmp_path / "both")
    assert_changes(interop.read(tmp_path / "both", base=tiny).concept, denoiser(tiny))


def test_factors_whose_product_is_not_finite_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    tensors = load_file(foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya"))
    save_file({key: 1e25 * value for key, value in tensors.items()}, tmp_path / "vast")
    for base in (tiny, None):
        with pytest.raises(ConceptFileError, match=r"numbers so large that their product is not finite.*Train the"):
            interop.read(tmp_path / "vast", base=base)
    save_file({key: 1e15 * value for key, value in tensors.items()}, tmp_path / "large")
    assert interop.read(tmp_path / "large", base=tiny).concept.deltas
