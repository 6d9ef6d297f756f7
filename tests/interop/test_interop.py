"""Files of other programs, made by `foreign_files` from the documented layouts, and files for them."""

import contextlib
import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import foreign_files as foreign
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank
from moongate.errors import BaseMismatchError, ConceptFileError, MoongateError, OptionError, TokenError
from moongate.interop import FORMATS, WriteOptions
from moongate.interop.__main__ import BLOCK
from moongate.interop.layers import from_compvis, kohya_name, kv_layer, to_compvis, unambiguous_levels
from moongate.merging import merge

MakeConcept = Callable[..., Concept]
WIDTH = 16


def denoiser(backbone: Backbone) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in backbone.unet.named_parameters()}


def assert_changes(concept: Concept, before: dict[str, Tensor], *, exactly: bool = True) -> None:
    """The concept's changes must be those that `foreign_files` wrote."""
    expected = foreign.changes(before)
    assert {name.removeprefix("unet.").removesuffix(".weight") for name in concept.deltas} == set(expected)
    for module, (up, down) in expected.items():
        change = concept.deltas[f"unet.{module}.weight"]
        if exactly:
            assert isinstance(change, LowRank)
            assert torch.equal(change.up, up)
            assert torch.equal(change.down, down)
        else:
            whole = before[f"{module}.weight"]
            bound = torch.finfo(torch.float32).eps * (whole.abs() + (up @ down).abs())
            assert ((change.full() - up @ down).abs() <= bound).all()


# --- names ------------------------------------------------------------------------------------------------------------

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
    assert unambiguous_levels(f"{theirs}{end}" for theirs in names) == 3
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


# --- reading ----------------------------------------------------------------------------------------------------------


