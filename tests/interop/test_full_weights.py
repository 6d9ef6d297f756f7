"""Full weights, and the base that they need."""

from pathlib import Path

import pytest
import torch

import foreign_files as foreign
from foreign_concepts import denoiser
from making import invented, make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.errors import BaseMismatchError, ConceptFileError, OptionError
from moongate.interop import WriteOptions
from moongate.merging import merge


def test_full_weights_need_the_base_in_float32(tiny: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    path = foreign.adobe(tmp_path / "delta.bin", denoiser(tiny), {})
    with pytest.raises(OptionError, match=r"stores full weights.*--model"):
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
    with pytest.raises(BaseMismatchError, match=r"by 1\d\d% and have nothing in common.*Name the base"):
        interop.read(path, base=other)
    content = torch.load(path)
    names = list(content["unet"])
    content["unet"][names[0]] = torch.ones(3, 5)
    content["unet"]["down_blocks.7.attn2.to_k.weight"] = torch.ones(2, 2)
    torch.save(content, path)
    with pytest.raises(BaseMismatchError) as refused:
        interop.read(path, base=tiny)
    shape = tuple(tiny.parameter(f"unet.{names[0]}").shape)
    assert f"its 'unet.{names[0]}' has the shape {shape}, not (3, 5)" in str(refused.value)
    assert "no weight 'unet.down_blocks.7.attn2.to_k.weight'" in str(refused.value)


@pytest.mark.parametrize("to", ["adobe", "compvis", "diffusers"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_merged_concept_is_read_from_full_weights_however_far_it_moves_them(
    each: Backbone, tmp_path: Path, to: str, count: int
) -> None:
    if to == "compvis" and len(each.token_widths) > 1:
        return  # has no such files
    subjects = (("<bear>", "bear"), ("<cat>", "dog"))
    concepts = [invented(each, subject, seed=seed) for seed, subject in enumerate(subjects[:count])]
    merged = merge(each, concepts).concept
    moved = max(float(c.full().norm() / each.parameter(n).norm()) for n, c in merged.deltas.items())
    assert moved > 0.5
    interop.write(merged, tmp_path / "out", to=to, options=WriteOptions(base=each))
    again = interop.read(tmp_path / "out", base=each).concept
    for name, change in merged.deltas.items():
        assert torch.allclose(again.deltas[name].full(), change.full(), atol=1e-5 * moved)


def test_a_full_rank_change_is_read_with_a_note_when_nothing_shows_its_base(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    path = foreign.adobe(tmp_path / "delta.bin", before, {})
    content = torch.load(path)
    generator = torch.Generator().manual_seed(0)
    for name in content["unet"]:
        noise = torch.randn(before[name].shape, generator=generator)
        content["unet"][name] = before[name] + 0.8 * before[name].norm() / noise.norm() * noise
    torch.save(content, path)
    imported = interop.read(path, base=tiny)
    (note,) = imported.notes
    assert "delta.bin differ from those of" in note
    assert "by 80%, and nothing in the file shows" in note
    name = next(iter(content["unet"]))  # one matrix that is equal is evidence enough
    content["unet"][name] = before[name]
    torch.save(content, path)
    assert interop.read(path, base=tiny).notes == ()


def test_the_fingerprint_in_a_header_decides_about_the_base(tiny: Backbone, other_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    interop.write(make_concept(tiny, low_rank=False), folder, to="diffusers", options=WriteOptions(base=tiny))
    with pytest.raises(BaseMismatchError, match="fingerprint"):
        interop.read(folder, base=Backbone.load(other_folder, device="cpu"))


def test_full_weights_that_are_not_finite_are_named(tiny: Backbone, tmp_path: Path) -> None:
    path = foreign.adobe(tmp_path / "delta.bin", denoiser(tiny), {})
    content = torch.load(path)
    name = next(iter(content["unet"]))
    content["unet"][name] = content["unet"][name].detach() * float("nan")
    torch.save(content, path)
    with pytest.raises(ConceptFileError, match=rf"unet\.{name}.*not finite"):
        interop.read(path, base=tiny)
