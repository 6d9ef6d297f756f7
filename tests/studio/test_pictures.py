import os
from pathlib import Path

import pytest

from moongate.pages import png_bytes
from moongate.studio.pictures import differences, pictures
from moongate.studio.places import Places
from studio_making import make_concept, make_drawing


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.open(tmp_path / "studio")


def test_a_picture_says_how_it_was_drawn(places: Places) -> None:
    concept = make_concept(places.concepts / "bear.safetensors")
    region = {"words": "<bear> teddy bear", "box": [0, 0, 0.5, 1], "prompt": None}
    file = make_drawing(places.gallery / "x" / "a.png", "a <bear> bear", seed=7, concept=concept, regions=[region])
    (found,) = pictures(places)
    assert (found.file, found.prompt, found.seed, found.model, found.steps) == (file, "a <bear> bear", 7, "tiny", 2)
    assert [(used.file, used.hash, used.strength) for used in found.concepts] == [
        ("bear.safetensors", concept.hash, 1.0)
    ]
    assert (found.width_px, found.height_px, found.regions) == (32, 32, ("<bear> teddy bear=0,0,0.5,1",))
    assert not found.has_region_texts


def test_pictures_that_say_nothing_and_damaged_files_are_left_out(places: Places) -> None:
    file = make_drawing(places.gallery / "a.png", "a")
    (places.gallery / "cut.png").write_bytes(file.read_bytes()[:60])
    (places.gallery / "text.png").write_bytes(b"no picture")
    texts = ("{", "[]", '{"seed": 1}', '{"prompt": "x", "seed": "?"}', '{"prompt": "x", "seed": 1e999}', "[" * 1000)
    for number, text in enumerate((*texts, "{}")):
        content = png_bytes(_image(), texts={"moongate": text})
        (places.gallery / f"bad-{number}.png").write_bytes(content)
    (places.gallery / "plain.png").write_bytes(png_bytes(_image()))
    assert [picture.file for picture in pictures(places)] == [file]


def test_pictures_behind_links_that_lead_out_and_pipes_are_left_out(places: Places, tmp_path: Path) -> None:
    inside = make_drawing(places.gallery / "a" / "0.png", "a bear")
    outside = make_drawing(tmp_path / "elsewhere" / "1.png", "a private bear")
    (places.gallery / "a" / "1.png").symlink_to(outside)
    (places.gallery / "b").symlink_to(outside.parent)
    (places.gallery / "a" / "2.png").symlink_to(inside)
    os.mkfifo(places.gallery / "a" / "3.png")
    assert {picture.file.name for picture in pictures(places)} == {"0.png", "2.png"}


def test_a_file_that_was_replaced_is_read_again(places: Places) -> None:
    file = make_drawing(places.gallery / "a.png", "before")
    assert [picture.prompt for picture in pictures(places)] == ["before"]
    make_drawing(file, "after")
    assert [picture.prompt for picture in pictures(places)] == ["after"]


def test_a_filter_finds_prompt_seed_concept_and_hash(places: Places) -> None:
    concept = make_concept(places.concepts / "bear.safetensors")
    make_drawing(places.gallery / "a.png", "a <bear> bear in the snow", seed=12, concept=concept)
    (found,) = pictures(places)
    for query in ("snow BEAR", "seed 12", "bear.safetensors", concept.hash, "tiny"):
        assert found.matches(query), query
    assert not found.matches("beach")


def test_two_pictures_differ_where_they_were_drawn_differently(places: Places) -> None:
    concept = make_concept(places.concepts / "bear.safetensors")
    make_drawing(places.gallery / "a.png", "a bear", seed=1, concept=concept)
    make_drawing(places.gallery / "b.png", "a bear", seed=2)
    first, second = sorted(pictures(places), key=lambda picture: picture.seed)
    assert [row[0] for row in differences(first, second)] == ["seed", "concepts"]
    assert differences(first, first) == []


def _image() -> object:
    import numpy as np

    return np.zeros((8, 8, 3), dtype=np.uint8)
