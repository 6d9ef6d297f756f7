"""What is refused, and what is said about a file that is read."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import foreign_files as foreign
from foreign_concepts import WIDTH, denoiser
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import BackboneError, BaseMismatchError, ConceptFileError, TokenError


def test_files_of_no_known_format_are_named(tmp_path: Path, tiny: Backbone) -> None:
    with pytest.raises(ConceptFileError, match="There is no concept file"):
        interop.read(tmp_path / "nowhere")
    with pytest.raises(ConceptFileError, match="holds no file of weights"):
        interop.read(tmp_path)
    with pytest.raises(ConceptFileError, match="If it is a model of the hub .*--model runwayml/sd"):
        interop.read("runwayml/sd")
    torch.save(
        {"state_dict": {f"policy.{name}": weight for name, weight in denoiser(tiny).items()}}, tmp_path / "sd.ckpt"
    )
    with pytest.raises(
        ConceptFileError, match=r"of no format that Moongate reads; it holds 'state_dict'.*Known: moongate"
    ):
        interop.read(tmp_path / "sd.ckpt")


def test_a_model_is_no_concept(tiny_folder: Path, tmp_path: Path) -> None:
    save_file({"first_stage_model.encoder.conv_in.weight": torch.ones(1)}, tmp_path / "sd.safetensors")
    for model in ("pocket", tiny_folder, tmp_path / "sd.safetensors"):
        with pytest.raises(ConceptFileError, match=f"{model} is a model, not a concept; draw with it: moon"):
            interop.read(model)


def test_a_whole_model_in_a_pickle_is_told_from_a_concept(tmp_path: Path) -> None:
    weights = {"first_stage_model.encoder.conv_in.weight": torch.ones(1), "model_ema.decay": torch.ones(1)}
    for content in (weights, {"state_dict": weights, "epoch": 3}):
        torch.save(content, tmp_path / "sd.ckpt")
        with pytest.raises(
            ConceptFileError, match="sd.ckpt is a model, not a concept; draw with it: moongate generate"
        ):
            interop.read(tmp_path / "sd.ckpt")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_part_of_a_model_is_called_one(part: str, tiny_folder: Path) -> None:
    with pytest.raises(ConceptFileError, match="is a part of a model, not a concept. Give the file that a trainer"):
        interop.read(tiny_folder / f"{part}.safetensors")
    with pytest.raises(BackboneError, match="is not a whole model: it has no autoencoder. Give the folder of the"):
        Backbone.load(str(tiny_folder / f"{part}.safetensors"))


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
    with pytest.raises(BaseMismatchError, match=r"Name the right one.*row of 768 numbers, but .* reads rows of 16"):
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
    for name, kind in (("delta.bin", ""), ("self.safetensors", "self-attention"), ("fresh.safetensors", "")):
        with pytest.raises(ConceptFileError, match=f"would change nothing.*{kind}"):
            interop.read(tmp_path / name, base=tiny)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tiny: Backbone, tmp_path: Path, value: float) -> None:
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


@pytest.mark.parametrize("to", ["lora", "kohya"])
def test_a_lora_without_the_files_of_its_tokens_is_read_and_the_tokens_are_named(
    tiny: Backbone, tmp_path: Path, to: str
) -> None:
    concept = make_concept(tiny, tokens=("<bear>", "<chair>"))
    written = interop.write(concept, tmp_path / "folder", to=to)
    moved = written.files[0].rename(tmp_path / "moved.safetensors")
    with safe_open(moved, "pt") as file:
        header = file.metadata()
    ups = ("lora_up.weight", "lora_B.weight")
    half = {key: 0.5 * value if key.endswith(ups) else value for key, value in load_file(moved).items()}
    save_file(half, tmp_path / "resized.safetensors", metadata=header)  # a tool that keeps the header
    for file, scale in ((moved, 1.0), (tmp_path / "resized.safetensors", 0.5)):
        imported = interop.read(file, base=tiny)
        assert "together with the tokens <bear>, <chair>, which are not there" in imported.notes[0]
        assert not imported.concept.tokens
        assert [subject.words for subject in imported.concept.subjects] == ["bear", "bear"]
        assert imported.concept.fingerprint == concept.fingerprint
        for name, change in concept.deltas.items():
            assert torch.equal(imported.concept.deltas[name].full(), scale * change.full())
    with imported.concept.applied(tiny):
        pass


def test_a_lora_with_some_files_of_its_tokens_keeps_these_subjects(tiny: Backbone, tmp_path: Path) -> None:
    interop.write(make_concept(tiny, tokens=("<bear>", "<chair>")), tmp_path / "lora", to="lora")
    (tmp_path / "lora" / "<chair>.safetensors").unlink()
    imported = interop.read(tmp_path / "lora", base=tiny)
    assert "tokens <chair>, which are not there" in imported.notes[0]
    assert list(imported.concept.tokens) == ["<bear>"]
    assert [subject.words for subject in imported.concept.subjects] == ["<bear> bear", "bear"]
    assert imported.concept.subjects[1].prompts == ()


def test_two_files_of_a_folder_that_hold_one_token_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    written = interop.write(make_concept(tiny), tmp_path / "lora", to="lora")
    (tmp_path / "lora" / "twice.safetensors").write_bytes(written.files[1].read_bytes())
    with pytest.raises(ConceptFileError, match="both hold <bear>"):
        interop.read(tmp_path / "lora")


@pytest.mark.parametrize("style", ["peft", "kohya"])
@pytest.mark.parametrize("text", ["{", "[]", "{}x", '{"base": "b", "tokens": []}', '{"tokens": 5}'])
def test_a_broken_header_is_named(tiny: Backbone, tmp_path: Path, text: str, style: str) -> None:
    path = foreign.lora(tmp_path / "lora", denoiser(tiny), style=style)
    save_file(load_file(path), path, metadata={"moongate": text})
    with pytest.raises(ConceptFileError, match=r"broken JSON|where an object|lacks a part"):
        interop.read(path)


@pytest.mark.parametrize("token", ["cat", "a cat", "<a cat>", ""])
def test_a_new_name_that_no_prompt_could_use_is_refused(tiny: Backbone, tmp_path: Path, token: str) -> None:
    path = foreign.adobe_compressed(tmp_path / "a", denoiser(tiny), {"<a>": foreign.row(WIDTH)})
    with pytest.raises(TokenError, match=r"is not one word in angle brackets. Write '<\S+>'"):
        interop.read(path, tokens=(token,))


def test_reading_a_clash_of_tokens_is_a_token_error(tiny: Backbone, tmp_path: Path) -> None:
    path = foreign.adobe_compressed(
        tmp_path / "a", denoiser(tiny), {"<a>": foreign.row(WIDTH), "<b>": foreign.row(WIDTH)}
    )
    with pytest.raises(TokenError, match="two tokens the same name"):
        interop.read(path, tokens=("<c>", "<c>"))


def test_a_concept_of_tokens_alone_is_read_with_these_tokens_alone(tiny: Backbone, tmp_path: Path) -> None:
    concept = dataclasses.replace(make_concept(tiny), deltas={})
    path = concept.save(tmp_path / "bear.safetensors")
    imported = interop.read(path, base=tiny)
    assert imported.format == "moongate"
    assert list(imported.concept.tokens) == ["<bear>"]
    assert imported.concept.hash == concept.hash


def test_a_folder_is_read_beside_files_that_cannot_be_opened_and_these_are_named(
    tiny: Backbone, tmp_path: Path
) -> None:
    """As a trainer's checkpoint, which holds the state of its optimizer too."""
    concept = make_concept(tiny)
    interop.write(concept, tmp_path / "checkpoint", to="lora")
    mark = tmp_path / "ran"
    (tmp_path / "checkpoint" / "random_states_0.bin").write_bytes(pickle.dumps(foreign.Malice(mark)))
    (tmp_path / "checkpoint" / "optimizer.pt").write_bytes(b"PK\x03\x04 cut off")
    torch.save({"state": {}, "param_groups": [{"lr": 1e-5}]}, tmp_path / "checkpoint" / "scheduler.bin")
    imported = interop.read(tmp_path / "checkpoint", base=tiny)
    assert imported.concept.hash == concept.hash
    for name, reason in (("random_states_0.bin", "would run code"), ("optimizer.pt", "nor a whole pickle")):
        assert any(name in note and reason in note for note in imported.notes)
    assert "scheduler.bin was not read." in imported.notes
    assert not mark.exists()


def test_a_folder_of_several_concepts_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    """Of all but one, the categories and prompts would be lost."""
    for token in ("<bear>", "<cat>"):
        concept = dataclasses.replace(make_concept(tiny, tokens=(token,)), deltas={})
        concept.save(tmp_path / f"{token.strip('<>')}.safetensors")
    with pytest.raises(ConceptFileError, match="holds several concepts. Give the file of one of them"):
        interop.read(tmp_path)


def test_a_folder_that_holds_a_weight_and_a_change_of_it_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    interop.write(make_concept(tiny), tmp_path / "both", to="diffusers", options=interop.WriteOptions(base=tiny))
    foreign.lora(tmp_path / "both" / "lora.safetensors", denoiser(tiny), style="peft")
    with pytest.raises(ConceptFileError, match="Two files of .* both hold unet.*Give the file of one alone"):
        interop.read(tmp_path / "both", base=tiny)
