"""The four measures of an edit, on pictures whose values follow from their colors."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from experiments import edits
from experiments.edits import PLACE, STYLE, WAYS, EditRecord, _inside, _measured, _structure_distance
from experiments.fig10_editing import COLOR
from experiments.study import Size
from moongate.data.pictures import as_tensor
from moongate.editing import Edit
from moongate.editing.plan import Edited
from moongate.sampling import SampleOptions

SIDE = 8


def flat(level: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


CELLS = torch.zeros(2, 1, 4, 4)
"""Probabilities of one category in 4 x 4 cells of the source and the edit: an object in a corner of each."""
CELLS[0, 0, :2, :2], CELLS[1, 0, :2, 2:] = 0.9, 0.9
RECOGNIZER: Any = SimpleNamespace(cells_and_surroundings=lambda _: (CELLS, None))


def caption_features(captions: list[str]) -> torch.Tensor:
    assert captions == ["photo of a red car"]
    return torch.tensor([[1.0, 0, 0]])


def image_features(images: torch.Tensor) -> torch.Tensor:
    """The mean color, as a unit vector."""
    return F.normalize((images + 1).mean((2, 3)), dim=1)


STUDY: Any = SimpleNamespace(
    recognizer=RECOGNIZER,
    networks=[
        SimpleNamespace(caption_features=None),
        SimpleNamespace(caption_features=caption_features, image_features=image_features),
    ],
)


def record(kind: str) -> EditRecord:
    return EditRecord(kind, "photo of a car", "photo of a red car")


def test_inside_is_where_an_object_is_but_for_another_place_or_style() -> None:
    images = as_tensor(np.stack([flat(0), flat(0)]))
    objects = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    objects[:4] = True  # in the source on the left, in the edit on the right
    assert torch.equal(_inside(RECOGNIZER, record(COLOR), images), objects)
    source = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    source[:4, :4] = True
    assert torch.equal(_inside(RECOGNIZER, record(PLACE), images), ~source)
    assert _inside(RECOGNIZER, record(STYLE), images).all()


def test_an_edit_is_measured_outside_in_decibels_and_features_and_inside_against_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, edited = flat(100), flat(120)
    edited[:4] = (200, 0, 0)  # the upper half, which is inside
    turned = torch.zeros(2, 2, 2, 2)  # features of 2 x 2 places: those on the lower right turn by 60 degrees
    turned[:, 0] = 1
    turned[1, :, 1, 1] = torch.tensor([0.5, 3**0.5 / 2])
    monkeypatch.setattr(edits, "_positions", lambda: lambda _: turned)
    values = _measured(STUDY, record(COLOR), source, edited)
    assert values["psnr_outside"] == pytest.approx(20 * math.log10(255 / 20), abs=1e-3)
    assert values["features_outside"] == pytest.approx(0.5 / 2)  # of the two places below, one moved by 1 - cos
    assert values["text_inside"] == pytest.approx(1, abs=1e-4)  # the red part alone
    # One of four places resembles the other three less, by one half: six of sixteen squares of a quarter.
    assert values["structure"] == pytest.approx(6 / 16 / 4)


def test_an_edit_of_the_whole_picture_has_no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "_positions", lambda: lambda images: images)
    values = _measured(STUDY, record(STYLE), flat(10), flat(20))
    assert values["psnr_outside"] is values["features_outside"] is None
    assert values["text_inside"] == pytest.approx(3**-0.5, abs=1e-4)  # gray against red


def test_the_structure_of_two_pictures_is_compared_place_by_place() -> None:
    alike, unlike = torch.ones(4, 2, 2), torch.eye(4).view(4, 2, 2)
    assert _structure_distance(torch.stack([alike, 3 * alike])) == 0  # the strength of features does not count
    # All places of the first resemble one another, of the second none: 1 in twelve of sixteen pairs.
    assert _structure_distance(torch.stack([alike, unlike])) == pytest.approx(12 / 16)


def test_both_ways_of_an_edit_begin_with_the_same_noise_and_are_shown_after_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def edit(_backbone: object, one: list[Edit], **arguments: Any) -> list[Edited]:
        made.append((one[0], arguments))
        return [Edited(source=flat(0), image=flat(100 * len(made)), edit=one[0])]

    monkeypatch.setattr(edits, "edit", edit)
    monkeypatch.setattr(edits, "_measured", lambda _study, _record, _source, image: {"level": int(image[0, 0, 0])})
    shown: list[list[int]] = []
    monkeypatch.setattr(edits, "webp_row", lambda row: shown.append([int(image[0, 0, 0]) for image in row]))
    study: Any = SimpleNamespace(backbone=None, size=Size(sampling=SampleOptions(steps=3, guidance=4.0)))
    one = EditRecord(COLOR, "photo of a car", "photo of a red car", None, ("red", 2.0), 207)
    values = one.measure(study)
    assert values["kind"] == COLOR
    assert values["ways"] == {"with control": {"level": 100}, "without control": {"level": 200}}
    assert shown == [[0, 100, 200]]
    assert [arguments["options"] for _, arguments in made] == list(WAYS.values())
    assert {(edited.seed, tuple(edited.reweight.items())) for edited, _ in made} == {(207, (("red", 2.0),))}
    assert all(arguments["sampling"] == SampleOptions(steps=3) for _, arguments in made)  # the model's own guidance
    assert all(arguments["concept"] is None for _, arguments in made)
