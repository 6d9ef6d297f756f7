import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import all_weights, assert_same
from moongate.backbone import Backbone, Fingerprint
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.errors import BaseMismatchError, ConceptFileError, OptionError, TokenError
from moongate.tensor_bytes import CHECKSUM

MakeConcept = Callable[..., Concept]


@pytest.fixture
def make_concept(tiny: Backbone) -> MakeConcept:
    def make(token: str = "<bear>", seed: int = 0, *, low_rank: bool = False) -> Concept:
        generator = torch.Generator().manual_seed(seed)
        deltas: dict[str, Dense | LowRank] = {}
        for name, weight in tiny.weights("cross-attention-kv").items():
            if low_rank:
                up, down = (torch.randn(*s, generator=generator) for s in ((weight.shape[0], 3), (3, weight.shape[1])))
                deltas[name] = LowRank(up=up, down=down)
            else:
                deltas[name] = Dense(delta=torch.randn(weight.shape, generator=generator))
        return Concept(
            deltas=deltas,
            tokens={token: torch.randn(16, generator=generator)},
            subjects=(SubjectRecord(category="bear", token=token, prompts=(f"photo of a {token} bear",)),),
            base=tiny.name,
            fingerprint=tiny.fingerprint,
            method="custom-diffusion",
            record={"steps": 3},
        )

    return make


def test_the_hash_of_equal_content_stays_the_same() -> None:
    """Concepts are found again by their hash, so a new version of Moongate must not change it."""
    concept = Concept(
        deltas={
            "a.weight": Dense(delta=torch.arange(6.0).reshape(2, 3)),
            "b.weight": LowRank(up=torch.ones(3, 1), down=torch.ones(1, 2)),
        },
        tokens={"<bear>": torch.arange(4.0)},
        token_widths=(1, 3),
        subjects=(
            SubjectRecord(category="bear", token="<bear>", prompts=("photo of a <bear> bear",)),
            SubjectRecord(category="dog"),
        ),
        base="pocket",
        fingerprint=Fingerprint(layout="ab", norms=(1.0, 2.5)),
        method="custom-diffusion",
        record={"steps": 3, "versions": {"torch": "2"}},
    )
    assert concept.hash == "70fbed7e71be"
    assert dataclasses.replace(concept, kept={"features": torch.ones(1, 4)}).hash == concept.hash
    again = Concept.from_json(concept.to_json(), deltas=concept.deltas, tokens=concept.tokens)
    assert again.hash == concept.hash
    assert again.subjects == concept.subjects


def test_what_holds_tensors_is_compared_by_identity(make_concept: MakeConcept) -> None:
    one, two = make_concept(), make_concept()
    assert one == one
    assert one != two
    assert Dense(delta=torch.ones(2)) != Dense(delta=torch.ones(2))
    assert len({one, two}) == 2


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_saved_concept_is_the_same_when_read(make_concept: MakeConcept, tmp_path: Path, low_rank: bool) -> None:
    concept = make_concept(low_rank=low_rank)
    path = concept.save(tmp_path / "bear.safetensors")
    again = Concept.load(path)
    assert again.hash == concept.hash
    assert (again.subjects, again.record, again.base) == (concept.subjects, concept.record, concept.base)
    assert again.fingerprint == concept.fingerprint
    for name, change in concept.deltas.items():
        assert torch.equal(change.full(), again.deltas[name].full())
    assert torch.equal(again.tokens["<bear>"], concept.tokens["<bear>"])


def test_the_file_is_plain_safetensors_and_the_same_bytes_each_time(make_concept: MakeConcept, tmp_path: Path) -> None:
    first = make_concept().save(tmp_path / "one.safetensors")
    second = make_concept().save(tmp_path / "two.safetensors")
    assert first.read_bytes() == second.read_bytes()
    tensors = load_file(first)
    assert "token.<bear>" in tensors
    assert sum(name.endswith("to_k.weight.delta") for name in tensors) > 0


def test_applying_changes_the_named_weights_alone_and_is_undone_bit_for_bit(
    tiny: Backbone, make_concept: MakeConcept
) -> None:
    concept = make_concept()
    before = {name: tensor.clone() for name, tensor in all_weights(tiny).items()}
    with concept.applied(tiny, strength=0.5):
        inside = all_weights(tiny)
        changed = {name for name in before if not torch.equal(before[name], inside[name])}
        assert changed == set(concept.deltas)
        for name, change in concept.deltas.items():
            torch.testing.assert_close(inside[name], before[name] + 0.5 * change.full())
    assert_same(before, all_weights(tiny))


