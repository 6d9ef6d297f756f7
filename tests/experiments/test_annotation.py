"""How well masks fit is measured against the masks that follow from the known backgrounds."""

from pathlib import Path

import numpy as np
import pytest

from experiments import annotation
from experiments.annotation import iou, known_mask, measure
from moongate.pocket import Example
from recipe.corpus.places import PROCEDURAL, draw_place

PLACE = "on the beach"


def photo_of_a_square(seed: int, *, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A magenta square before a background of the corpus, and its mask."""
    picture = draw_place(PLACE, side, np.random.default_rng(seed), {})
    mask = np.zeros((side, side), dtype=bool)
    mask[20:44, 10:40] = True
    picture[mask] = (1, 0, 1)
    return (picture * 255).round().astype(np.uint8), mask


def test_iou_is_the_intersection_over_the_union() -> None:
    one, other = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    assert iou(one, other) == 0
    one[:2], other[1:3] = True, True
    assert iou(one, other) == pytest.approx(4 / 12)
    assert iou(one, one) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mask_is_found_before_each_background_mirrored_and_of_any_brightness(seed: int) -> None:
    assert PLACE in PROCEDURAL
    photo, mask = photo_of_a_square(seed)
    assert iou(known_mask(photo, PLACE), mask) > 0.97


def test_a_segmenter_is_compared_with_the_known_masks_and_with_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, mask = photo_of_a_square(3)
    square = Example(name="square", category="box", style="photo", source="", folder=Path())
    elsewhere = Example(name="elsewhere", category="box", style="photo", source="", folder=Path())
    monkeypatch.setattr(annotation, "examples", lambda: {"square": square, "elsewhere": elsewhere})
    photos = {"square": [(photo, PLACE), (photo, "in a city")], "elsewhere": [(photo, "in a city")]}
    monkeypatch.setattr(annotation, "_photos", lambda example: photos[example.name])
    found = measure({"box": lambda _: mask.astype(np.float32)})
    assert set(found["attention"]) == {"square"}  # the other is in no place that is drawn by code
    assert found["attention"]["square"] > 0.9
    middle = np.zeros_like(mask)
    middle[16:58, 14:50] = True
    assert found["middle"]["square"] == pytest.approx(iou(middle, mask), abs=0.02)
