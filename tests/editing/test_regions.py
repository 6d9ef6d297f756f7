from pathlib import Path

import numpy as np
import pytest
import torch

from editing_making import SAMPLING, concept_of
from moongate.backbone import Backbone
from moongate.backbone.attention import recorded
from moongate.editing.regions import (
    Region,
    RegionOptions,
    box_weights,
    of_subjects,
    parse_region,
    read_regions,
    sample_in_regions,
)
from moongate.errors import OptionError
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
    across = [1, 1, 1, 0.75, 0.25, 1e-4, 1e-4, 1e-4]
    assert weights[3].tolist() == pytest.approx(across)
    assert weights[:, 0].tolist() == pytest.approx([1e-4, 1, 1, 1])
    hard = box_weights((0, 0, 0.5, 1), (1, 4), softness=0)
    assert hard[0].tolist() == pytest.approx([1, 1, 1e-4, 1e-4])


def test_a_word_is_attended_to_inside_its_region_only(tiny: Backbone) -> None:
    """The score of a word outside is lowered before the softmax, so the other words of the prompt take its share."""
    seen: dict[str, torch.Tensor] = {}
    plain = torch.nn.functional.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        if "attn_mask" in rest and query.shape[2] == 64:
            eye = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
            seen["maps"] = plain(query, key, eye, **rest).mean((0, 1))
        return plain(query, key, value, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moongate.editing.regions.attention", attention)
        drawn(tiny, [LEFT, RIGHT], [PROMPT], softness=0)
    maps = seen["maps"].T.unflatten(1, (8, 8))  # one for each token
    dog = tiny.words(PROMPT)[-1][1]
    assert max(maps[[2, 3], :, 4:].max(), maps[dog, :, :4].max()) < 1e-3
    assert min(maps[[2, 3], :, :4].min(), maps[dog, :, 4:].min()) > 1e-2
    torch.testing.assert_close(maps.sum(0), torch.ones(8, 8))


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
    for content in ("", "- dog", "dog: 3", "dog: [0, 0, 1]", "3: [0, 0, 1, 1]", "dog: [0, 0, 1, {}]", "dog: ["):
        file.write_text(content)
        with pytest.raises(OptionError, match=r"regions\.yaml"):
            read_regions(file)
    with pytest.raises(OptionError, match="cannot be read"):
        read_regions(tmp_path / "none.yaml")


def test_the_region_of_a_token_is_that_of_its_subject() -> None:
    regions = [Region(words="<rex>", box=(0, 0, 0.5, 1)), RIGHT]
    widened = of_subjects(regions, ["<rex> dog", "<cat> cat"], ["a <rex> dog", "a <rex> dog and a dog"])
    assert [region.words for region in widened] == ["<rex> dog", "dog"]
    assert [region.words for region in of_subjects(regions, ["<rex> dog"], ["a <rex>"])] == ["<rex>", "dog"]


def test_regions_that_cannot_hold_are_refused_before_anything_is_drawn(tiny: Backbone) -> None:
    def refused(match: str, *regions: Region) -> None:
        with pytest.raises(OptionError, match=match):
            sample_in_regions(tiny, [PROMPT], seeds=[0], regions=regions)

    refused(
        "lacks 'cat', which has a region. Its words: a, red, bear, and, a, dog", Region(words="cat", box=(0, 0, 1, 1))
    )
    refused("'red bear' lies wholly in that of 'dog'", LEFT, Region(words="dog", box=(0, 0, 1, 1)))
    for wrong in ({"softness": -0.1}, {"share": 1.1}):
        with pytest.raises(OptionError):
            RegionOptions(**wrong)
