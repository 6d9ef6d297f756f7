"""Attention control against the maps of the paper, written out one by one."""

import pytest
import torch
from torch import Tensor

from editing_making import SAMPLING, concept_of
from moongate.backbone import Backbone
from moongate.backbone.attention import computed
from moongate.editing import Edit, EditOptions, edit
from moongate.editing.alignment import Word, align
from moongate.editing.control import Control, WordMaps
from moongate.sampling import sample

HEADS, POSITIONS, TOKENS, WIDTH = 2, 16, 6, 4
LAYER = "unet.some.attn2"


def projections(seed: int, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, HEADS, POSITIONS, WIDTH), (rows, HEADS, TOKENS, WIDTH), (rows, HEADS, TOKENS, WIDTH))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def maps_of(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) / WIDTH**0.5).softmax(-1)


def words(prompt: str) -> list[Word]:
    return [(word, [position]) for position, word in enumerate(prompt.split(), 1)]


def control_of(source: str, target: str, *, factors: dict[int, float] | None = None) -> Control:
    alignment = align(words(source), words(target), length=TOKENS)
    weights = torch.ones(1, TOKENS)
    for position, factor in (factors or {}).items():
        weights[0, position] = factor
    return Control(mapping=alignment.mapping[None], own=alignment.own[None], factors=weights)


@pytest.mark.parametrize("factors", [{}, {2: 3.0}, {2: 0.0, 3: -1.0}])
def test_values_that_are_handed_over_do_what_the_papers_maps_do(factors: dict[int, float]) -> None:
    """M*[:, target] is the source's map of the token that it takes the place of, or its own; times its factor."""
    control = control_of("a cat here", "a red cat here", factors=factors)
    source, target = projections(0), projections(1)
    control.injects_cross = True
    control(LAYER, *source)
    control.branch = "target"
    attended = control(LAYER, *target)
    theirs, ours = maps_of(source[0][1:], source[1][1:]), maps_of(target[0][1:], target[1][1:])
    edited = ours.clone()
    for column, taken in {0: 0, 1: 1, 3: 2, 4: 3, 5: 4}.items():
        edited[..., column] = theirs[..., taken]
    for column, factor in factors.items():
        edited[..., column] *= factor
    torch.testing.assert_close(attended[1:], edited @ target[2][1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attended[:1], maps_of(target[0][:1], target[1][:1]) @ target[2][:1])


def test_self_attention_takes_the_whole_map_of_the_source() -> None:
    control = control_of("a cat", "a dog")
    control.injects_self = True
    source, target = projections(0), projections(1)
    control("unet.some.attn1", *source)
    control.branch = "target"
    attended = control("unet.some.attn1", *target)
    torch.testing.assert_close(attended[1:], maps_of(source[0][1:], source[1][1:]) @ target[2][1:])


def test_queries_and_keys_are_kept_for_the_steps_that_inject_and_dropped_once_used() -> None:
    control = control_of("a cat", "a dog")
    control(LAYER, *projections(0))
    assert not control._kept
    control.injects_cross = True
    control(LAYER, *projections(0))
    assert set(control._kept) == {LAYER}
    control.branch = "target"
    control(LAYER, *projections(1))
    assert not control._kept


def test_weight_zero_is_the_removal_of_the_word_from_the_attention(tiny: Backbone) -> None:
    """The same picture comes from a model in which no position attends to the word, in any layer."""
    prompt, concept = "photo of a <rex> bear", concept_of(tiny).scaled(20)
    one = Edit(source=prompt, target=prompt, seed=1, reweight={"<rex>": 0.0})
    options = EditOptions(cross_share=0, self_share=0)
    (edited,) = edit(tiny, [one], concept=concept, sampling=SAMPLING, options=options)
    calls = [0]

    def without_word(layer: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        probabilities = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        calls[0] += 1
        probabilities[1:, :, :, 4] = 0  # the row of the prompt; the other is that of guidance
        return probabilities @ value

    with concept.applied(tiny), computed(tiny.cross_attentions(), without_word):
        (removed,) = sample(tiny, [prompt], seeds=[1], options=SAMPLING)
    assert calls[0] == SAMPLING.steps * len(tiny.cross_attentions())
    assert abs(edited.image.astype(int) - removed.image).max() <= 1
    assert abs(edited.image.astype(int) - edited.source).max() > 3


def test_the_map_of_a_word_is_the_mean_of_its_pieces() -> None:
    control = control_of("a cat here", "a cat here")
    control.maps = {
        branch: WordMaps.of([[[], [2, 3], [1]]], tokens=TOKENS, size=(4, 4)) for branch in ("source", "target")
    }
    query, key, value = projections(0)
    control(LAYER, query, key, value)
    expected = maps_of(query[1:], key[1:]).mean(1)[0].T.unflatten(1, (4, 4))
    mean = control.maps["source"].sums.mean()[0]
    torch.testing.assert_close(mean, torch.stack([torch.zeros(4, 4), expected[2:4].mean(0), expected[1]]))
    ((name, where),) = control.maps["source"].named(0, ["cat"], first=1)
    assert name == "cat"
    torch.testing.assert_close(torch.from_numpy(where), expected[2:4].mean(0) / expected[2:4].mean(0).max())