def test_applying_is_undone_after_an_error_too(tiny: Backbone, make_concept: MakeConcept) -> None:
    before = {name: tensor.clone() for name, tensor in all_weights(tiny).items()}
    with pytest.raises(RuntimeError, match="stop"), make_concept().applied(tiny):
        raise RuntimeError("stop")
    assert_same(before, all_weights(tiny))
    assert tiny.known_tokens == ()


def test_two_concepts_add_up(tiny: Backbone, make_concept: MakeConcept) -> None:
    one, two = make_concept("<one>", 1), make_concept("<two>", 2)
    name = next(iter(one.deltas))
    start = tiny.parameter(name).clone()
    with one.applied(tiny), two.applied(tiny):
        expected = start + one.deltas[name].full() + two.deltas[name].full()
        torch.testing.assert_close(tiny.parameter(name).data, expected)
        assert tiny.known_tokens == ("<one>", "<two>")


def test_a_concept_for_another_base_is_refused(make_concept: MakeConcept, other_folder: Path, tiny: Backbone) -> None:
    other = Backbone.load(other_folder, device="cpu")
    with pytest.raises(BaseMismatchError, match="was made for another model than .*--model .*fingerprint"):  # noqa: SIM117
        with make_concept().applied(other):
            pass
    strange = {"unet.down_blocks.7.to_k.weight": Dense(delta=torch.zeros(2, 2))}
    with pytest.raises(BaseMismatchError, match="it has no weight 'unet.down_blocks.7.to_k.weight'"):
        Concept(
            deltas=strange, subjects=(), base="big", fingerprint=tiny.fingerprint, method="custom-diffusion"
        ).check_base(tiny)


def test_renaming_a_token_resolves_a_clash(tiny: Backbone, make_concept: MakeConcept) -> None:
    renamed = make_concept().renamed({"<bear>": "<other>"})
    assert renamed.subjects[0].prompts == ("photo of a <other> bear",)
    with make_concept().applied(tiny), renamed.applied(tiny):
        assert set(tiny.known_tokens) == {"<bear>", "<other>"}
    with pytest.raises(TokenError, match="no token '<cat>' to rename. It has: <bear>"):
        make_concept().renamed({"<cat>": "<dog>"})


@pytest.mark.parametrize("word", ["<bear>", r"<\q>", r"<\n>", r"<\1>", "<a.b>"])
def test_a_word_of_several_vectors_is_spelled_with_all_of_them_whatever_its_name(
    make_concept: MakeConcept, word: str
) -> None:
    subjects = (SubjectRecord(category="bear", token=word, more_tokens=("<b-2>", "<b-3>")), SubjectRecord(category="a"))
    concept = dataclasses.replace(make_concept(), subjects=subjects)
    spelled = f"a {word} <b-2> <b-3> bear and {word} <b-2> <b-3>"
    assert concept.spelled(f"a {word} bear and {word}") == spelled == concept.spelled(spelled)
    assert concept.spelled(f"a {word.upper()} bear and {word}") == spelled


def test_a_token_of_two_text_encoders_has_one_row_that_splits(make_concept: MakeConcept, tmp_path: Path) -> None:
    concept = dataclasses.replace(make_concept(), token_widths=(6, 10))
    again = Concept.load(concept.save(tmp_path / "two.safetensors"))
    assert again.token_widths == (6, 10)
    first, second = again.rows("<bear>")
    assert torch.equal(first, concept.tokens["<bear>"][:6])
    assert torch.equal(second, concept.tokens["<bear>"][6:])
    with pytest.raises(TokenError, match=r"'<bear>' holds 16 numbers, but the widths \(6, 9\).*sum to 15"):
        dataclasses.replace(concept, token_widths=(6, 9))


