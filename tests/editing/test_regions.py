from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from editing_making import SAMPLING, concept_of
from moongate.backbone import Backbone
from moongate.backbone.attention import recorded, self_attentions
from moongate.editing.regions import (
    Region,
    RegionOptions,
    _InRegions,
    box_weights,
    of_subjects,
    parse_region,
    read_regions,
    region_texts,
    sample_in_regions,
)
from moongate.errors import OptionError, TokenError
from moongate.sampling import Sample, sample

PROMPT = "a red bear and a dog"
LEFT, RIGHT = Region(words="red bear", box=(0, 0, 0.5, 1)), Region(words="dog", box=(0.5, 0, 1, 1))


def drawn(backbone: Backbone, regions: list[Region], prompts: list[str], **options: float) -> list[Sample]:
    seeds = list(range(len(prompts)))
    region_options = RegionOptions(**options)
    return list(
        sample_in_regions(
            backbone, prompts, seeds=seeds, regions=regions, options=SAMPLING, region_options=region_options
        )
    )


def test_weights_fall_softly_at_the_edges_of_a_region_but_not_of_the_picture() -> None:
    weights = box_weights((0, 0.25, 0.5, 1), (4, 8), softness=0.25)
    across = [1, 1, 1, 0.75, 0.25, 0, 0, 0]
    assert weights[3].tolist() == pytest.approx(across)
    assert weights[:, 0].tolist() == pytest.approx([0, 1, 1, 1])
    hard = box_weights((0, 0, 0.5, 1), (1, 4), softness=0)
    assert hard[0].tolist() == pytest.approx([1, 1, 0, 0])


@pytest.mark.parametrize(
    ("prompt", "words", "texts"),
    [
        (
            "photo of an armchair and a dog in the snow",
            ["armchair", "dog"],
            [
                "photo of an armchair and an armchair in the snow",
                "photo of a dog and a dog in the snow",
                "photo of and in the snow",
            ],
        ),
        ("A Red  Dog, the dog", ["red dog", "dog"], ["A Red  Dog, A Red  Dog", "the dog, the dog", ","]),
        ("a <cat> cat on a catwalk", ["<cat> cat"], ["a <cat> cat on a catwalk", "on a catwalk"]),
        ("a <cat> cat and a cat-2", ["cat"], ["a <cat> cat and a cat-2", "a <cat> and a cat-2"]),
    ],
)
def test_each_region_reads_its_own_words_in_the_place_of_all_regions_words(
    prompt: str, words: list[str], texts: list[str]
) -> None:
    assert region_texts(prompt, [Region(words=one, box=(0, 0, 1, 1)) for one in words]) == texts


def test_the_prompt_of_a_region_is_read_as_it_is() -> None:
    assert region_texts(PROMPT, [replace(LEFT, prompt="two bears"), RIGHT]) == ["two bears", "a dog and a dog", "and"]


def test_the_whole_picture_as_the_region_of_a_word_changes_nothing(tiny: Backbone) -> None:
    prompts = ["a red bear in the snow"]
    usual = next(sample(tiny, prompts, seeds=[0], options=SAMPLING)).image
    for regions in (
        [replace(LEFT, box=(0, 0, 1, 1))],
        [replace(LEFT, prompt=prompts[0]), replace(LEFT, words="snow", box=RIGHT.box, prompt=prompts[0])],
    ):
        assert np.abs(drawn(tiny, regions, prompts, apart_share=0)[0].image.astype(int) - usual).max() <= 1


def test_positions_of_different_regions_see_one_another_unless_they_are_kept_apart(tiny: Backbone) -> None:
    """Of 8 x 8 positions, those of the left half get the same whatever the right half holds; free ones see all."""
    regions = [replace(LEFT, box=(0, 0, 0.5, 1)), replace(RIGHT, box=(0.5, 0, 1, 0.5))]
    attend = _InRegions.of(tiny, PROMPT, regions, SAMPLING, RegionOptions(apart_share=1))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 1, 64, 4, generator=generator) for _ in range(3))
    layer = next(iter(self_attentions(tiny)))
    before = attend(layer, query, key, value)
    upper_right = torch.arange(64).view(8, 8)[:4, 4:].flatten()
    changed = value.clone()
    changed[:, :, upper_right] += 1
    moved = (attend(layer, query, key, changed) - before).abs().amax((1, 3)).view(2, 8, 8) > 1e-6
    assert moved[0].all()  # guidance sees all
    assert not moved[1][:, :4].any()
    assert moved[1][:4, 4:].all()
    assert moved[1][4:, 4:].all()
    attend = _InRegions.of(tiny, PROMPT, regions, SAMPLING, RegionOptions())
    assert torch.equal(attend(layer, query, key, value), attention(query, key, value))


