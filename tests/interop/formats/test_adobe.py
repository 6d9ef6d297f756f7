"""`delta.bin`, made by `foreign_files` from its documented layout."""

import dataclasses
from pathlib import Path

import pytest
import torch

import foreign_files as foreign
from foreign_concepts import WIDTH, assert_changes, denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import ConceptFileError
from moongate.interop import WriteOptions


def test_delta_bin_is_read(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.adobe(tmp_path / "any name", before, {"<new1>": foreign.row(WIDTH)})
    imported = interop.read(path, base=tiny)
    assert imported.format == "adobe"
    assert_changes(imported.concept, before, exactly=False)
    assert torch.equal(imported.concept.tokens["<new1>"], foreign.row(WIDTH))
    assert not imported.concept.tokens["<new1>"].requires_grad
    assert imported.concept.fingerprint == tiny.fingerprint


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


def test_a_compressed_delta_bin_is_read_without_a_base(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    imported = interop.read(foreign.adobe_compressed(tmp_path / "a", before, {"<new1>": foreign.row(WIDTH)}))
    assert imported.format == "adobe"
    assert_changes(imported.concept, before)
    assert torch.equal(imported.concept.tokens["<new1>"], foreign.row(WIDTH))
    assert imported.concept.base == ""
    with imported.concept.applied(tiny):
        pass


def test_a_layer_compressed_to_rank_0_does_not_change(tiny: Backbone, tmp_path: Path) -> None:
    """The public compression writes such layers."""
    path = foreign.adobe_compressed(tmp_path / "a", denoiser(tiny), {})
    content = torch.load(path)
    name, pair = next(iter(content["unet"].items()))
    content["unet"][name] = {"u": pair["u"][:, :0], "v": pair["v"][:0]}
    torch.save(content, path)
    assert f"unet.{name}" not in interop.read(path, base=tiny).concept.deltas


def test_a_compressed_delta_bin_is_read_in_any_order_and_with_layers_missing(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.adobe_compressed(tmp_path / "a", before, {"<new1>": foreign.row(WIDTH)})
    content = torch.load(path)
    expected = foreign.changes(before)
    kept = [f"{module}.weight" for module in list(expected)[::-2]]
    unet = {name: dict(reversed(content["unet"][name].items())) for name in kept}
    unet[kept[0]] = before[kept[0]]  # one layer that is not compressed
    torch.save({"modifier_token": content["modifier_token"], "unet": unet}, path)
    concept = interop.read(path, base=tiny).concept
    assert set(concept.deltas) == {f"unet.{name}" for name in kept[1:]}
    for name in kept[1:]:
        up, down = expected[name.removesuffix(".weight")]
        assert torch.equal(concept.deltas[f"unet.{name}"].full(), up @ down)
    torch.save({"unet": {kept[1]: unet[kept[1]]}}, path)  # without tokens
    assert set(interop.read(path).concept.deltas) == {f"unet.{kept[1]}"}


def test_the_names_and_rows_of_tokens_are_read_as_those_of_embeddings(tiny: Backbone, tmp_path: Path) -> None:
    """Names that would be alike keep their rows, a number is a name, and several rows are several tokens."""
    first, second, third, fourth = (foreign.row(WIDTH, seed=seed) for seed in range(4))
    tokens = {"<a b>": first, "<a-b>": second, 5: torch.stack([third, fourth])}
    imported = interop.read(foreign.adobe_compressed(tmp_path / "a", denoiser(tiny), tokens), base=tiny)
    rows = {"<a-b>": first, "<a-b_2>": second, "<5>": third, "<5-2>": fourth}
    assert list(imported.concept.tokens) == list(rows)
    assert all(torch.equal(imported.concept.tokens[token], row) for token, row in rows.items())
    assert any("'<a-b>' is read as <a-b_2>" in note for note in imported.notes)
    path = foreign.adobe_compressed(tmp_path / "b", denoiser(tiny), {"<a>": [first] * 3})
    with pytest.raises(ConceptFileError, match="'<a>' holds 3 tensors; there are two text encoders"):
        interop.read(path)


@pytest.mark.parametrize("wrapper", ["unet.", "module."])
def test_the_names_of_a_wrapped_model_are_read(tiny: Backbone, tmp_path: Path, wrapper: str) -> None:
    before = denoiser(tiny)
    path = foreign.adobe(tmp_path / "delta.bin", before, {"<new1>": foreign.row(WIDTH)})
    content = torch.load(path)
    state = {
        f"module.text_model.{k}": v.detach() + 0.5 for k, v in tiny.text_encoder.named_parameters() if "final" in k
    }
    unet = {f"{wrapper}{key}": value for key, value in content["unet"].items()}
    torch.save({**content, "unet": unet, "text_encoder": state}, path)
    concept = interop.read(path, base=tiny).concept
    assert sum(name.startswith("text_encoder.") for name in concept.deltas) == len(state) == 2
    denoiser_only = {name: change for name, change in concept.deltas.items() if name.startswith("unet.")}
    assert_changes(dataclasses.replace(concept, deltas=denoiser_only), before, exactly=False)


@pytest.mark.parametrize("unet", [{"unet": {}}, {}])
def test_tokens_alone_are_read(tiny: Backbone, tmp_path: Path, unet: dict[str, object]) -> None:
    torch.save({**unet, "modifier_token": {"<new1>": foreign.row(WIDTH)}}, tmp_path / "delta.bin")
    concept = interop.read(tmp_path / "delta.bin", base=tiny).concept
    assert torch.equal(concept.tokens["<new1>"], foreign.row(WIDTH))
    assert not concept.deltas
