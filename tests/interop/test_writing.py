"""Concepts in every format, written and read again."""

import dataclasses
from pathlib import Path

import pytest
import torch

from making import invented, make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.compression import compress
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.errors import OptionError
from moongate.interop import FORMATS, WriteOptions
from moongate.merging import merge


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
        with pytest.raises(OptionError, match="--model"):
            interop.read(out)
    imported = interop.read(out, base=each if form.needs_base else None)
    again = imported.concept
    assert imported.format == name
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


def test_changes_that_a_format_cannot_hold_are_named(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    bias = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"
    query = bias.replace("to_out.0.bias", "to_q.weight")
    more = {bias: Dense(delta=torch.ones(32)), query: Dense(delta=0.01 * torch.ones(32, 32))}
    face = dataclasses.replace(concept, deltas={**concept.deltas, **more})
    options = WriteOptions(base=tiny)
    assert bias in interop.write(face, tmp_path / "lora", to="lora", options=options).notes[0]
    assert "queries" in interop.read(tmp_path / "lora").notes[0]
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


def test_what_a_killed_command_left_does_not_fill_a_folder(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / ".moongate-1.partial").write_bytes(b"the beginning of a file")
    interop.write(make_concept(tiny), tmp_path, to="kohya")
    assert (tmp_path / ".moongate-1.partial").exists()


def test_an_earlier_concept_in_a_folder_that_is_written_again_is_pointed_out(tiny: Backbone, tmp_path: Path) -> None:
    interop.write(make_concept(tiny, tokens=("<cat>",)), tmp_path / "lora", to="lora")
    written = interop.write(make_concept(tiny), tmp_path / "lora", to="lora", overwrite=True)
    assert (
        "also holds <cat>.safetensors, which is not of this concept but is read with it. Remove it." in written.notes[0]
    )
    (tmp_path / "lora" / "<cat>.safetensors").unlink()
    assert list(interop.read(tmp_path / "lora").concept.tokens) == ["<bear>"]


def test_a_token_cannot_lead_out_of_the_folder(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny, tokens=("<../../bear>",))
    for name in ("lora", "embedding", "diffusers"):
        written = interop.write(concept, tmp_path / name, to=name, options=WriteOptions(base=tiny))
        assert {file.parent for file in written.files} == {tmp_path / name}
        assert list(interop.read(tmp_path / name, base=tiny).concept.tokens) == ["<../../bear>"]


def test_a_folder_named_like_a_token_gets_the_lora_and_the_embedding(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    written = interop.write(concept, tmp_path / "bear", to="kohya")
    assert [file.name for file in written.files] == ["bear-lora.safetensors", "bear.safetensors"]
    assert interop.read(tmp_path / "bear").concept.hash == concept.hash


@pytest.mark.parametrize("name", ["embedding", "kohya", "lora", "diffusers"])
@pytest.mark.parametrize("tokens", [("<a:b>", "<a*b>"), ("<Rex>", "<rex>"), ("<x>", "<x-lora>", "<X-LORA>")])
def test_tokens_whose_file_names_would_be_alike_are_separate_files(
    tiny: Backbone, tmp_path: Path, name: str, tokens: tuple[str, ...]
) -> None:
    concept = make_concept(tiny, tokens=tokens)
    written = interop.write(concept, tmp_path / "x", to=name, options=WriteOptions(base=tiny))
    names = [file.name.lower() for file in written.files]
    assert len(set(names)) == len(names)
    again = interop.read(tmp_path / "x", base=tiny).concept
    assert set(again.tokens) == set(tokens)
    assert all(torch.equal(again.tokens[token], concept.tokens[token]) for token in tokens)
    if name in ("embedding", "kohya") and tokens[0] != "<x>":
        assert any("is called by its file name" in note for note in written.notes)


@pytest.mark.parametrize("name", ["embedding", "lora", "diffusers"])
def test_the_name_of_a_file_is_refused_where_a_folder_is_written(tiny: Backbone, tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"the name of a file. Give --out .*bear\.$"):
        interop.write(make_concept(tiny), tmp_path / "bear.safetensors", to=name, options=WriteOptions(base=tiny))
    assert not any(tmp_path.iterdir())


KINDS: dict[str, dict[str, Concept]] = {}


def kinds(backbone: Backbone) -> dict[str, Concept]:
    """A concept of each kind that Moongate makes, made once for each model."""
    if backbone.name not in KINDS:
        trained = invented(backbone, ("<bear>", "bear"))
        other = invented(backbone, ("<cat>", "dog"), seed=1)
        two = make_concept(backbone, tokens=("<bear>", "<chair>"))
        vectors = SubjectRecord(category="bear", token="<bear>", more_tokens=("<chair>",))
        generator = torch.Generator().manual_seed(0)
        whole = {
            f"unet.{name}": Dense(delta=0.01 * torch.randn(weight.shape, generator=generator))
            for name, weight in backbone.unet.named_parameters()
        }
        KINDS[backbone.name] = {
            "trained": trained,
            "cleaned": merge(backbone, [trained]).concept,
            "merged": merge(backbone, [trained, other]).concept,
            "compressed": compress(trained, energy=0.6).concept,
            "textual inversion": dataclasses.replace(trained, deltas={}),
            "two tokens": two,
            "several vectors": dataclasses.replace(two, subjects=(vectors,)),
            "whole denoiser": dataclasses.replace(trained, deltas=whole),
        }
    return KINDS[backbone.name]


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_concept_is_read_again_as_far_as_the_format_keeps_it(
    each: Backbone, tmp_path: Path, name: str
) -> None:
    """Rows of tokens bit for bit; of the changes of keys and values what `keeps_changes` promises."""
    form = FORMATS[name]
    if name == "compvis" and len(each.token_widths) > 1:
        return  # has no such files
    keys_and_values = each.weights("cross-attention-kv")
    base = each if form.needs_base else None
    for kind, concept in kinds(each).items():
        out = tmp_path / kind
        if kind == "textual inversion" and form.keeps_changes == "factors":
            with pytest.raises(OptionError, match="changes no weights"):
                interop.write(concept, out, to=name)
            continue
        interop.write(concept, out, to=name, options=WriteOptions(base=base))
        again = interop.read(out, base=each).concept
        for ours, theirs in zip(concept.tokens, again.tokens, strict=True):
            assert torch.equal(concept.tokens[ours], again.tokens[theirs]), kind
        if form.keeps_provenance:
            assert [subject.words for subject in again.subjects] == [subject.words for subject in concept.subjects], (
                kind
            )
        if form.keeps_changes == "no":
            assert not again.deltas, kind
            continue
        for layer, weight in keys_and_values.items():
            before = concept.deltas[layer].full() if layer in concept.deltas else torch.zeros_like(weight)
            after = again.deltas[layer].full() if layer in again.deltas else torch.zeros_like(weight)
            is_dense = isinstance(concept.deltas.get(layer), Dense)
            if form.keeps_changes == "rounded":
                bound = 2 * torch.finfo(torch.float32).eps * (weight.abs() + before.abs())
                assert ((after - before).abs() <= bound).all(), (kind, layer)
            elif form.keeps_changes == "factors" and is_dense:  # of full rank, which is less than the default rank
                assert torch.allclose(after, before, atol=1e-5), (kind, layer)
            else:
                assert torch.equal(after, before), (kind, layer)


def test_files_in_the_current_folder_are_named_after_it(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    written = interop.write(make_concept(tiny), ".", to="kohya")
    assert [file.name for file in written.files] == ["mine.safetensors", "bear.safetensors"]