def test_the_words_of_a_region_do_not_act_outside_it(tiny: Backbone) -> None:
    """In one layer, what a position gets outside a region is the same whatever the region's words are."""
    size, boxes = (8, 8), [LEFT.box, RIGHT.box]
    generator = torch.Generator().manual_seed(0)
    name, layer = next((name, layer) for name, layer in tiny.cross_attentions().items())
    width = layer.to_q.out_features // layer.heads
    query = torch.randn(2, layer.heads, 64, width, generator=generator)
    unused = torch.randn(2, layer.heads, 77, width, generator=generator)

    def attended(*prompts: str) -> torch.Tensor:
        regions = [replace(LEFT, box=box, prompt=text) for box, text in zip(boxes, prompts, strict=True)]
        attend = _InRegions.of(tiny, PROMPT, regions, SAMPLING, RegionOptions(softness=0))
        return attend(name, query, unused, unused).unflatten(2, size)

    with torch.no_grad():
        one, other = attended("a bear", "a dog"), attended("a cat in the snow", "a dog")
        assert torch.equal(one[:1], other[:1])  # the row of guidance
        assert torch.equal(one[1, :, :, 4:], other[1, :, :, 4:])
        assert (one[1, :, :, :4] - other[1, :, :, :4]).abs().amin((1, 2)).amax() > 1e-4

        # Alone in the picture, the right half reads what stays of the prompt without the words.
        boxes = [LEFT.box]
        here, there = attended("a bear"), attended("a dog in the snow")
    assert torch.equal(here[1, :, :, 4:], there[1, :, :, 4:])


@pytest.mark.parametrize(
    ("shares", "acts"),
    [
        ({"share": 0.5, "apart_share": 0.25}, [(True, True), (True, False), (False, False), (False, False)]),
        ({"share": 0.25, "apart_share": 1.0}, [(True, True), (False, False), (False, False), (False, False)]),
    ],
)
def test_regions_act_in_the_first_steps_of_each_batch_and_keep_positions_apart_in_no_others(
    tiny: Backbone, shares: dict[str, float], acts: list[tuple[bool, bool]]
) -> None:
    options, generator = replace(SAMPLING, steps=4), torch.Generator().manual_seed(0)
    attend = _InRegions.of(tiny, PROMPT, [LEFT, RIGHT], options, RegionOptions(**shares))
    name, layer = next(iter(tiny.cross_attentions().items()))
    width = layer.to_q.out_features // layer.heads
    parts = [torch.randn(2, layer.heads, 64, width, generator=generator) for _ in range(3)]
    usual, found = attention(*parts), []
    for _ in range(8):
        with torch.no_grad():
            found.append(tuple(not torch.equal(attend(one, *parts), usual) for one in (name, "unet.some.attn1")))
        attend.step_done()
    assert found == acts * 2


def test_the_weights_of_all_texts_sum_to_one_where_regions_overlap_and_where_none_is(tiny: Backbone) -> None:
    regions = [Region(words="red bear", box=(0, 0, 0.6, 0.8)), Region(words="dog", box=(0.4, 0, 1, 0.5))]
    attend = _InRegions.of(tiny, PROMPT, regions, SAMPLING, RegionOptions())
    weights = attend._text_weights(64).unflatten(1, (8, 8))
    torch.testing.assert_close(weights.sum(0), torch.ones(8, 8))
    assert weights[:, 0, 0].tolist() == [1, 0, 0]
    assert weights[:, 7, 7].tolist() == [0, 0, 1]
    assert weights[0, 0, 3] == pytest.approx(weights[1, 0, 4].item())


def test_without_regions_or_with_none_of_the_steps_pictures_are_the_usual_ones(tiny: Backbone) -> None:
    prompts = [PROMPT, PROMPT, "a dog and a red bear"]
    usual = [one.image for one in sample(tiny, prompts, seeds=[0, 1, 2], options=SAMPLING)]
    for regions, share in (([], 1.0), ([LEFT, RIGHT], 0.0)):
        pictures = drawn(tiny, regions, prompts, share=share)
        assert [(one.prompt, one.seed) for one in pictures] == list(zip(prompts, (0, 1, 2), strict=True))
        for one, before in zip(pictures, usual, strict=True):
            assert np.abs(one.image.astype(int) - before).max() <= 1
    with concept_of(tiny).applied(tiny):
        without, within = (drawn(tiny, regions, ["a <rex> dog"]) for regions in ([], [RIGHT]))
    assert not np.array_equal(within[0].image, without[0].image)


