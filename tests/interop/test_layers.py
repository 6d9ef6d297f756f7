"""The names that other programs give the layers."""

import pytest

from moongate.errors import listed
from moongate.interop.layers import from_compvis, inferred_blocks_per_level, kinds_of, kohya_name, kv_layer, to_compvis

SD1_NAMES = {
    **{
        f"input_blocks.{i}.1": f"down_blocks.{b}.attentions.{a}"
        for i, b, a in ((1, 0, 0), (2, 0, 1), (4, 1, 0), (5, 1, 1), (7, 2, 0), (8, 2, 1))
    },
    "middle_block.1": "mid_block.attentions.0",
    **{f"output_blocks.{3 * b + a}.1": f"up_blocks.{b}.attentions.{a}" for b in (1, 2, 3) for a in (0, 1, 2)},
}


SDXL_NAMES = {
    **{
        f"input_blocks.{i}.1": f"down_blocks.{b}.attentions.{a}"
        for i, b, a in ((4, 1, 0), (5, 1, 1), (7, 2, 0), (8, 2, 1))
    },
    "middle_block.1": "mid_block.attentions.0",
    **{f"output_blocks.{3 * b + a}.1": f"up_blocks.{b}.attentions.{a}" for b in (0, 1) for a in (0, 1, 2)},
}


@pytest.mark.parametrize("names", [SD1_NAMES, SDXL_NAMES])
def test_the_layers_of_stable_diffusion_have_their_published_names(names: dict[str, str]) -> None:
    end = ".transformer_blocks.0.attn2.to_k"
    assert inferred_blocks_per_level(f"{theirs}{end}" for theirs in names) == 3
    for theirs, ours in names.items():
        full, name = f"model.diffusion_model.{theirs}{end}.weight", f"unet.{ours}{end}.weight"
        assert from_compvis(full, 3) == name
        assert to_compvis(name, 3) == full
        assert kohya_name(name) == "lora_unet_" + (ours + end).replace(".", "_")
        for spelled in (kohya_name(name), kohya_name(name, 3), f"unet.{ours}{end}", f"{ours}{end}"):
            assert kv_layer(f"{spelled}.lora_down.weight", 3) == name


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_k_proj.lora_down.weight",
        "unet.down_blocks.0.resnets.0.conv1.lora_A.weight",
    ],
)
def test_other_layers_are_not_taken_for_keys_and_values(key: str) -> None:
    assert kv_layer(key, 3) is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv_in", "input_blocks_0_0"),
        ("time_embedding.linear_2", "time_embed_2"),
        ("add_embedding.linear_1", "label_emb_0_0"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks_4_0_skip_connection"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks_4_1_proj_in"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1"),
        ("mid_block.attentions.0.proj_out", "middle_block_1_proj_out"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
        ("up_blocks.1.resnets.2.time_emb_proj", "output_blocks_5_0_emb_layers_1"),
        ("up_blocks.2.resnets.0.conv2", "output_blocks_6_0_out_layers_3"),
        ("conv_out", "out_2"),
    ],
)
def test_the_modules_of_sdxl_have_their_published_names(ours: str, theirs: str) -> None:
    assert kohya_name(f"unet.{ours}.weight", 3) == f"lora_unet_{theirs}"
    assert kohya_name(f"unet.{ours}.weight") == "lora_unet_" + ours.replace(".", "_")


def test_layers_of_a_kohya_file_for_sdxl_are_listed_by_kind() -> None:
    ends = ("input_blocks_3_0_op", "input_blocks_4_0_skip_connection", "label_emb_0_0")
    ends += ("output_blocks_5_0_emb_layers_1",)
    keys = [f"lora_unet_{end}.{part}" for end in ends for part in ("alpha", "lora_down.weight")]
    assert kinds_of(keys) == ["convolutions (4 tensors)", "time embeddings (4 tensors)"]


@pytest.mark.parametrize("numbers", [(0, 4), (0, 10**12), (10**40,), (999,)])
def test_block_numbers_of_no_denoiser_are_passed_over_at_once(numbers: tuple[int, ...]) -> None:
    keys = [f"lora_unet_input_blocks_{number}_1_transformer_blocks_0_attn2_to_k" for number in numbers]
    assert inferred_blocks_per_level(keys) >= 1


def test_a_key_longer_than_any_is_named_at_once_and_not_whole() -> None:
    (kind,) = kinds_of(["attn2" * 100_000])
    assert listed([kind]) == "'" + "attn2" * 59 + "attn..."
