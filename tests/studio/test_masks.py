import numpy as np
import pytest

from moongate.errors import PictureError
from moongate.studio.masks import Stroke, painted


def test_what_the_brush_touched_is_white_and_what_it_erased_is_not() -> None:
    line = Stroke(points=[(10, 20), (50, 20)], width_px=10)
    mask = painted([line], (64, 48))
    assert mask.shape == (48, 64, 3)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[20, 5:56].all(), "the ends are round, half a width beyond the points"
    assert not mask[20, :4].any()
    assert mask[16:25, 30].all()
    assert not mask[27:, 30].any()
    erased = painted([line, Stroke(points=[(30, 20)], width_px=8, erases=True)], (64, 48))
    assert not erased[20, 28:33].any()
    assert erased[20, 12].all()


def test_a_mask_on_which_nothing_is_painted_is_refused() -> None:
    with pytest.raises(PictureError, match="Nothing is painted"):
        painted([], (64, 48))


def test_a_stroke_is_shown_by_numbers_alone() -> None:
    assert Stroke(points=[(1, 2)], width_px=3).svg.count("1.0,2.0") == 2
