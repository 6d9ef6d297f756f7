import numpy as np
import pytest

from recipe.corpus.catalog import Object
from recipe.corpus.places import PROCEDURAL
from recipe.corpus.scenes import FILTERED_STYLES, LONG_SIDE, PICTURE_PX, STYLES, article, dominant_color, make_scene

RED = np.zeros((40, 40, 4), dtype=np.uint8)
RED[5:35, 5:35] = (220, 20, 20, 255)
BALL = Object(key="a", category="ball", name="ball", kind="photo", views=[RED])
CHAIR = Object(key="b", category="chair", name="chair", kind="photo", views=[RED])


def test_a_scene_is_what_its_caption_says_and_follows_from_its_seed() -> None:
    for seed, place in enumerate([*PROCEDURAL, "on a blue background"] * 3):
        scenes = [
            make_scene([BALL, CHAIR], rng=np.random.default_rng(seed), panoramas={}, place=place) for _ in range(2)
        ]
        assert scenes[0].caption == scenes[1].caption
        assert np.array_equal(scenes[0].picture, scenes[1].picture)
        assert scenes[0].picture.shape == (128, 128, 3)
        assert scenes[0].style in scenes[0].caption
        assert scenes[0].place in scenes[0].caption
        assert set(scenes[0].categories) == {"ball", "chair"}


@pytest.mark.parametrize("size", LONG_SIDE)
def test_an_object_has_the_size_that_the_caption_names(size: str) -> None:
    scene = make_scene(
        [BALL], rng=np.random.default_rng(3), panoramas={}, place="on a white background", style="photo", size=size
    )
    red = (scene.picture[..., 0] > 180) & (scene.picture[..., 1] < 60)
    low, high = LONG_SIDE[size]
    assert low - 0.04 <= red.any(0).sum() / PICTURE_PX <= min(1.0, high) + 0.04


def test_filtered_styles_are_watercolor_and_pixel_art() -> None:
    assert STYLES == ("photo", "drawing", "3d render", "watercolor painting", "pixel art")
    for style in FILTERED_STYLES:
        scene = make_scene([BALL], rng=np.random.default_rng(0), panoramas={}, place="on the beach", style=style)
        assert scene.caption.startswith(f"{style} of ")
    blocks = scene.picture.reshape(32, 4, 32, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all(), "pixel art has cells of four pixels"


def test_captions_spell_gray_as_the_frozen_tokenizer_learned_it() -> None:
    assert dominant_color(np.full((16, 16, 4), (130, 130, 130, 255), dtype=np.uint8)) == "grey"
    assert dominant_color(RED) == "red"


def test_articles() -> None:
    assert [article(word) for word in ("owl", "cat", "red sunglasses")] == ["an owl", "a cat", "red sunglasses"]
