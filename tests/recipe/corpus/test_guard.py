import math

import pytest
import torch

from recipe.corpus.guard import nearest_seen, similarity_of_views


def unit(*degrees: float) -> torch.Tensor:
    """Points on the unit circle: their cosines are those of the angles between them."""
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees])


def test_the_nearest_seen_object_is_the_one_with_the_most_similar_view() -> None:
    held_out = {"bear": unit(0, 90), "chair": unit(200)}
    seen = {"dog": unit(30, 180), "cat": unit(80, 300)}
    pairs = nearest_seen(held_out, seen)
    assert [(pair.held_out, pair.nearest) for pair in pairs] == [("bear", "cat"), ("chair", "dog")]
    assert [pair.cosine for pair in pairs] == pytest.approx([math.cos(math.radians(a)) for a in (10, 20)], abs=1e-4)


def test_views_of_one_object_set_the_limit_and_single_views_say_nothing() -> None:
    objects = {"bear": unit(0, 10, 30), "drawing": unit(50), "chair": unit(0, 5)}
    cosines = sorted(math.cos(math.radians(angle)) for angle in (10, 20, 30, 5))
    assert similarity_of_views(objects, 1.0) == pytest.approx(cosines[-1], abs=1e-6)
    assert similarity_of_views(objects, 0.0) == pytest.approx(cosines[0], abs=1e-6)
