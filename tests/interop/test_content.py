"""Opening files without running code."""

import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foreign_files as foreign
from foreign_concepts import WIDTH, denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.errors import ConceptFileError, MoongateError
from moongate.interop.content import open_content
from moongate.merging.library import Library
from moongate.summary import read_summary

NONSENSE = (None, 3, "x", [], {}, torch.tensor(1.0), torch.tensor(7), torch.ones(0), torch.ones(3), torch.ones(2, 0))


def test_nonsense_in_a_file_is_an_error_of_ours(tiny: Backbone, tmp_path: Path) -> None:
    """Missing values, values of other types, empty tensors, in place of each value of each format."""
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
                original = holder[name]
                for holder[name] in NONSENSE:
                    torch.save(content, tmp_path / "try")
                    with contextlib.suppress(MoongateError):
                        interop.read(tmp_path / "try", base=tiny)
                holder[name] = original
        torch.save(content, tmp_path / "try")
        assert interop.read(tmp_path / "try", base=tiny).concept.deltas or file.name == "d"


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
        (b"hello, this is not a file of weights", "refused|neither"),
        (b"\x10\0\0\0\0\0\0\0{ this is cut", "is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConceptFileError, match=message):
        interop.read(tmp_path / "file")


@pytest.mark.parametrize("name", ["junk.bin", "junk.safetensors"])
def test_a_file_of_a_few_stray_bytes_is_named(tmp_path: Path, name: str) -> None:
    """PyTorch takes "j" for the beginning of a number, and what is called .safetensors for that."""
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(ConceptFileError, match=f"{name} is neither a safetensors file nor a whole pickle"):
        interop.recognize(tmp_path / name)


def test_a_name_longer_than_any_is_an_error_of_ours() -> None:
    for read in (interop.read, Concept.load):
        with pytest.raises(ConceptFileError, match="There is no concept file xxx"):
            read("x" * 300)


def test_a_folder_called_like_a_file_of_weights_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.bin").mkdir()
    with pytest.raises(ConceptFileError, match="holds no file of weights"):
        open_content(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
            "is a pointer of Git LFS.*`git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html><head>", "is a web page. Download the file itself"),
    ],
)
def test_what_a_download_leaves_in_place_of_weights_is_called_by_its_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bear.safetensors").write_bytes(content)
    with pytest.raises(ConceptFileError, match=message):
        interop.read(tmp_path / "bear.safetensors")


def test_files_of_a_folder_are_read_whatever_the_capitals_of_their_endings(tiny: Backbone, tmp_path: Path) -> None:
    before = denoiser(tiny)
    foreign.lora(tmp_path / "LORA.SAFETENSORS", before, style="peft")
    foreign.a1111(tmp_path / "bear.PT", foreign.row(WIDTH)[None])
    concept = interop.read(tmp_path, base=tiny).concept
    assert len(concept.deltas) == 14
    assert list(concept.tokens) == ["<bear>"]


def test_an_error_about_one_of_several_files_names_it(tiny: Backbone, tmp_path: Path) -> None:
    foreign.lora(tmp_path / "lora.safetensors", denoiser(tiny), style="peft")
    torch.save({"<bear>": torch.ones(WIDTH, dtype=torch.int64)}, tmp_path / "bear.pt")
    with pytest.raises(ConceptFileError, match="bear.pt cannot be read. The row of a token is torch.int64"):
        interop.read(tmp_path, base=tiny)


def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bear.safetensors")
    assert read_summary(tmp_path / "bear.safetensors") is None
    (entry,) = Library.open(tmp_path).entries
    assert "is not a file" in entry.error
    with pytest.raises(ConceptFileError, match="There is no concept file"):
        interop.read(tmp_path / "bear.safetensors")


def test_a_lora_and_an_embedding_of_one_name_are_both_read(tiny: Backbone, tmp_path: Path) -> None:
    foreign.lora(tmp_path / "bear.safetensors", denoiser(tiny), style="kohya")
    foreign.a1111(tmp_path / "bear.pt", foreign.row(WIDTH)[None])
    concept = interop.read(tmp_path, base=tiny).concept
    assert (len(concept.deltas), list(concept.tokens)) == (14, ["<bear>"])
