"""What is seen in pictures of pairs and in their halves, and the shares of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import regions
from experiments.regions import LEFT, PAIRS, RIGHT, WAYS, Options, _drawn, _seen, _shares
from experiments.study import Size, Study
from moongate import pocket
from moongate.demo.recognizer import Recognizer
from moongate.errors import OptionError
from moongate.sampling import Sample, SampleOptions

RED, BLUE, GRAY = (255, 0, 0), (0, 0, 255), (90, 90, 90)


class ByColor(Recognizer):
    """Sees a "red" and a "blue" thing where there are pixels of that color."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def sees(self, pictures: np.ndarray, categories: object) -> torch.Tensor:
        colors = {"red": RED, "blue": BLUE}
        assert isinstance(categories, list | tuple)
        shown = [(pictures == np.array(colors[name])).all(-1).any((1, 2)) for name in categories]
        return torch.tensor(np.stack(shown, 1))


def painted(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    picture = np.empty((8, 16, 3), np.uint8)
    picture[:, :8], picture[:, 8:] = left, right
    return picture


def test_both_subjects_are_looked_for_in_the_picture_and_each_in_each_half() -> None:
    pictures = np.stack([painted(RED, BLUE), painted(BLUE, RED), painted(RED, GRAY), painted(GRAY, GRAY)])
    pictures[2, 0, 0] = BLUE  # both on the left
    seen = _seen(ByColor(), pictures, ["red", "blue"])
    assert seen == [(True, True, False), (True, False, True), (True, False, False), (False, False, False)]


def test_shares_have_intervals_over_the_pictures() -> None:
    shares = _shares([(True, number < 20, False) for number in range(40)])
    assert shares["pictures"] == 40
    assert shares["both"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert shares["exchanged"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    in_order = shares["in order"]
    # A share of one half of 40 has a standard error of (0.25 / 40)^(1/2) = 0.079.
    assert in_order["value"] == 0.5
    assert in_order["low"] == pytest.approx(0.5 - 1.96 * 0.079, abs=0.03)
    assert in_order["high"] == pytest.approx(0.5 + 1.96 * 0.079, abs=0.03)


def test_each_subject_has_the_half_of_its_kind_of_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def drawn_in(_backbone: object, prompts: list[str], **arguments: object) -> list[Sample]:
        asked.append(arguments)
        return [Sample(image=painted(RED, BLUE), prompt=prompt, seed=0) for prompt in prompts]

    monkeypatch.setattr(regions, "sample_in_regions", drawn_in)
    study = Study(folder=tmp_path, size=Size(sampling=SampleOptions(steps=1)))
    monkeypatch.setattr(study, "backbone", None, raising=False)
    for kind in regions.REGIONS:
        assert _drawn(study, ["a dog", "a cat"], ["x", "y"], kind).shape == (2, 8, 16, 3)
    boxes = [[region.box for region in arguments["regions"]] for arguments in asked]  # type: ignore[attr-defined]
    assert boxes == [[], [LEFT, RIGHT], [RIGHT, LEFT], [LEFT, RIGHT], [RIGHT, LEFT]]
    apart = [arguments["region_options"].apart_share for arguments in asked]  # type: ignore[attr-defined]
    assert apart == [0, 0, 0, 1, 1]
    assert {tuple(arguments["seeds"]) for arguments in asked} == {(0, 1)}  # type: ignore[call-overload]


def test_what_is_measured_is_kept_and_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def paint(_study: Study, _words: object, prompts: list[str], kind: str) -> np.ndarray:
        drawn.append((kind, prompts))
        return np.stack([painted(RED, BLUE)] * len(prompts))

    monkeypatch.setattr(regions, "_drawn", paint)
    monkeypatch.setattr(regions, "_seen", lambda _recognizer, pictures, _names: [(True, True, False)] * len(pictures))
    options = Options(
        pairs=(0,), count=7, ways=("base",), kinds=("none", "in order"), out=tmp_path / "r.json", folder=tmp_path
    )
    for _ in range(2):
        regions.main(options)
    assert [kind for kind, _ in drawn] == ["none", "in order"]
    categories = [pocket.example(example).category for example in PAIRS[0]]
    assert all(" and a ".join(categories) in prompt for prompt in drawn[0][1])
    assert drawn[0][1][0] == drawn[0][1][5] != drawn[0][1][1]  # five places in turn
    record = json.loads(options.out.read_text())
    assert record["pairs"] == [list(PAIRS[0])]
    assert record["recognized"]["base"]["none"]["both"]["value"] == 1
    assert record["recognized"]["base"]["none"]["pictures"] == 7
    assert options.out.with_suffix(".webp").stat().st_size > 0


def test_a_pair_a_way_or_a_kind_that_does_not_exist_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(OptionError, match=r"pairs has 3. Known: 0, 1, 2"):
        Options(pairs=(0, 3))
    with pytest.raises(OptionError, match=rf"ways has 'merged'. Known: {', '.join(WAYS)}"):
        Options(ways=("base", "merged"))
    with pytest.raises(OptionError, match=r"kinds has 'swapped'"):
        Options(kinds=("swapped",))
    with pytest.raises(OptionError, match=r"count is 0"):
        Options(count=0)
