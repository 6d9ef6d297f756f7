"""Textual-inversion embeddings."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import foreign_files as foreign
from foreign_concepts import WIDTH
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.errors import ConceptFileError
from moongate.limits import MAX_TOKENS


def test_embeddings_are_read(tiny: Backbone, tmp_path: Path) -> None:
    row = foreign.row(WIDTH)
    foreign.a1111(tmp_path / "any.pt", row[None], name="my bear")
    save_file({"emb_params": row[None]}, tmp_path / "bear.safetensors")
    save_file({"<bear>": row}, tmp_path / "diffusers.safetensors")
    for name, token in (("any.pt", "<my-bear>"), ("bear.safetensors", "<bear>"), ("diffusers.safetensors", "<bear>")):
        imported = interop.read(tmp_path / name, base=tiny)
        assert imported.format == "embedding"
        assert torch.equal(imported.concept.tokens[token], row)
        assert not imported.concept.deltas
    two = interop.read(foreign.a1111(tmp_path / "two.pt", torch.stack([row, -row])))
    assert list(two.concept.tokens) == ["<bear>", "<bear-2>"]
    assert "'<bear> <bear-2>'" in two.notes[0]


def test_an_embedding_saved_as_a_module_is_read(tiny: Backbone, tmp_path: Path) -> None:
    """As the first code of textual inversion saved them."""
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


def test_more_vectors_than_are_read_are_an_error(tmp_path: Path) -> None:
    save_file({"emb_params": foreign.row(WIDTH).repeat(MAX_TOKENS + 1, 1)}, tmp_path / "one.safetensors")
    with pytest.raises(ConceptFileError, match=rf"{MAX_TOKENS + 1} or more vectors of words; at most {MAX_TOKENS}"):
        interop.read(tmp_path / "one.safetensors")


def test_several_words_under_their_own_names_are_read(tiny: Backbone, tmp_path: Path) -> None:
    rows = {"<bear>": foreign.row(WIDTH), "<cat>": foreign.row(WIDTH, seed=1)}
    save_file(rows, tmp_path / "learned_embeds.safetensors")
    tokens = interop.read(tmp_path / "learned_embeds.safetensors", base=tiny).concept.tokens
    assert tokens.keys() == rows.keys()
    assert all(torch.equal(tokens[word], row) for word, row in rows.items())


def test_a_file_for_each_text_encoder_is_one_word(tmp_path: Path) -> None:
    """As diffusers' example of textual inversion for SDXL writes them; the first encoder is the narrower one."""
    for name, rows in (("learned_embeds", torch.zeros(2, 16)), ("learned_embeds_2", torch.ones(2, 24))):
        save_file({"<bear>": rows}, tmp_path / f"{name}.safetensors")
    concept = interop.read(tmp_path).concept
    assert concept.token_widths == (16, 24)
    assert [[float(row.mean()) for row in concept.rows(token)] for token in concept.tokens] == [[0, 1]] * 2
    assert concept.subjects[0].words == "<bear> <bear-2>"


def test_names_that_nobody_could_type_are_cut_and_stripped(tmp_path: Path) -> None:
    for name, token in (("a" * 30_000, f"<{'a' * 100}>"), ("a\0b\u202ec", "<a-b-c>"), ("bear\n", "<bear>")):
        save_file({"emb_params": foreign.row(WIDTH)}, tmp_path / "x.safetensors", metadata={"name": name})
        concept = interop.read(tmp_path / "x.safetensors").concept
        assert list(concept.tokens) == [token]
        concept.save(tmp_path / "concept.safetensors", overwrite=True)
        assert list(Concept.load(tmp_path / "concept.safetensors").tokens) == [token]


def test_a_row_of_whole_numbers_is_named(tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(4, dtype=torch.int64)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ConceptFileError, match=r"torch.int64 of the shape \(4,\); it must be one floating-point vector"
    ):
        interop.read(tmp_path / "x.safetensors")


def test_several_placeholders_of_one_file_are_several_words(tiny: Backbone, tmp_path: Path) -> None:
    """Not the rows of one word for several text encoders."""
    row = foreign.row(WIDTH)
    torch.save({"string_to_param": {"*": row[None], "@dog": -row[None]}}, tmp_path / "bear.pt")
    tokens = interop.read(tmp_path / "bear.pt", base=tiny).concept.tokens
    assert list(tokens) == ["<bear>", "<@dog>"]
    assert torch.equal(tokens["<@dog>"], -row)


def test_a_file_of_bundled_words_alone_is_read_as_in_a_lora(tiny: Backbone, tmp_path: Path) -> None:
    rows = torch.stack([foreign.row(WIDTH), foreign.row(WIDTH, seed=8)])
    for number, keys in enumerate((["bundle_emb.bear.emb_params"], ["bundle_emb.bear", "bundle_emb.cat.clip_l"])):
        save_file({key: row[None].clone() for key, row in zip(keys, rows, strict=False)}, tmp_path / str(number))
        concept = interop.read(tmp_path / str(number), base=tiny).concept
        assert list(concept.tokens) == ["<bear>", "<cat>"][: len(keys)]
        assert all(torch.equal(*pair) for pair in zip(concept.tokens.values(), rows, strict=False))
