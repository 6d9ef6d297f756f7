from pathlib import Path

import pytest

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.pocket import taught_folder
from moongate.run_page import Album, page_of
from moongate.run_records import read_progress
from moongate.studio.demo import RUN, fill
from moongate.studio.drafts import drafts
from moongate.studio.places import CONCEPT, Places

MAX_BYTES = 500_000
"""Largest size of all shipped concepts together."""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places.open(tmp_path / "demo")
    fill(places)
    return places


def test_the_shipped_concepts_are_small_and_of_the_pocket_that_is_shipped(places: Places) -> None:
    packed = list(taught_folder().glob(f"*{CONCEPT}.xz"))
    assert sum(file.stat().st_size for file in packed) <= MAX_BYTES
    files = places.concept_files()
    assert len(files) == len(packed) == 3
    concepts = [Concept.load(file) for file in files]
    assert len({concept.record["rare_token"] for concept in concepts}) == len(concepts), "they can be merged"
    pocket = Backbone.load(device="cpu")
    for concept in concepts:
        with concept.applied(pocket):
            pass


def test_there_is_a_finished_run_with_its_pictures_and_measures(places: Places) -> None:
    (run,) = places.runs()
    assert run.name == f"{RUN}.run"
    progress = read_progress(run)
    assert progress is not None
    assert progress.step == progress.steps
    album = Album(run)
    steps = {drawn.step for drawn in album.drawn("validation")}
    assert {0, progress.steps} <= steps
    assert all(album.image(drawn).shape == (128, 128, 3) for drawn in album.drawn())
    page_of(run, "finished")


def test_there_are_photos_to_teach_and_pictures_in_the_gallery(places: Places) -> None:
    (draft,) = drafts(places.photos)
    photos = draft.photos()
    assert [photo.is_held_out for photo in photos] == [False] * 6 + [True] * 4
    assert all("{}" in photo.caption for photo in photos[:6])
    assert draft.job("again", model="pocket")["concepts"][0]["category"] == "penguin"
    assert len(list(places.gallery.glob("*.png"))) >= 4


def test_a_demo_that_was_stopped_while_it_was_unpacked_is_completed(places: Places) -> None:
    (draft,) = drafts(places.photos)
    before = [photo.file for photo in draft.photos()]
    before[-1].unlink()
    (draft.folder / "draft.json").unlink()
    fill(places)
    assert [each.name for each in drafts(places.photos)] == ["penguin"]
    assert [photo.file for photo in draft.photos()] == before
    assert draft.settings.category == "penguin"


def test_what_was_changed_in_a_demo_stays(places: Places) -> None:
    (draft,) = drafts(places.photos)
    draft.choose(token="<mine>")
    concept = places.concept_files()[0]
    concept.write_bytes(b"mine")
    fill(places)
    assert draft.settings.token == "<mine>"
    assert concept.read_bytes() == b"mine"