def test_the_processors_come_back_between_pictures(tiny: Backbone) -> None:
    before = list(tiny.unet.attn_processors.values())
    pictures = sample_in_regions(tiny, [PROMPT] * 2, seeds=[0, 1], regions=[LEFT], options=SAMPLING)
    next(pictures)
    assert all(now is then for now, then in zip(tiny.unet.attn_processors.values(), before, strict=True))
    with recorded(tiny, pictures=1, size=(8, 8)), pytest.raises(OptionError):
        sample_in_regions(tiny, [PROMPT], seeds=[0, 1], regions=[LEFT], options=SAMPLING)
    assert all(now is then for now, then in zip(tiny.unet.attn_processors.values(), before, strict=True))


def test_regions_are_read_from_words_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "regions.yaml"
    file.write_text('"<bear> teddy bear": [0, 0, 0.5, 1]\ndog: [0.5, 0.25, 1, 1.0]\n')
    assert read_regions(file) == [
        Region(words="<bear> teddy bear", box=(0, 0, 0.5, 1)),
        Region(words="dog", box=(0.5, 0.25, 1, 1)),
    ]
    assert parse_region("<bear> = 0, 0,.5,1") == Region(words="<bear>", box=(0, 0, 0.5, 1))
    for text in ("dog", "=0,0,1,1", "dog=0,0,1", "dog=0,0,a,1", "dog=0,0,1.5,1", "dog=0.5,0,0.5,1", "dog=nan,0,1,1"):
        with pytest.raises(OptionError, match="left, top, right and bottom|Give left, top, right"):
            parse_region(text)
    file.write_text('"<bear>": {box: [0, 0, 0.5, 1], prompt: a <bear> }', "utf-8-sig")
    assert read_regions(file) == [Region(words="<bear>", box=(0, 0, 0.5, 1), prompt="a <bear>")]
    for value in ("{box: [0, 0, 1, 1]}", "{prompt: a dog}", "{box: 3, prompt: a}", "{box: [0, 0, 1, 1], prompt: ''}"):
        file.write_text(f"dog: {value}")
        with pytest.raises(OptionError, match=r"regions\.yaml"):
            read_regions(file)
    for content in ("", "- dog", "dog: 3", "dog: [0, 0, 1]", "3: [0, 0, 1, 1]", "dog: [0, 0, 1, {}]", "dog: ["):
        file.write_text(content)
        with pytest.raises(OptionError, match=r"regions\.yaml"):
            read_regions(file)
    with pytest.raises(OptionError, match="cannot be read"):
        read_regions(tmp_path / "none.yaml")
    with pytest.raises(OptionError, match="it is not a regular file"):
        read_regions(tmp_path)


def test_the_region_of_a_token_is_that_of_its_subject() -> None:
    regions = [Region(words="<rex>", box=(0, 0, 0.5, 1)), RIGHT]
    widened = of_subjects(regions, ["<rex> dog", "<cat> cat"], ["a <rex> dog", "a <rex> dog and a dog"])
    assert [region.words for region in widened] == ["<rex> dog", "dog"]
    assert [region.words for region in of_subjects(regions, ["<rex> dog"], ["a <rex>"])] == ["<rex>", "dog"]
    assert of_subjects(regions, ["<rex> dog"], ["a <rex> doghouse"]) == regions
    assert of_subjects(regions, [""], ["a <rex> dog"]) == regions  # as of another program's file, which names nothing


def test_regions_that_cannot_hold_are_refused_before_anything_is_drawn(tiny: Backbone) -> None:
    def refused(match: str, *regions: Region) -> None:
        with pytest.raises(OptionError, match=match):
            sample_in_regions(tiny, [PROMPT], seeds=[0], regions=regions)

    refused("lacks 'cat', which has a region", Region(words="cat", box=(0, 0, 1, 1)))
    refused("lacks 'bear', which has a region", replace(LEFT, words="bear"), replace(RIGHT, words="red bear"))
    with pytest.raises(TokenError, match=r"The prompt of a region .* uses the unknown token '<rex>'"):
        sample_in_regions(tiny, [PROMPT], seeds=[0], regions=[replace(LEFT, prompt="a <rex> dog")])
    refused("'red bear' lies wholly in that of 'dog'", LEFT, Region(words="dog", box=(0, 0, 1, 1)))
    for wrong in ({"softness": -0.1}, {"share": 1.1}):
        with pytest.raises(OptionError):
            RegionOptions(**wrong)