def test_delta_bin_is_read(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.adobe(tmp_path / "any name", before, {"<new1>": foreign.row(WIDTH)})
    found = interop.read(path, base=tiny)
    assert found.format == "adobe"
    assert_changes(found.concept, before, exactly=False)
    assert torch.equal(found.concept.tokens["<new1>"], foreign.row(WIDTH))
    assert not found.concept.tokens["<new1>"].requires_grad
    assert found.concept.fingerprint == tiny.fingerprint


def test_delta_bin_with_a_trained_text_encoder_is_read(tiny: Backbone, tmp_path: Path) -> None:
    state = {f"text_model.{k}": v.detach().clone() for k, v in tiny.text_encoder.named_parameters()}
    state["text_model.embeddings.position_ids"] = torch.arange(16)
    table = state["text_model.embeddings.token_embedding.weight"]
    state["text_model.embeddings.token_embedding.weight"] = torch.cat([table, torch.ones(1, WIDTH)])
    state["text_model.final_layer_norm.bias"] += 0.5
    path = foreign.adobe(tmp_path / "delta.bin", denoiser(tiny), {"<new1>": foreign.row(WIDTH)}, text_encoder=state)
    concept = interop.read(path, base=tiny).concept
    (name,) = (name for name in concept.deltas if name.startswith("text_encoder"))
    assert name.endswith("final_layer_norm.bias")
    assert torch.allclose(concept.deltas[name].full(), torch.full((WIDTH,), 0.5))
    before = tiny.encode_text(["a dog"]).features
    with concept.applied(tiny):
        assert torch.allclose(tiny.encode_text(["a dog"]).features, before + 0.5, atol=1e-6)
    written = interop.write(concept, tmp_path / "again.bin", to="adobe", options=WriteOptions(base=tiny))
    assert interop.read(written.files[0], base=tiny).concept.deltas.keys() == concept.deltas.keys()


def test_compressed_files_are_read_without_a_base(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    first = foreign.adobe_compressed(tmp_path / "a", before, {"<new1>": foreign.row(WIDTH)})
    second = foreign.compvis_checkpoint(tmp_path / "b", before, foreign.row(WIDTH)[None], compressed=True)
    for path, name in ((first, "adobe-compressed"), (second, "compvis-compressed")):
        found = interop.read(path)
        assert found.format == name
        assert_changes(found.concept, before)
        assert torch.equal(found.concept.tokens["<new1>"], foreign.row(WIDTH))
        assert found.concept.base == ""
        with found.concept.applied(tiny):
            pass


def test_a_layer_compressed_to_rank_0_does_not_change(tiny: Backbone, tmp_path: Path) -> None:
    """The public compression loses layers that way."""
    path = foreign.adobe_compressed(tmp_path / "a", denoiser(tiny), {})
    content = torch.load(path)
    name, pair = next(iter(content["unet"].items()))
    content["unet"][name] = {"u": pair["u"][:, :0], "v": pair["v"][:0]}
    torch.save(content, path)
    assert f"unet.{name}" not in interop.read(path, base=tiny).concept.deltas


@pytest.mark.parametrize("flat", [False, True])
def test_a_compvis_checkpoint_is_read_and_its_tokens_are_numbered_or_named(
    tiny: Backbone, tmp_path: Path, flat: bool
) -> None:
    """The public converter writes the rows of several tokens as one vector."""
    before = denoiser(tiny)
    rows = torch.stack([foreign.row(WIDTH), foreign.row(WIDTH, seed=8)])
    path = foreign.compvis_checkpoint(tmp_path / "delta_epoch=000004.ckpt", before, rows.flatten() if flat else rows)
    found = interop.read(path, base=tiny)
    assert found.format == "compvis"
    assert_changes(found.concept, before, exactly=False)
    assert list(found.concept.tokens) == ["<new1>", "<new2>"]
    assert "called <new1>, <new2>" in found.notes[0]
    named = interop.read(path, base=tiny, tokens=("<cat>", "<pot>"), categories=("cat", "wooden pot")).concept
    assert [subject.words for subject in named.subjects] == ["<cat> cat", "<pot> wooden pot"]
    assert torch.equal(named.tokens["<pot>"], rows[1])
    with pytest.raises(OptionError, match="1 token names are given, but the file has 2 tokens: <new1>, <new2>"):
        interop.read(path, base=tiny, tokens=("<cat>",))
    with pytest.raises(OptionError, match="3 categories are given for 2 subjects"):
        interop.read(path, base=tiny, categories=("a", "b", "c"))


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_folder_of_diffusers_is_read(tiny: Backbone, tmp_path: Path, suffix: str) -> None:
    before = denoiser(tiny)
    folder = foreign.diffusers_folder(tmp_path / "model", before, "<new1>", foreign.row(WIDTH), suffix=suffix)
    found = interop.read(folder, base=tiny)
    assert found.format == "diffusers"
    assert_changes(found.concept, before, exactly=False)
    assert torch.equal(found.concept.tokens["<new1>"], foreign.row(WIDTH))
    assert found.concept.tokens["<new1>"].untyped_storage().nbytes() == 4 * WIDTH


@pytest.mark.parametrize(
    ("style", "alpha"),
    [("peft", None), ("old", None), ("kohya", None), ("kohya", 1.0), ("kohya-compvis", 1.0)],
)
def test_a_lora_is_read_with_its_scale(tiny: Backbone, tmp_path: Path, style: str, alpha: float | None) -> None:
    before = denoiser(tiny)
    found = interop.read(foreign.lora(tmp_path / "lora", before, style=style, alpha=alpha))
    assert found.format == ("kohya" if style.startswith("kohya") else "lora")
    assert_changes(found.concept, before)
    assert found.notes == ()


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("where", ["header", "file"])
def test_the_alpha_of_peft_is_minded(tiny: Backbone, tmp_path: Path, where: str, rank_stabilized: bool) -> None:
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


def test_what_of_a_lora_cannot_be_taken_is_told_and_the_rest_can_be_merged(tiny: Backbone, tmp_path: Path) -> None:
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
    found = interop.read(path, base=tiny, categories=("bear",))
    (note,) = found.notes
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
    assert merge(tiny, [found.concept]).concept.subjects[0].words == "bear"
    with pytest.raises(OptionError, match="names no subject"):
        merge(tiny, [interop.read(path, base=tiny).concept])


def test_a_layer_with_dora_is_not_taken_for_a_product(tiny: Backbone, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", **{f"{key}.dora_scale": torch.ones(32, 1)})
    found = interop.read(path)
    assert len(found.concept.deltas) == 13
    assert "DoRA" in found.notes[0]


def test_embeddings_are_read(tiny: Backbone, tmp_path: Path) -> None:
    row = foreign.row(WIDTH)
    foreign.a1111(tmp_path / "any.pt", row[None], name="my bear")
    save_file({"emb_params": row[None]}, tmp_path / "bear.safetensors")
    save_file({"<bear>": row}, tmp_path / "diffusers.safetensors")
    for name, token in (("any.pt", "<my-bear>"), ("bear.safetensors", "<bear>"), ("diffusers.safetensors", "<bear>")):
        found = interop.read(tmp_path / name, base=tiny)
        assert found.format == "embedding"
        assert torch.equal(found.concept.tokens[token], row)
        assert not found.concept.deltas
    two = interop.read(foreign.a1111(tmp_path / "two.pt", torch.stack([row, -row])))
    assert list(two.concept.tokens) == ["<bear>", "<bear-2>"]
    assert "'<bear> <bear-2>'" in two.notes[0]


def test_an_embedding_saved_as_a_module_is_read(tiny: Backbone, tmp_path: Path) -> None:
    """As textual inversion's first code saved them; it was refused as a pickle that would run code."""
    row = foreign.row(WIDTH)
    container = torch.nn.ParameterDict({"*": row[None]})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": container}, tmp_path / "bear.pt")
    concept = interop.read(tmp_path / "bear.pt", base=tiny).concept
    assert torch.equal(concept.tokens["<bear>"], row)
    with pytest.raises(Exception, match="weights_only"):  # and stays refused elsewhere
        torch.load(tmp_path / "bear.pt", weights_only=True)


def test_embeddings_of_two_text_encoders_become_one_row(tmp_path: Path) -> None:
    save_file({"clip_g": torch.ones(1, 24), "clip_l": torch.zeros(1, 16)}, tmp_path / "bear.safetensors")
    torch.save({"unet": {"x.attn2.y": {"u": torch.ones(1, 1), "v": torch.ones(1, 1)}},
                "modifier_token": {"<bear>": [torch.zeros(16), torch.ones(24)]}}, tmp_path / "delta.bin")  # fmt: skip
    for name in ("bear.safetensors", "delta.bin"):
        concept = interop.read(tmp_path / name).concept
        assert concept.token_widths == (16, 24)
        assert [float(row.mean()) for row in concept.rows("<bear>")] == [0.0, 1.0]


def test_tokens_that_are_bundled_with_a_lora_are_read(tiny: Backbone, tmp_path: Path) -> None:
    row = foreign.row(WIDTH)
    bundled = {"bundle_emb.bear.string_to_param.*": row[None]}
    concept = interop.read(foreign.lora(tmp_path / "lora", denoiser(tiny), style="kohya", **bundled), base=tiny).concept
    assert torch.equal(concept.tokens["<bear>"], row)


def test_an_alpha_of_integers_is_read(tiny: Backbone, tmp_path: Path) -> None:
    """It was refused as no tensor of numbers."""
    before = denoiser(tiny)
    path = foreign.lora(tmp_path / "lora", before, style="kohya", alpha=1.0)
    save_file({k: v.long() if k.endswith("alpha") else v for k, v in load_file(path).items()}, path)
    assert_changes(interop.read(path).concept, before)


# --- loudness ---------------------------------------------------------------------------------------------------------


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


def test_a_lora_for_another_base_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    key = "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k"
    more = {f"unet.{key}.lora_A.weight": torch.ones(2, 768), f"unet.{key}.lora_B.weight": torch.ones(320, 2)}
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft", **more)
    with pytest.raises(BaseMismatchError, match=f"no weight 'unet.{key}.weight'"):
        interop.read(path, base=tiny)
    concept = interop.read(path).concept
    with pytest.raises(BaseMismatchError, match="does not say which model"), concept.applied(tiny):
        pass


def test_tokens_of_another_width_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "bear.safetensors")
    with pytest.raises(BaseMismatchError, match=r"row of 768 numbers, but .* reads rows of 16.*name the right one"):
        interop.read(tmp_path / "bear.safetensors", base=tiny)


def test_a_file_that_would_change_nothing_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    unchanged = {name: weight for name, weight in before.items() if "attn2.to_k" in name}
    torch.save({"unet": unchanged, "modifier_token": {}}, tmp_path / "delta.bin")
    only_self = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight": torch.ones(2, 2)
    }
    save_file(only_self, tmp_path / "self.safetensors")
    foreign.lora(tmp_path / "fresh", before, style="kohya")
    fresh = {key: 0 * value if "lora_up" in key else value for key, value in load_file(tmp_path / "fresh").items()}
    save_file(fresh, tmp_path / "fresh.safetensors")
    for name, told in (("delta.bin", ""), ("self.safetensors", "self-attention"), ("fresh.safetensors", "")):
        with pytest.raises(ConceptFileError, match=f"would change nothing.*{told}"):
            interop.read(tmp_path / name, base=tiny)


def test_half_a_product_is_refused(tiny: Backbone, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tiny: Backbone, tmp_path: Path, value: float) -> None:
    """Pictures came out black."""
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft")
    tensors = load_file(path)
    key = next(key for key in tensors if "mid_block" in key and "to_k" in key)
    tensors[key][0, 0] = value
    save_file(tensors, path)
    with pytest.raises(ConceptFileError, match=r"unet\.mid_block\.attentions\.0.*attn2\.to_k\.weight.*not finite"):
        interop.read(path)
    save_file({"emb_params": torch.full((1, WIDTH), value)}, tmp_path / "bear.safetensors")
    with pytest.raises(ConceptFileError, match="<bear>.*not finite"):
        interop.read(tmp_path / "bear.safetensors")


NONSENSE = (None, 3, "x", [], {}, torch.tensor(1.0), torch.tensor(7), torch.ones(0), torch.ones(3), torch.ones(2, 0))


def test_nonsense_in_a_file_is_an_error_of_ours(tiny: Backbone, tmp_path: Path) -> None:
    """Many of these ended in a traceback: nothing for tokens, a module's container, factors of rank 0, ..."""
    before, row = denoiser(tiny), foreign.row(WIDTH)
    state = {"text_model.final_layer_norm.bias": 0.1 * row}
    files = [
        foreign.adobe(tmp_path / "a", before, {"<new1>": row}, text_encoder=state),
        foreign.adobe_compressed(tmp_path / "b", before, {"<new1>": [row]}),
        foreign.compvis_checkpoint(tmp_path / "c", before, row[None]),
        foreign.a1111(tmp_path / "d", row[None]),
        foreign.lora(tmp_path / "e", before, style="kohya", alpha=1.0),
    ]
    for file in files:
        content = load_file(file) if file.name == "e" else torch.load(file)
        for key in list(content)[:4]:
            inner = [(content[key], each) for each in list(content[key])[:1]] if isinstance(content[key], dict) else []
            for holder, name in [(content, key), *inner]:
                found = holder[name]
                for holder[name] in NONSENSE:
                    torch.save(content, tmp_path / "try")
                    with contextlib.suppress(MoongateError):
                        interop.read(tmp_path / "try", base=tiny)
                holder[name] = found
        torch.save(content, tmp_path / "try")
        assert interop.read(tmp_path / "try", base=tiny).concept.deltas or file.name == "d"


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": 4, "alpha_pattern": [1]}'])
def test_a_broken_configuration_beside_a_lora_is_named(tiny: Backbone, tmp_path: Path, text: str) -> None:
    path = foreign.lora(tmp_path / "adapter_model.safetensors", denoiser(tiny), style="peft")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConceptFileError, match="broken JSON|where an object|odd alpha"):
        interop.read(path)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "delta.bin").write_bytes(pickle.dumps({"unet": foreign.Malice(mark)}))
    torch.save({"unet": {"a.attn2.b": torch.ones(1)}, "modifier_token": foreign.Malice(mark)}, tmp_path / "zip.ckpt")
    for name in ("delta.bin", "zip.ckpt"):
        with pytest.raises(ConceptFileError, match="pickle that would run code"):
            interop.read(tmp_path / name)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "delta.bin").rename(folder / "delta.bin")
    with pytest.raises(ConceptFileError, match="pickle that would run code"):
        interop.read(folder)
    assert not mark.exists()
    pickle.loads((folder / "delta.bin").read_bytes())
    assert mark.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a safetensors file nor a whole pickle|pickle that would run code"),
        (b"PK\x03\x04 cut off", "neither a safetensors file nor a whole pickle"),
        (b"hello, this is no file of weights", "refused|neither"),
        (b"\x10\0\0\0\0\0\0\0{ this is cut", "is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConceptFileError, match=message):
        interop.read(tmp_path / "file")


def test_files_of_no_known_format_are_named(tmp_path: Path, tiny: Backbone) -> None:
    with pytest.raises(ConceptFileError, match="There is no concept file"):
        interop.read(tmp_path / "nowhere")
    with pytest.raises(ConceptFileError, match="holds no file of weights"):
        interop.read(tmp_path)
    whole = {f"model.diffusion_model.{name}": weight for name, weight in denoiser(tiny).items()}
    torch.save({"state_dict": whole}, tmp_path / "sd.ckpt")
    with pytest.raises(
        ConceptFileError, match=r"of no format that Moongate reads; it holds 'state_dict'.*Known: moongate"
    ):
        interop.read(tmp_path / "sd.ckpt")


def test_a_part_of_a_folder_that_belongs_together_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    written = interop.write(make_concept(tiny), tmp_path / "lora", to="lora")
    with pytest.raises(ConceptFileError, match=r"beside the tokens <bear>, which are not there. Give the folder"):
        interop.read(written.files[0])
    (tmp_path / "lora" / "twice.safetensors").write_bytes(written.files[1].read_bytes())
    with pytest.raises(ConceptFileError, match="both hold <bear>"):
        interop.read(tmp_path / "lora")


# --- writing and reading again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_keeps_what_the_table_says(each: Backbone, tmp_path: Path, name: str, low_rank: bool) -> None:
    """On SD 1.x, SD 2.x and SDXL."""
    form, out = FORMATS[name], tmp_path / "out"
    concept = make_concept(each, low_rank=low_rank, tokens=("<bear>", "<chair>"))
    if name.startswith("compvis") and len(each.token_widths) > 1:
        with pytest.raises(OptionError, match="one text encoder"):
            interop.write(concept, out, to=name, options=WriteOptions(base=each))
        return
    if form.needs_base:
        with pytest.raises(OptionError, match="base"):
            interop.write(concept, out, to=name)
    interop.write(
        concept,
        out,
        to=name,
        options=WriteOptions(base=each if form.needs_base else None, rank=2 if not low_rank else None),
    )
    if form.needs_base:
        with pytest.raises(OptionError, match="--base"):
            interop.read(out)
    found = interop.read(out, base=each if form.needs_base else None)
    again = found.concept
    assert found.format == name
    assert all(
        torch.equal(a, b)
        for ours, theirs in zip(concept.tokens, again.tokens, strict=True)
        for a, b in zip(concept.rows(ours), again.rows(theirs), strict=True)
    )
    assert list(again.tokens) == (["<bear>", "<chair>"] if form.keeps_names else ["<new1>", "<new2>"])
    facts = ("subjects", "base", "fingerprint", "method", "record")
    assert form.keeps_provenance == all(getattr(again, fact) == getattr(concept, fact) for fact in facts)
    assert set(again.deltas) == (set() if form.keeps_changes == "no" else set(concept.deltas))
    for layer, change in again.deltas.items():
        before = concept.deltas[layer]
        if form.keeps_changes == "rounded":
            whole = each.parameter(layer).detach()
            bound = torch.finfo(torch.float32).eps * (whole.abs() + before.full().abs())
            assert ((change.full() - before.full()).abs() <= bound).all()
        elif low_rank or form.keeps_changes == "exactly":
            pairs = zip(change.tensors().values(), before.tensors().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        else:
            left, values, right = torch.linalg.svd(before.full().double(), full_matrices=False)
            assert torch.allclose(change.full().double(), left[:, :2] * values[:2] @ right[:2], atol=1e-6)
    if form.keeps_provenance and form.keeps_changes != "rounded" and low_rank:
        assert again.hash == concept.hash
    with again.applied(each):
        pass


def test_the_error_of_a_dense_change_at_a_rank_is_told(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny, low_rank=False)
    written = interop.write(concept, tmp_path / "lora", to="lora", options=WriteOptions(rank=4))
    again = interop.read(tmp_path / "lora").concept
    cut = sum(float((again.deltas[n].full() - c.full()).square().sum()) for n, c in concept.deltas.items())
    whole = sum(float(c.full().square().sum()) for c in concept.deltas.values())
    assert f"rank 4, which loses {(cut / whole) ** 0.5:.1%}" in written.notes[0]
    with pytest.raises(OptionError, match="rank is 0"):
        interop.write(concept, tmp_path / "other", to="lora", options=WriteOptions(rank=0))


def test_a_merged_concept_is_written_at_its_own_rank_and_nothing_is_lost(tiny: Backbone, tmp_path: Path) -> None:
    merged = merge(tiny, [make_concept(tiny, low_rank=False)]).concept
    written = interop.write(merged, tmp_path / "lora", to="kohya")
    assert written.notes == ()
    tensors = load_file(tmp_path / "lora" / "lora.safetensors")
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in tensors.items() if key.endswith(".alpha")}
    assert alphas == {key: tensors[f"{key}.lora_down.weight"].shape[0] for key in alphas}
    assert len(alphas) == len(merged.deltas)
    assert interop.read(tmp_path / "lora").concept.hash == merged.hash


def test_changes_that_a_format_cannot_hold_are_named(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    bias = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"
    query = bias.replace("to_out.0.bias", "to_q.weight")
    more = {bias: Dense(delta=torch.ones(32)), query: Dense(delta=0.01 * torch.ones(32, 32))}
    face = dataclasses.replace(concept, deltas={**concept.deltas, **more})
    options = WriteOptions(base=tiny)
    assert bias in interop.write(face, tmp_path / "lora", to="lora", options=options).notes[0]
    assert "queries" in interop.read(tmp_path / "lora").notes[0]
    assert query in interop.write(face, tmp_path / "small", to="adobe-compressed", options=options).notes[0]
    for name in ("adobe", "compvis", "diffusers"):
        interop.write(face, tmp_path / name, to=name, options=options)
        again = interop.read(tmp_path / name, base=tiny).concept
        assert torch.allclose(again.deltas[bias].full(), torch.ones(32), atol=1e-6)
        assert query in again.deltas


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    alone = dataclasses.replace(concept, deltas={})
    tokenless = dataclasses.replace(concept, tokens={}, subjects=())
    with pytest.raises(OptionError, match="no format 'onnx'. Known: moongate, adobe"):
        interop.write(concept, tmp_path / "x", to="onnx")
    with pytest.raises(OptionError, match="changes no weights"):
        interop.write(alone, tmp_path / "x", to="kohya")
    with pytest.raises(OptionError, match="has no token"):
        interop.write(tokenless, tmp_path / "x", to="embedding")
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OptionError, match="not empty"):
        interop.write(concept, tmp_path / "full", to="lora")
    with pytest.raises(OptionError, match="is a file"):
        interop.write(concept, tmp_path / "full" / "mine", to="lora", overwrite=True)
    assert interop.write(concept, tmp_path / "full", to="lora", overwrite=True).notes == ()
    assert (tmp_path / "full" / "mine").exists()


def test_an_earlier_concept_in_a_folder_that_is_written_again_is_pointed_out(tiny: Backbone, tmp_path: Path) -> None:
    """Its tokens were read, and uploaded, as parts of the later one."""
    interop.write(make_concept(tiny, tokens=("<cat>",)), tmp_path / "lora", to="lora")
    written = interop.write(make_concept(tiny), tmp_path / "lora", to="lora", overwrite=True)
    assert (
        "also holds <cat>.safetensors, which is not of this concept but is read with it. Remove it." in written.notes[0]
    )
    (tmp_path / "lora" / "<cat>.safetensors").unlink()
    assert list(interop.read(tmp_path / "lora").concept.tokens) == ["<bear>"]


@pytest.mark.parametrize("text", ["{", "[]", "{}x", '{"base": "b", "tokens": []}'])
def test_a_broken_header_is_named(tiny: Backbone, tmp_path: Path, text: str) -> None:
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style="peft")
    save_file(load_file(path), path, metadata={"moongate": text})
    with pytest.raises(ConceptFileError, match=r"broken JSON|where an object|lacks a part"):
        interop.read(path)


