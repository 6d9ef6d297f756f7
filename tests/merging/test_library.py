import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from making import invented
from moongate.backbone import Backbone, Fingerprint
from moongate.concept import Concept, SubjectRecord
from moongate.errors import OptionError, TokenError
from moongate.merging import library
from moongate.merging.library import INDEX, Library, merge_file


@pytest.fixture
def folder(tmp_path: Path, pair: Sequence[Concept]) -> Path:
    for name, concept in zip(("bear", "cat"), pair, strict=True):
        concept.save(tmp_path / "library" / f"{name}.safetensors")
    return tmp_path / "library"


def names(prompts: Sequence[str], folder: Path) -> list[str]:
    return [entry.file for entry in Library.open(folder).named_in(prompts)]


def test_a_prompt_takes_the_files_of_the_tokens_that_it_names(folder: Path) -> None:
    assert names(["a <two> cat"], folder) == ["cat.safetensors"]
    assert names(["a <TWO> cat", "a <one> bear on the beach"], folder) == ["bear.safetensors", "cat.safetensors"]
    with pytest.raises(TokenError, match=r"<rex> in .* is in no file of .*: <one>; <two>"):
        names(["a <rex> dog on a <one> bear"], folder)
    with pytest.raises(TokenError, match="No prompt names a token"):
        names(["a dog"], folder)


def test_brackets_end_a_token_as_they_do_for_the_tokenizer(folder: Path, tiny: Backbone) -> None:
    invented(tiny, ("<a.b*c>", "dog")).save(folder / "dog.safetensors")
    invented(tiny, ("sks", "dog")).save(folder / "plain.safetensors")
    assert names(["two <one>s, a <one> bear"], folder) == ["bear.safetensors"]
    assert names(["<one><two>"], folder) == ["bear.safetensors", "cat.safetensors"]
    assert names(["a <a.b*c> dog and a masks <one>"], folder) == ["bear.safetensors", "dog.safetensors"]
    assert names(["a sks dog"], folder) == ["plain.safetensors"]
    with pytest.raises(TokenError, match="<sks> in"):
        names(["a <sks> dog"], folder)


def test_a_prompt_may_name_all_tokens_of_a_word_of_several_vectors(folder: Path, pair: Sequence[Concept]) -> None:
    subjects = (SubjectRecord(category="dog", token="<w>", more_tokens=("<w-2>",)),)
    rows = {token: pair[0].tokens["<one>"].clone() for token in ("<w>", "<w-2>")}
    replace(pair[0], tokens=rows, subjects=subjects).save(folder / "dog.safetensors")
    assert names(["a <w> dog"], folder) == names(["a <w> <w-2> dog"], folder) == ["dog.safetensors"]


def test_an_index_of_an_earlier_version_is_made_anew(folder: Path) -> None:
    Library.open(folder)
    index = json.loads((folder / INDEX).read_text())
    for entry in index["files"]:
        entry["tokens"] = []
    (folder / INDEX).write_text(json.dumps({**index, "version": library.VERSION - 1}))
    assert names(["a <two> cat"], folder) == ["cat.safetensors"]


def test_a_token_in_two_files_is_named_when_a_prompt_needs_it(folder: Path, tiny: Backbone) -> None:
    invented(tiny, ("<ONE>", "dog")).save(folder / "dog.safetensors")
    assert names(["a <two> cat"], folder) == ["cat.safetensors"]
    with pytest.raises(OptionError, match=r"<one> is in several files.*bear.safetensors; dog.safetensors"):
        names(["a <one> bear"], folder)


def test_only_files_that_changed_are_read_again(folder: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def texts(path: Path) -> dict[str, str]:
        read.append(path.name)
        return original(path)

    original = library.read_texts
    monkeypatch.setattr(library, "read_texts", texts)
    Library.open(folder)
    Library.open(folder)
    assert read == ["bear.safetensors", "cat.safetensors"]
    (folder / "bear.safetensors").unlink()
    invented(tiny, ("<three>", "dog"), seed=3).save(folder / "cat.safetensors", overwrite=True)
    assert names(["a <three> dog"], folder) == ["cat.safetensors"]
    assert read[2:] == ["cat.safetensors"]
    for damaged in (json.dumps({"version": library.VERSION, "files": [{"file": 3}]}), "[" * 100_000):
        (folder / INDEX).write_text(damaged)
        assert names(["a <three> dog"], folder) == ["cat.safetensors"]


def test_a_broken_file_is_named_and_skipped(folder: Path) -> None:
    whole = (folder / "cat.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    (folder / "none.safetensors").write_bytes(b"")
    found = Library.open(folder)
    assert [line.split(" is skipped")[0] for line in found.broken] == ["cut.safetensors", "none.safetensors"]
    assert [entry.file for entry in found.named_in(["a <two> cat"])] == ["cat.safetensors"]
    with pytest.raises(OptionError, match="no folder of concepts"):
        Library.open(folder / "cat.safetensors")


def test_a_link_to_no_file_and_a_folder_with_the_name_of_a_file_are_named_and_skipped(folder: Path) -> None:
    (folder / "gone.safetensors").symlink_to(folder / "nothing")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "nest.safetensors").mkdir()
    found = Library.open(folder)
    assert [line.split(" is skipped")[0] for line in found.broken] == [
        *("gone.safetensors", "loop.safetensors", "nest.safetensors")
    ]
    assert [entry.file for entry in found.named_in(["a <two> cat"])] == ["cat.safetensors"]


def test_a_file_whose_header_no_concept_can_have_is_named_and_skipped(folder: Path) -> None:
    with safe_open(folder / "bear.safetensors", framework="pt") as file:
        header = file.metadata()
    facts = json.loads(header["concept"])
    for number, tokens in enumerate(("<odd>", ["<odd>"] * 2, [f"<{index}>" for index in range(2000)])):
        told = header | {"concept": json.dumps(facts | {"tokens": tokens})}
        save_file({}, folder / f"odd-{number}.safetensors", metadata=told)
    assert len(Library.open(folder).broken) == 3
    assert names(["a <two> cat"], folder) == ["cat.safetensors"]


def test_a_merge_is_kept_by_its_base_and_the_content_of_its_files(folder: Path, tiny: Backbone) -> None:
    def path(base: Fingerprint = tiny.fingerprint) -> Path:
        return merge_file(Library.open(folder).named_in(["a <one> bear and a <two> cat"]), base, folder)

    first = path()
    (folder / "bear.safetensors").touch()
    assert path() == first
    assert path(replace(tiny.fingerprint, norms=(1.0,))) != first
    invented(tiny, ("<one>", "bear"), seed=9).save(folder / "bear.safetensors", overwrite=True)
    assert path() != first
