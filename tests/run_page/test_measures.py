import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from moongate.run_page.measures import (
    Measured,
    measures_chart,
    read_measures,
    stop_said,
    when_to_stop,
    write_measures,
)
from moongate.run_records import MEASURES


def measured(alignment: list[float], drift: list[float]) -> list[Measured]:
    return [
        Measured(step=25 * place, alignment=a, drift=d, network="pocket-clip", photos="0")
        for place, (a, d) in enumerate(zip(alignment, drift, strict=True))
    ]


RISING_DRIFT = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("alignment", "drift", "stop"),
    [
        ([0.2, 0.5, 0.7, 0.8, 0.8, 0.8], RISING_DRIFT, 75),  # a plateau begins at its first step
        ([0.2, 0.5, 0.8, 0.7, 0.6, 0.5], RISING_DRIFT, 50),  # a peak
        ([0.2, 0.5, 0.78, 0.8, 0.79, 0.8], RISING_DRIFT, 50),  # what noise adds to a plateau is no rise
        ([0.2, 0.8, 0.5, 0.6, 0.7, 0.9], RISING_DRIFT, None),  # it rises again after a dip
        ([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], RISING_DRIFT, None),  # it still rises at the end
        ([0.8, 0.7, 0.6, 0.5, 0.4, 0.3], RISING_DRIFT, None),  # it never rose
        ([0.2, 0.5, 0.8, 0.8, 0.8, 0.8], [0.0, 0.2, 0.3, 0.3, 0.3, 0.3], None),  # more steps cost nothing
        ([0.2, 0.5, 0.8, 0.8, 0.8, 0.8], [0.0] * 6, None),
    ],
)
def test_the_step_to_stop_at_is_where_alignment_no_longer_rises_and_drift_does(
    alignment: list[float], drift: list[float], stop: int | None
) -> None:
    assert when_to_stop(measured(alignment, drift)) == stop


@pytest.mark.parametrize(
    ("alignment", "said"),
    [
        ([0.2, 0.5, 0.8, 0.8, 0.8, 0.8], "stops rising at step 50, while drift still rises: stop there"),
        ([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "still rises, or drift does not: more steps may help"),
        ([0.8, 0.7, 0.8, 0.5, 0.4, 0.3], "never rose above that of the base model on these photos"),
    ],
)
def test_what_is_said_of_measures_holds_for_them(alignment: list[float], said: str) -> None:
    assert stop_said(measured(alignment, RISING_DRIFT)) == f"Image alignment {said}."


def test_the_step_to_stop_at_does_not_depend_on_the_units_of_the_measures() -> None:
    alignment = [0.2, 0.5, 0.7, 0.8, 0.78, 0.8]
    scaled = [3 * value - 1 for value in alignment]
    assert when_to_stop(measured(scaled, [9 * value for value in RISING_DRIFT])) == 75
    assert when_to_stop(measured(alignment, RISING_DRIFT)) == 75


def test_too_few_measures_or_a_number_that_is_not_finite_say_nothing() -> None:
    assert when_to_stop([]) is None
    assert when_to_stop(measured([0.2, 0.8], [0.0, 0.1])) is None
    assert when_to_stop(measured([0.2, math.nan, 0.8, 0.8], [0.0, 0.1, 0.2, 0.3])) is None


def test_measures_are_read_back_in_the_order_of_their_steps_and_damaged_ones_are_none(tmp_path: Path) -> None:
    measures = measured([0.2, 0.5, 0.8], [0.0, 0.1, 0.2])
    write_measures(tmp_path, measures[::-1])
    assert read_measures(tmp_path) == measures
    for changes in ({"step": "3"}, {"alignment": None}, {"drift": [0.1]}, {"photo": "0"}):
        (tmp_path / MEASURES).write_text(json.dumps([asdict(measures[0]), {**asdict(measures[1]), **changes}]))
        assert read_measures(tmp_path) == []
    (tmp_path / MEASURES).write_text('[{"step": 3}]')
    assert read_measures(tmp_path) == []
    assert read_measures(tmp_path / "nowhere") == []


def test_the_chart_marks_the_step_on_both_curves() -> None:
    measures = measured([0.2, 0.5, 0.8], [0.0, 0.1, 0.2])
    assert measures_chart(measures, 50).html.count("<circle") == 2
    assert measures_chart(measures, None).html.count("<circle") == 0
