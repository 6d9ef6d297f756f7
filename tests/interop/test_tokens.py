"""Words in other programs' files, bundled with a LoRA or alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import foreign_files as foreign
from foreign_concepts import WIDTH, denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.errors import ConceptFileError
from moongate.merging import MergeOptions, merge

THREE = torch.stack([foreign.row(WIDTH, seed=seed) for seed in range(3)])


def bundled(path: Path, tiny: Backbone, **embeddings: Tensor) -> interop.Imported:
    values = {f"bundle_emb.{name}": value for name, value in embeddings.items()}
    return interop.read(foreign.lora(path, denoiser(tiny), style="kohya", **values), base=tiny)


def rows(imported: interop.Imported) -> dict[str, list[float]]:
    return {token: row.tolist() for token, row in imported.concept.tokens.items()}


def expected(name: str, vectors: Tensor) -> dict[str, list[float]]:
    names = [f"<{name}>", *(f"<{name}-{number}>" for number in range(2, len(vectors) + 1))]
    return dict(zip(names, vectors.tolist(), strict=True))


@pytest.mark.parametrize("field", ["clip_l", "string_to_param.*", "emb_params", "text_encoders_0"])
def test_a_bundled_word_of_several_vectors_is_read_as_outside_a_lora(
    tiny: Backbone, tmp_path: Path, field: str
) -> None:
    imported = bundled(tmp_path / "lora", tiny, **{f"bear.{field}": THREE})
    assert rows(imported) == expected("bear", THREE)
    save_file({"emb_params": THREE}, tmp_path / "bear.safetensors")
    alone = interop.read(tmp_path / "bear.safetensors", base=tiny)
    assert rows(alone) == rows(imported)
    (note,) = alone.notes
    assert "has 3 vectors; write '<bear> <bear-2> <bear-3>'" in note
    assert note in imported.notes


def test_bundled_words_with_numbers_keep_all_their_vectors(tiny: Backbone, tmp_path: Path) -> None:
    imported = bundled(tmp_path / "lora", tiny, **{"cat1.clip_l": THREE, "cat2.clip_l": -THREE})
    assert rows(imported) == {**expected("cat1", THREE), **expected("cat2", -THREE)}


def test_bundled_words_with_dots_and_spaces_keep_their_names(tiny: Backbone, tmp_path: Path) -> None:
    imported = bundled(
        tmp_path / "lora", tiny, **{"v1.0 bear.clip_l": THREE[:1], "v1.0 cat.string_to_param.*": THREE[1:2]}
    )
    assert rows(imported) == {"<v1.0-bear>": THREE[0].tolist(), "<v1.0-cat>": THREE[1].tolist()}


def test_words_whose_names_would_be_alike_are_told_apart_with_a_note(tiny: Backbone, tmp_path: Path) -> None:
    names = {"ema yasuhara.clip_l": THREE[:2], "ema-yasuhara.clip_l": THREE[2:], "ema-yasuhara-2.clip_l": -THREE[2:]}
    imported = bundled(tmp_path / "lora", tiny, **names)
    assert sorted(row for row in rows(imported).values()) == sorted([*THREE.tolist(), (-THREE[2]).tolist()])
    assert len(imported.concept.tokens) == 4
    assert any("'ema-yasuhara' is read as" in note for note in imported.notes)


@pytest.mark.parametrize("field", ["clip_l", "text_encoders_0", "emb_params", "*", "string_to_param.*", "clip_h"])
def test_a_file_whose_only_key_is_a_field_is_named_after_the_file(tiny: Backbone, tmp_path: Path, field: str) -> None:
    save_file({field: THREE[:1]}, tmp_path / "my bear.safetensors")
    assert list(interop.read(tmp_path / "my bear.safetensors", base=tiny).concept.tokens) == ["<my-bear>"]


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("in_lora", [False, True])
def test_the_rows_of_both_text_encoders_are_joined_in_order(
    tmp_path: Path, names: tuple[str, str], in_lora: bool
) -> None:
    small, large = torch.zeros(2, 16), torch.ones(2, 24)
    values = {names[1]: large, names[0]: small}
    if in_lora:
        values = {f"bundle_emb.bear.{key}": value for key, value in values.items()}
        key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
        values |= {f"{key}.lora_A.weight": torch.ones(1, 4), f"{key}.lora_B.weight": torch.ones(4, 1)}
    save_file(values, tmp_path / "bear.safetensors")
    concept = interop.read(tmp_path / "bear.safetensors").concept
    assert concept.token_widths == (16, 24)
    assert [[float(row.mean()) for row in concept.rows(token)] for token in ("<bear>", "<bear-2>")] == [[0, 1]] * 2


def test_embeddings_of_a_text_encoder_s_output_are_listed_as_not_taken(tiny: Backbone, tmp_path: Path) -> None:
    """As OneTrainer keeps them with those of the input."""
    imported = bundled(tmp_path / "lora", tiny, **{"bear.clip_l": THREE[:1], "bear.clip_l_out": THREE[1:2]})
    assert "embeddings of a text encoder's output" in imported.notes[0]
    save_file({"clip_l": THREE[:1].clone(), "clip_l_out": THREE[1:2].clone()}, tmp_path / "bear.safetensors")
    alone = interop.read(tmp_path / "bear.safetensors", base=tiny)
    assert rows(alone) == rows(imported) == expected("bear", THREE[:1])
    assert "embeddings of a text encoder's output" in alone.notes[0]


def test_an_unknown_key_of_a_bundled_word_is_named(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConceptFileError, match=r"'bear' holds 't5'. Known keys: clip_l, clip_g"):
        bundled(tmp_path / "lora", tiny, **{"bear.t5": THREE})
    with pytest.raises(ConceptFileError, match="'bear' holds clip_l and emb_params for one text encoder"):
        bundled(tmp_path / "lora", tiny, **{"bear.clip_l": THREE, "bear.emb_params": THREE})


def test_a_word_of_several_vectors_is_one_subject_that_a_merge_keeps(tiny: Backbone, tmp_path: Path) -> None:
    """Its keys and values are those that the LoRA gives it; the right side is multiplied out by hand."""
    before = denoiser(tiny)
    imported = bundled(tmp_path / "lora", tiny, **{"bear.clip_l": 0.1 * THREE[:2]})
    (subject,) = imported.concept.subjects
    assert subject.words == "<bear> <bear-2>"
    named = interop.read(tmp_path / "lora", base=tiny, tokens=("<rex>",), categories=("dog",)).concept
    assert [subject.words for subject in named.subjects] == ["<rex> <rex-2> dog"]
    assert list(named.tokens) == ["<rex>", "<rex-2>"]
    for concept, text in ((imported.concept, "photo of a <bear> <bear-2>"), (named, "photo of a <rex> <rex-2> dog")):
        merged = merge(tiny, [concept], options=MergeOptions(contexts=1)).concept
        assert merged.tokens.keys() == concept.tokens.keys()
        assert [record.words for record in merged.subjects] == [record.words for record in concept.subjects]
        with tiny.tokens(concept.tokens):
            ids = tiny.token_ids([text])[0].tolist()
            first = ids.index(tiny.tokenizer.convert_tokens_to_ids(concept.subjects[0].token))
            features = tiny.encode_text([text]).features[0][first : ids.index(tiny.tokenizer.eos_token_id) + 1]
        for module, (up, down) in foreign.changes(before).items():
            kept = features.double() @ merged.deltas[f"unet.{module}.weight"].full().double().T
            assert torch.allclose(kept, features.double() @ (up @ down).double().T, atol=1e-4)


def test_a_word_of_several_vectors_survives_a_concept_file_and_is_written_out_in_prompts(
    tiny: Backbone, tmp_path: Path
) -> None:
    concept = bundled(tmp_path / "source", tiny, **{"bear.clip_l": THREE, "cat.clip_l": THREE[:1]}).concept
    again = Concept.load(concept.save(tmp_path / "concept.safetensors"))
    assert [subject.words for subject in again.subjects] == ["<bear> <bear-2> <bear-3>", "<cat>"]
    assert again.spelled("a <bear> and a <cat>") == "a <bear> <bear-2> <bear-3> and a <cat>"
    assert again.spelled("a <bear> <bear-2> <bear-3>") == "a <bear> <bear-2> <bear-3>"
    for to in ("lora", "kohya"):
        interop.write(concept, tmp_path / to, to=to)
        imported = interop.read(tmp_path / to, base=tiny).concept
        assert [subject.words for subject in imported.subjects] == [subject.words for subject in concept.subjects]