def test_a_token_cannot_lead_out_of_the_folder(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny, tokens=("<../../bear>",))
    for name in ("lora", "embedding", "diffusers"):
        written = interop.write(concept, tmp_path / name, to=name, options=WriteOptions(base=tiny))
        assert {file.parent for file in written.files} == {tmp_path / name}
        assert list(interop.read(tmp_path / name, base=tiny).concept.tokens) == ["<../../bear>"]


def test_a_token_file_holds_one_row(tiny: Backbone, tmp_path: Path) -> None:
    """The `.bin` of diffusers' example holds the whole table, 152 MB."""
    interop.write(make_concept(tiny), tmp_path / "lora", to="lora")
    assert {key: row.shape for key, row in load_file(tmp_path / "lora" / "<bear>.safetensors").items()} == {
        "<bear>": (16,)
    }


@pytest.mark.parametrize("token", ["cat", "a cat", "<a cat>", ""])
def test_a_new_name_that_no_prompt_could_use_is_refused(tiny: Backbone, tmp_path: Path, token: str) -> None:
    """It was written, and refused only when a picture was to be drawn."""
    path = foreign.adobe_compressed(tmp_path / "a", denoiser(tiny), {"<a>": foreign.row(WIDTH)})
    with pytest.raises(TokenError, match=r"is not one word in angle brackets. Write '<\S+>'"):
        interop.read(path, tokens=(token,))


def test_reading_a_clash_of_tokens_is_a_token_error(tiny: Backbone, tmp_path: Path) -> None:
    path = foreign.adobe_compressed(
        tmp_path / "a", denoiser(tiny), {"<a>": foreign.row(WIDTH), "<b>": foreign.row(WIDTH)}
    )
    with pytest.raises(TokenError, match="two tokens the same name"):
        interop.read(path, tokens=("<c>", "<c>"))


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    written = BLOCK.search(page)
    assert written, "docs/formats.md has lost its marks"
    assert written[0] == interop.table(), "run `python -m moongate.interop` in the root of the repository"
    assert all(re.search(rf"^\| `{name}` \|", page, re.MULTILINE) for name in FORMATS)


@pytest.mark.parametrize("name", ["junk.bin", "junk.safetensors"])
def test_a_few_stray_bytes_are_no_concept_rather_than_a_traceback(tmp_path: Path, name: str) -> None:
    """PyTorch takes "j" for the beginning of a number, and what is called .safetensors for that."""
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(ConceptFileError, match=f"{name} is neither a safetensors file nor a whole pickle"):
        interop.look(tmp_path / name)
