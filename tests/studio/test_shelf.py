import json
import os
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.files import exclusive
from moongate.studio.places import Places
from moongate.studio.shelf import cards, delete, deleted, free_name, rename, restore, run_of
from studio_making import make_concept, make_drawing


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "watched").mkdir()
    return Places.open(tmp_path / "studio", (tmp_path / "watched",))


def test_a_card_shows_what_the_file_says(places: Places) -> None:
    concept = make_concept(places.concepts / "bear.safetensors")
    (card,) = cards(places)
    assert (card.name, card.words, card.model, card.method) == (
        "bear",
        ("<bear> teddy bear",),
        "tiny",
        "custom-diffusion",
    )
    assert (card.hash, card.steps, card.is_own) == (concept.hash, 250, True)
    assert card.bytes == card.file.stat().st_size
    assert not card.problem


def test_the_thumbnail_is_the_newest_picture_of_the_concept_alone(places: Places) -> None:
    concept = make_concept(places.concepts / "bear.safetensors")
    other = make_concept(places.concepts / "dog.safetensors", token="<rex>", category="dog", value=2.0)
    old = make_drawing(places.gallery / "a" / "old.png", "a <bear> teddy bear", concept=concept)
    new = make_drawing(places.gallery / "a" / "new.png", "a <bear> teddy bear", concept=concept)
    os.utime(old, (1, 1))
    assert {card.name: card.thumbnail for card in cards(places)} == {"bear": new, "dog": None}
    assert other.hash != concept.hash


def test_without_pictures_the_thumbnail_is_the_last_one_of_the_run(places: Places) -> None:
    make_concept(places.concepts / "bear.safetensors")
    run = places.concepts / "bear.run"
    lines = [("taught", 0, 0), ("validation", 0, 0), ("validation", 50, 1), ("validation", 50, 0)]
    for part, step, seed in lines:
        make_drawing(run / "pictures" / f"{part}-{step:06d}-0-{seed:03d}.png", "x")
    listed = [{"part": part, "step": step, "prompt": "x", "seed": seed, "place": 0} for part, step, seed in lines]
    (run / "pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in listed))
    assert cards(places)[0].thumbnail == run / "pictures" / "validation-000050-0-000.png"


def test_a_file_of_another_program_is_a_card_with_a_problem(places: Places, tmp_path: Path) -> None:
    (tmp_path / "watched" / "x.safetensors").write_bytes(b"nothing")
    (card,) = cards(places)
    assert "Import it" in card.problem
    assert not card.is_own


def test_a_search_finds_all_of_its_words(places: Places) -> None:
    make_concept(places.concepts / "bear.safetensors")
    (card,) = cards(places)
    assert card.matches("TEDDY tiny")
    assert card.matches("")
    assert card.matches(card.hash[:6])
    assert not card.matches("teddy dog")


def test_a_concept_is_renamed_with_its_run(places: Places) -> None:
    file = places.concepts / "bear.safetensors"
    content = make_concept(file).file_bytes
    run_of(file).mkdir()
    new = rename(places, file, "Grizzly / 2")
    assert new == places.concepts / "Grizzly-2.safetensors"
    assert new.read_bytes() == content
    assert run_of(new).is_dir()
    assert not file.exists()
    assert not run_of(file).exists()


def test_a_name_that_is_taken_or_empty_is_refused_and_nothing_is_lost(places: Places) -> None:
    file = places.concepts / "bear.safetensors"
    make_concept(file)
    make_concept(places.concepts / "dog.safetensors", value=2.0)
    (places.concepts / "cat.run").mkdir()
    for name, message in (("dog", "already a concept"), ("cat", "already a concept"), ("  ", "name is empty")):
        with pytest.raises(OptionError, match=message):
            rename(places, file, name)
        with pytest.raises(OptionError, match=message):
            free_name(places, name)
    assert {card.name for card in cards(places)} == {"bear", "dog"}
    assert rename(places, file, "bear") == file


def test_what_is_deleted_can_be_restored(places: Places) -> None:
    file = places.concepts / "bear.safetensors"
    content = make_concept(file).file_bytes
    run_of(file).mkdir()
    one = delete(places, file)
    assert cards(places) == []
    assert [each.origin for each in deleted(places)] == [file]
    assert restore(places, one.folder) == file
    assert file.read_bytes() == content
    assert run_of(file).is_dir()
    assert deleted(places) == []
    assert list(places.trash.iterdir()) == []


def test_two_deleted_of_one_name_come_back_under_two(places: Places) -> None:
    file = places.concepts / "bear.safetensors"
    contents = set()
    for value in (1.0, 2.0):
        contents.add(make_concept(file, value=value).file_bytes)
        delete(places, file)
    restored = {restore(places, one.folder) for one in deleted(places)}
    assert {path.name for path in restored} == {"bear.safetensors", "bear-2.safetensors"}
    assert {path.read_bytes() for path in restored} == contents


def test_only_concepts_of_the_studio_are_changed(places: Places, tmp_path: Path) -> None:
    watched = tmp_path / "watched" / "bear.safetensors"
    make_concept(watched)
    make_concept(tmp_path / "outside.safetensors")
    (places.concepts / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    for file in (watched, places.concepts / "link.safetensors", places.root / ".." / "outside.safetensors"):
        with pytest.raises(OptionError, match="is not in"):
            delete(places, file)
    with pytest.raises(OptionError, match="not a concept file"):
        delete(places, places.concepts)
    with pytest.raises(OptionError, match="not in the trash"):
        restore(places, places.concepts)
    assert watched.exists()


def test_a_concept_that_is_being_trained_stays(places: Places) -> None:
    file = places.concepts / "bear.safetensors"
    make_concept(file)
    with exclusive(run_of(file)):
        for change in (lambda: delete(places, file), lambda: rename(places, file, "other")):
            with pytest.raises(OptionError, match="is being trained"):
                change()
    assert file.exists()
    delete(places, file)


def test_a_note_in_the_trash_leads_nowhere_else(places: Places) -> None:
    (places.trash / "x").mkdir()
    for origin in ("../../etc/passwd", 7, "a\0b"):
        (places.trash / "x" / "deleted.json").write_text(json.dumps({"origin": origin, "time": 1}))
        assert deleted(places) == []
