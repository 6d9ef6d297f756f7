"""Parts of a concept: what of it is kept, and the color of what the recognizer takes for an object."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.layers import BLOCKS, PARTS, mean_color, part_of
from moongate import Backbone, Concept
from moongate.concept import Dense
from moongate.demo.recognizer import Recognizer
from moongate.errors import OptionError


@pytest.fixture(scope="module")
def concept() -> Concept:
    backbone = Backbone.load("pocket")
    weights = backbone.weights("cross-attention-kv")
    return Concept(
        deltas={name: Dense(delta=torch.ones_like(weight, dtype=torch.float32)) for name, weight in weights.items()},
        tokens={"<jar>": torch.ones(sum(backbone.token_widths))},
        token_widths=backbone.token_widths,
        subjects=(),
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        method="custom-diffusion",
        record={},
    )


def test_the_parts_are_all_of_a_concept_on_pocket_and_each_keeps_the_token(concept: Concept) -> None:
    names = set(concept.deltas)
    parts = {part: set(part_of(concept, part).deltas) for part in PARTS}
    assert parts["whole"] == names
    assert parts["token"] == set()
    assert parts["keys"] | parts["values"] == names
    assert not parts["keys"] & parts["values"]
    assert {name for block in BLOCKS for name in parts[f"only {block}"]} == names
    for block in BLOCKS:
        assert parts[f"only {block}"]
        assert parts[f"without {block}"] == names - parts[f"only {block}"]
    assert all(part_of(concept, part).tokens == concept.tokens for part in PARTS)


def test_a_part_that_is_unknown_and_a_layer_of_no_level_are_named(concept: Concept) -> None:
    with pytest.raises(OptionError, match="No part 'half'"):
        part_of(concept, "half")
    stray = {"unet.elsewhere.attn2.to_k.weight": next(iter(concept.deltas.values()))}
    with pytest.raises(OptionError, match=r"unet.elsewhere.*is in none of down_blocks.0"):
        part_of(replace(concept, deltas=stray), "keys")


def test_the_mean_color_is_that_of_the_object_or_of_all_where_none_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Recognizer.load()
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[:, :, 32:] = (255, 51, 0)
    cells = torch.zeros(1, 2, 4, 4)
    monkeypatch.setattr(recognizer, "cells_and_surroundings", lambda _: (cells, None))
    np.testing.assert_allclose(mean_color(recognizer, picture), [[0.5, 0.1, 0]], atol=1e-6)
    cells[:, 1, :, 3] = 0.9  # the object is in the rightmost quarter
    np.testing.assert_allclose(mean_color(recognizer, picture), [[1, 0.2, 0]], atol=1e-6)