def test_a_file_of_one_text_encoder_says_nothing_of_widths(make_concept: MakeConcept, tmp_path: Path) -> None:
    """Files written before there were several encoders stay the same bytes."""
    path = dataclasses.replace(make_concept(), token_widths=(16,)).save(tmp_path / "one.safetensors")
    assert b"token_widths" not in path.read_bytes()
    assert path.read_bytes() == make_concept().save(tmp_path / "bare.safetensors").read_bytes()
    (row,) = Concept.load(path).rows("<bear>")
    assert torch.equal(row, make_concept().tokens["<bear>"])


def test_rows_of_another_width_are_refused_by_name(tiny: Backbone, make_concept: MakeConcept) -> None:
    narrow = dataclasses.replace(make_concept(), tokens={"<bear>": torch.zeros(15)})
    with pytest.raises(BaseMismatchError, match="'<bear>' has a row of 15 numbers, but .* reads rows of 16"):
        narrow.check_base(tiny)
    split = dataclasses.replace(make_concept(), token_widths=(6, 10))
    with pytest.raises(BaseMismatchError, match="reads rows of 16"):
        split.check_base(tiny)


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(make_concept: MakeConcept, tmp_path: Path) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    before = path.read_bytes()
    with pytest.raises(OptionError, match=r"bear.safetensors exists already.*--overwrite"):
        make_concept(seed=1).save(path)
    assert path.read_bytes() == before
    make_concept(seed=1).save(path, overwrite=True)
    assert path.read_bytes() != before


def test_a_full_disk_leaves_the_old_file(
    make_concept: MakeConcept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OptionError, match="could not be written .No space left on device.; an earlier file"):
        make_concept(seed=1).save(path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_concept_is_not_taken_for_a_pickle_whatever_the_length_of_its_header(
    make_concept: MakeConcept, tmp_path: Path
) -> None:
    """The length of a header may begin with the byte that pickles begin with."""
    first_bytes = set()
    for padding in range(0, 256, 8):
        concept = dataclasses.replace(make_concept(), record={"note": "x" * padding})
        path = concept.save(tmp_path / f"{padding}.safetensors")
        first_bytes.add(path.read_bytes()[:1])
        assert Concept.load(path).hash == concept.hash
    assert b"\x80" in first_bytes


def test_files_of_other_kinds_are_refused_each_with_its_reason(make_concept: MakeConcept, tmp_path: Path) -> None:
    good = make_concept().save(tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(good[: len(good) // 2])
    (tmp_path / "noise").write_bytes(b"\x00\x01\x02" * 100)
    (tmp_path / "empty").write_bytes(b"")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.bin")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    for name, message in {
        "missing": "There is no concept file",
        "cut": "damaged or not a safetensors file",
        "noise": "damaged or not a safetensors file",
        "empty": "damaged or not a safetensors file",
        "pickle.bin": "is a pickle .* may run code",
        "old.ckpt": "is a pickle .* may run code",
        "lora.safetensors": "not a Moongate concept",
    }.items():
        with pytest.raises(ConceptFileError, match=message):
            Concept.load(tmp_path / name)


def test_renaming_reaches_a_token_before_a_comma(make_concept: MakeConcept) -> None:
    concept = make_concept("<new1>")
    prompts = ("a <new1>, which is a bear", "<new1>'s bear and <new11>")
    concept = dataclasses.replace(concept, subjects=(dataclasses.replace(concept.subjects[0], prompts=prompts),))
    renamed = concept.renamed({"<new1>": "<bear>"})
    assert renamed.subjects[0].prompts == ("a <bear>, which is a bear", "<bear>'s bear and <new11>")
    assert renamed.subjects[0].words == "<bear> bear"
    assert renamed.renamed({}) is renamed


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("version", None),
        ("version", "one"),
        ("concept", None),
        ("concept", "{torn"),
        ("concept", "[]"),
        ("concept", "{}"),
    ],
)
def test_a_header_that_is_broken_is_named(
    make_concept: MakeConcept, tmp_path: Path, entry: str, value: str | None
) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), entry: value}
    save_file(load_file(path), path, metadata={key: text for key, text in header.items() if text is not None})
    with pytest.raises(ConceptFileError, match=r"bear.safetensors lacks a part that its header promises.*again"):
        Concept.load(path)


