"""Parts of a concept: what of it is kept, and the color of what the recognizer takes for an object."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from experiments.layers import BLOCKS, PARTS, Spectrum, Weights, mean_color, part_of
from making import make_concept
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


class Taught(SimpleNamespace):
    """In place of a `Study`: one concept, and which trainings were asked for."""

    def single(self, example: str, method: str, seed: int) -> Any:
        self.asked = (example, method, seed)
        return self.concept


def test_the_change_of_weights_is_the_mean_over_all_layers_of_a_kind(tiny: Backbone) -> None:
    weights = tiny.weights("denoiser")
    trained = {name: w for name, w in weights.items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    deltas = {name: Dense(delta=0.1 * weight.float()) for name, weight in trained.items()}
    study = Taught(backbone=tiny, concept=replace(make_concept(tiny), deltas=deltas))
    kinds = Weights("jar").measure(study)["kinds"]  # type: ignore[arg-type]
    assert study.asked == ("jar", "fine-tune-all", 0)
    layers = {name.rpartition(".")[0] for name in weights if ".attn2." in name}
    assert kinds["cross-attention"]["mean"] == pytest.approx(0.1 * len(trained) / len(layers), rel=1e-5)
    assert sum(kind["mean"] for kind in kinds.values()) == kinds["cross-attention"]["mean"]
    assert sum(kind["share"] for kind in kinds.values()) == pytest.approx(1)
    numbers = {name: weight.numel() for name, weight in weights.items()}
    share = sum(number for name, number in numbers.items() if ".attn2." in name) / sum(numbers.values())
    assert kinds["cross-attention"]["share"] == pytest.approx(share)


def test_a_spectrum_holds_the_singular_values_relative_to_the_largest(tiny: Backbone) -> None:
    name, weight = next(iter(tiny.weights("cross-attention-kv").items()))
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(len(weight), 4, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(weight.shape[1], 4, generator=generator)).Q
    delta = left @ torch.diag(torch.tensor([4.0, 2, 1, 1])) @ right.T
    study = Taught(concept=replace(make_concept(tiny), deltas={name: Dense(delta=delta)}))
    values = Spectrum("jar").measure(study)  # type: ignore[arg-type]
    assert study.asked == ("jar", "custom-diffusion", 0)
    assert values["rank_at_60"] == {name: 2}  # 4 of 8 are less than 60 %, and 6 of 8 are more
    (found,) = values["values"].values()
    assert len(found) == min(weight.shape)
    assert found == pytest.approx([1, 0.5, 0.25, 0.25] + [0] * (len(found) - 4), abs=1e-5)
