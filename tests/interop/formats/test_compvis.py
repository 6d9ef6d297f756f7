"""`delta_epoch=….ckpt`, made by `foreign_files` from its documented layout."""

from pathlib import Path

import pytest
import torch

import foreign_files as foreign
from foreign_concepts import WIDTH, assert_changes, denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import ConceptFileError, OptionError


@pytest.mark.parametrize("flat", [False, True])
def test_a_compvis_checkpoint_is_read_and_its_tokens_are_numbered_or_named(
    tiny: Backbone, tmp_path: Path, flat: bool
) -> None:
    """The public converter writes the rows of several tokens as one vector."""
    before = denoiser(tiny)
    rows = torch.stack([foreign.row(WIDTH), foreign.row(WIDTH, seed=8)])
    path = foreign.compvis_checkpoint(tmp_path / "delta_epoch=000004.ckpt", before, rows.flatten() if flat else rows)
    imported = interop.read(path, base=tiny)
    assert imported.format == "compvis"
    assert_changes(imported.concept, before, exactly=False)
    assert list(imported.concept.tokens) == ["<new1>", "<new2>"]
    assert "called <new1>, <new2>" in imported.notes[0]
    named = interop.read(path, base=tiny, tokens=("<cat>", "<pot>"), categories=("cat", "wooden pot")).concept
    assert [subject.words for subject in named.subjects] == ["<cat> cat", "<pot> wooden pot"]
    assert torch.equal(named.tokens["<pot>"], rows[1])
    with pytest.raises(OptionError, match="1 token names are given, but the file has 2 tokens: <new1>, <new2>"):
        interop.read(path, base=tiny, tokens=("<cat>",))
    with pytest.raises(OptionError, match="3 categories are given for 2 subjects"):
        interop.read(path, base=tiny, categories=("a", "b", "c"))


def test_a_compressed_compvis_checkpoint_is_read_without_a_base(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.compvis_checkpoint(tmp_path / "b", before, foreign.row(WIDTH)[None], compressed=True)
    imported = interop.read(path)
    assert imported.format == "compvis"
    assert_changes(imported.concept, before)
    assert torch.equal(imported.concept.tokens["<new1>"], foreign.row(WIDTH))
    with imported.concept.applied(tiny):
        pass


def test_a_compressed_checkpoint_is_read_in_any_order_and_with_layers_missing(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.compvis_checkpoint(tmp_path / "b", before, foreign.row(WIDTH)[None], compressed=True)
    state = torch.load(path)["state_dict"]
    kept = [key for key in state if "put_blocks.3" in key]
    rank_0 = next(key for key in state if "middle_block" in key)
    state[rank_0] = {"u": torch.zeros(32, 0), "v": torch.zeros(0, WIDTH)}
    torch.save({"state_dict": {key: state[key] for key in ("embed", rank_0, *kept[::-1])}}, path)
    concept = interop.read(path, base=tiny).concept
    assert len(concept.deltas) == len(kept) == 4
    for name, change in concept.deltas.items():
        up, down = foreign.changes(before)[name.removeprefix("unet.").removesuffix(".weight")]
        assert torch.equal(change.full(), up @ down)
    assert torch.equal(concept.tokens["<new1>"], foreign.row(WIDTH))
    torch.save({"state_dict": {key: state[key] for key in ("embed", rank_0)}}, path)
    assert list(interop.read(path).concept.tokens) == ["<new1>"]


@pytest.mark.parametrize("rows", [torch.ones(1, 2 * WIDTH), torch.ones(2, WIDTH // 2), torch.tensor(1.0)])
def test_rows_of_another_width_are_refused_and_not_cut_into_tokens(
    tiny: Backbone, tmp_path: Path, rows: torch.Tensor
) -> None:
    path = foreign.compvis_checkpoint(tmp_path / "delta.ckpt", denoiser(tiny), rows)
    with pytest.raises(ConceptFileError, match=f"'embed' does not hold rows of {WIDTH} numbers"):
        interop.read(path, base=tiny)