def test_a_file_of_a_later_version_is_refused_with_what_to_do(make_concept: MakeConcept, tmp_path: Path) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    later = str(int(header["version"]) + 1)
    save_file(load_file(path), path, metadata=header | {"version": later})
    with pytest.raises(ConceptFileError, match=rf"has format version {later}; this Moongate reads up to .* Upgrade"):
        Concept.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_before_they_spoil_pictures(
    make_concept: MakeConcept, tmp_path: Path, value: float
) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    next(iter(tensors.values()))[0] = value
    save_file(tensors, path, metadata=header)
    with pytest.raises(ConceptFileError, match=r"bear.safetensors holds numbers that are not finite.*Train"):
        Concept.load(path)


def test_a_path_that_cannot_be_written_is_named(make_concept: MakeConcept, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OptionError, match=r"file/bear.safetensors cannot be written, because .*file is not a folder"):
        make_concept().save(tmp_path / "file" / "bear.safetensors")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "x"},
        {"concept": "{"},
        {"concept": "[]"},
        *({"concept": part} for part in ("base", "fingerprint", "subjects", "tokens", "record")),
        {"up": torch.ones(3)},
    ],
)
def test_a_concept_with_a_broken_part_is_named(
    changed: dict[str, object], make_concept: MakeConcept, tmp_path: Path
) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors, told = load_file(path), json.loads(header["concept"])
    if (part := changed.get("concept")) in told:
        changed = {"concept": json.dumps(told | {part: 3})}
    if "up" in changed:
        name = next(name for name in tensors if name.endswith(".delta")).removesuffix(".delta")
        tensors |= {f"{name}.up": changed.pop("up"), f"{name}.down": torch.ones(2, 2)}
    save_file(tensors, path, metadata=header | changed)
    with pytest.raises(ConceptFileError, match="lacks a part that its header promises"):
        Concept.load(path)


@pytest.mark.parametrize(("low_rank", "end", "renamed"), [(False, ".delta", ".dlta"), (True, ".up", ".upper")])
def test_a_tensor_that_is_no_change_is_named(
    make_concept: MakeConcept, tmp_path: Path, low_rank: bool, end: str, renamed: str
) -> None:
    """A concept without some of its changes would draw another subject."""
    path = make_concept(low_rank=low_rank).save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = {key: text for key, text in file.metadata().items() if key != CHECKSUM}
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(end))
    for changed in ({name.replace(end, renamed): tensors.pop(name)}, {}):
        save_file(tensors | changed, path, metadata=header)
        if changed or low_rank:
            with pytest.raises(ConceptFileError, match="bear.safetensors lacks .*is no change of a weight"):
                Concept.load(path)


def test_a_weight_that_is_changed_twice_is_named(make_concept: MakeConcept, tmp_path: Path) -> None:
    path = make_concept().save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = {key: text for key, text in file.metadata().items() if key != CHECKSUM}
    tensors = load_file(path)
    key, delta = next((key, value) for key, value in tensors.items() if key.endswith(".delta"))
    name = key.removesuffix(".delta")
    factors = {f"{name}.up": torch.ones(len(delta), 1), f"{name}.down": torch.ones(1, delta.shape[1])}
    save_file(tensors | factors, path, metadata=header)
    with pytest.raises(ConceptFileError, match="or its weight is changed twice"):
        Concept.load(path)


@pytest.mark.parametrize("name", ["unet.forward", "unet.config", "unet.conv_in", "text_encoder.dtype", "unet."])
def test_what_is_no_weight_of_the_model_is_not_taken_for_one(
    tiny: Backbone, make_concept: MakeConcept, name: str
) -> None:
    concept = dataclasses.replace(make_concept(), deltas={name: Dense(delta=torch.ones(3))})
    with pytest.raises(BaseMismatchError, match=f"has no weight '{name}'"):
        concept.check_base(tiny)


def test_numbers_of_another_precision_are_read_as_float32(make_concept: MakeConcept, tmp_path: Path) -> None:
    path = make_concept(low_rank=True).save(tmp_path / "bear.safetensors")
    with safe_open(path, framework="pt") as file:
        header = {key: text for key, text in file.metadata().items() if key != CHECKSUM}
    mixed = {name: tensor.half() if name.endswith(".up") else tensor for name, tensor in load_file(path).items()}
    save_file(mixed, path, metadata=header)
    for name, change in Concept.load(path).deltas.items():
        assert change.full().dtype == torch.float32
        assert torch.equal(change.full(), mixed[f"{name}.up"].float() @ mixed[f"{name}.down"])
