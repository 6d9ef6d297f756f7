"""Edits through the door: what stays, what changes, and what is refused before anything is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from editing_making import SAMPLING, SOURCE, concept_of, photo_of_blocks
from moongate.backbone import Backbone
from moongate.data.pictures import as_pixels, as_tensor
from moongate.editing import Edit, Edited, EditOptions, edit
from moongate.errors import BaseMismatchError, MoongateWarning, OptionError, TokenError
from moongate.sampling import SCHEDULERS, SampleOptions, sample

TARGET = "photo of a red dog"


def made(backbone: Backbone, one: Edit, sampling: SampleOptions = SAMPLING, **options: object) -> Edited:
    concept = options.pop("concept", None)
    (edited,) = edit(backbone, [one], concept=concept, options=EditOptions(**options), sampling=sampling)
    return edited


def drawn(backbone: Backbone, prompt: str, seed: int, sampling: SampleOptions = SAMPLING) -> np.ndarray:
    (picture,) = sample(backbone, [prompt], seeds=[seed], options=sampling)
    return picture.image


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def decoded(backbone: Backbone, photo: np.ndarray) -> np.ndarray:
    """A photo as the autoencoder gives it back."""
    return as_pixels(backbone.decode_latents(backbone.encode_images(as_tensor(photo[None]))))[0]


# --- drawn pictures ---------------------------------------------------------------------------------------------------


def test_the_same_prompt_gives_the_same_picture_bit_for_bit(each: Backbone) -> None:
    edited = made(each, Edit(source=SOURCE, target=SOURCE, seed=3), cross_share=1, self_share=1)
    assert np.array_equal(edited.source, drawn(each, SOURCE, 3))
    assert np.array_equal(edited.image, edited.source)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_any_scheduler_draws_both_branches_with_the_same_noise(tiny: Backbone, scheduler: str, guidance: float) -> None:
    sampling = replace(SAMPLING, scheduler=scheduler, guidance=guidance)
    edited = made(tiny, Edit(source=SOURCE, target=SOURCE, seed=1), sampling)
    assert np.array_equal(edited.source, drawn(tiny, SOURCE, 1, sampling))
    assert np.array_equal(edited.image, edited.source)


def test_without_control_the_target_is_drawn_as_its_prompt_alone_would_be(each: Backbone) -> None:
    edited = made(each, Edit(source=SOURCE, target=TARGET, seed=3), cross_share=0, self_share=0)
    assert np.array_equal(edited.image, drawn(each, TARGET, 3))
    controlled = made(each, Edit(source=SOURCE, target=TARGET, seed=3), cross_share=1, self_share=1)
    assert not np.array_equal(controlled.image, edited.image)


def test_several_edits_of_a_batch_are_made_as_each_alone_at_any_aspect(tiny: Backbone) -> None:
    sampling = replace(SAMPLING, width_px=104, height_px=56)
    edits = [
        Edit(source=SOURCE, target=TARGET, seed=1),
        Edit(source="a cat", target="a very small cat on a chair", seed=2, reweight={"small": 3.0}),
        Edit(source="a cat on a chair", target="a dog on a chair", seed=3, blend=("dog",)),
    ]
    together = list(edit(tiny, edits, sampling=sampling))
    assert [edited.edit for edited in together] == edits
    for one, edited in zip(edits, together, strict=True):
        alone = made(tiny, one, sampling)
        assert alone.image.shape == (56, 104, 3)
        assert distance(alone.image, edited.image) < 0.1
        assert distance(alone.image, alone.source) > 0.1


def test_a_concept_acts_on_the_target_alone_unless_the_source_names_its_token(each: Backbone) -> None:
    concept = concept_of(each)
    edited = made(
        each, Edit(source="a dog", target="a <rex> dog", seed=1), concept=concept, cross_share=0, self_share=0
    )
    assert np.array_equal(edited.source, drawn(each, "a dog", 1))
    with concept.applied(each):
        alone, before = drawn(each, "a <rex> dog", 1), drawn(each, "a red <rex> dog", 1)
    assert np.array_equal(edited.image, alone)
    both = made(each, Edit(source="a red <rex> dog", target="a <rex> dog", seed=1), concept=concept)
    assert np.array_equal(both.source, before)


def test_a_negative_prompt_names_the_concept_only_if_every_source_does(tiny: Backbone) -> None:
    concept, sampling = concept_of(tiny), replace(SAMPLING, negative_prompt="a <rex>")
    both = Edit(source="a red <rex> dog", target="a <rex> dog", seed=1)
    assert made(tiny, both, sampling, concept=concept).image.shape == (64, 64, 3)
    with pytest.raises(TokenError, match="negative prompt 'a <rex>' uses '<rex>', but a source prompt names no token"):
        edit(tiny, [both, Edit(source="a dog", target="a <rex> dog")], concept=concept, sampling=sampling)


def test_a_blend_leaves_everything_as_it_was_where_its_words_do_not_look(tiny: Backbone) -> None:
    everywhere = made(tiny, Edit(source=SOURCE, target=TARGET, seed=1))
    one = Edit(source=SOURCE, target=TARGET, seed=1, blend=("bear", "dog"))
    blended = made(tiny, one, blend_threshold=0.97, blend_from=0)
    same, usual = ((edited.image == edited.source).all(2).mean() for edited in (blended, everywhere))
    assert usual < same < 1
    nowhere = made(tiny, Edit(source=SOURCE, target=TARGET, seed=1, blend=("dog",)), blend_threshold=1)
    assert np.array_equal(nowhere.image, nowhere.source)
    late = made(tiny, replace(one, blend=("dog",)), blend_threshold=1, blend_from=1)
    assert np.array_equal(late.image, everywhere.image), "before a blend begins, all of the picture may change"


def test_maps_of_the_words_of_both_branches_are_kept_when_asked_for(tiny: Backbone) -> None:
    plain = made(tiny, Edit(source=SOURCE, target="photo of a red teddy bear", seed=1))
    edited = made(tiny, Edit(source=SOURCE, target="photo of a red teddy bear", seed=1), keeps_maps=True)
    assert np.array_equal(edited.image, plain.image)
    assert not plain.source_maps
    assert [word for word, _ in edited.source_maps] == SOURCE.split()
    assert [word for word, _ in edited.target_maps] == ["photo", "of", "a", "red", "teddy", "bear"]
    assert all(where.shape == (8, 8) and where.max() == 1 for _, where in edited.target_maps)
    full = made(tiny, Edit(source=SOURCE, target=TARGET, seed=1), keeps_maps=True, cross_share=1)
    for (_, source), (_, target) in zip(full.source_maps, full.target_maps, strict=True):
        np.testing.assert_allclose(target, source, atol=1e-5)  # each word looks where that of the source does


def test_the_processors_and_weights_come_back_after_an_error(tiny: Backbone) -> None:
    before = list(tiny.unet.attn_processors.values())

    def fail() -> None:
        raise RuntimeError

    edits = edit(tiny, [Edit(source="a dog", target="a <rex> dog")], concept=concept_of(tiny), on_step=fail)
    with pytest.raises(RuntimeError):
        next(edits)
    assert all(now is then for now, then in zip(tiny.unet.attn_processors.values(), before, strict=True))


# --- photos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inversion", "scheduler"), [("direct", "ddim"), ("edit-friendly", "ddpm")])
def test_a_photo_that_is_not_edited_comes_back_up_to_the_autoencoders_own_error(
    each: Backbone, inversion: str, scheduler: str
) -> None:
    photo = photo_of_blocks()
    one = Edit(source=SOURCE, target=SOURCE, picture=photo)
    edited = made(each, one, replace(SAMPLING, scheduler=scheduler), inversion=inversion)
    assert np.array_equal(edited.source, photo)
    assert np.abs(edited.image.astype(int) - decoded(each, photo)).max() <= 1


@pytest.mark.parametrize("scheduler", ["euler", "dpm++", "euler-ancestral"])
def test_schedulers_of_other_scales_find_photos_as_well(tiny: Backbone, scheduler: str) -> None:
    one = Edit(source=SOURCE, target=SOURCE, picture=photo_of_blocks())
    for inversion in ("direct", "edit-friendly"):
        edited = made(tiny, one, replace(SAMPLING, scheduler=scheduler), inversion=inversion)
        assert np.abs(edited.image.astype(int) - decoded(tiny, photo_of_blocks())).max() <= 1


def test_edit_friendly_ddpm_skips_a_share_of_the_steps_but_never_all(tiny: Backbone) -> None:
    one = Edit(source=SOURCE, target=TARGET, picture=photo_of_blocks())
    for steps, skip, left in ((5, 0.4, 3), (3, 0.0, 3), (2, 0.5, 1), (3, 0.99, 1), (1, 0.8, 1)):
        count: list[None] = []
        sampling = replace(SAMPLING, scheduler="ddpm", steps=steps)
        options = EditOptions(inversion="edit-friendly", skip=skip)
        list(edit(tiny, [one], options=options, sampling=sampling, on_step=lambda count=count: count.append(None)))
        assert len(count) == left


def test_an_edited_photo_keeps_its_own_pixels_outside_the_mask(tiny: Backbone) -> None:
    photo, mask = photo_of_blocks(), np.zeros((64, 64), np.uint8)
    mask[16:40, 8:32] = 255
    edited = made(tiny, Edit(source=SOURCE, target=TARGET, picture=photo, mask=mask))
    assert np.array_equal(edited.image[mask == 0], photo[mask == 0])
    assert distance(edited.image[mask > 0], photo[mask > 0]) > 1


def test_a_photo_with_a_concept_is_found_with_the_base_weights(tiny: Backbone) -> None:
    """With a concept that does nothing to the target either, its token being the category's own row."""
    photo, concept = photo_of_blocks(), concept_of(tiny)
    one = Edit(source="photo of a dog", target="photo of a <rex> dog", picture=photo)
    assert distance(made(tiny, one, concept=concept).image, made(tiny, one, concept=concept.scaled(0)).image) > 0.1
    named = Edit(source="photo of a <rex> dog", target="photo of a <rex> dog", picture=photo)
    assert np.abs(made(tiny, named, concept=concept).image.astype(int) - decoded(tiny, photo)).max() <= 1


def test_a_photo_that_does_not_fit_is_cropped_and_it_is_said(tiny: Backbone) -> None:
    photo = np.random.default_rng(1).integers(0, 255, (67, 75, 3), dtype=np.uint8)
    with pytest.warns(MoongateWarning, match=r"75 x 67 pixels.*Cropped to 72 x 64"):
        edited = made(tiny, Edit(source=SOURCE, target=SOURCE, picture=photo, mask=np.full((67, 75), 255, np.uint8)))
    assert np.array_equal(edited.source, photo[1:65, 1:73])
    large = np.random.default_rng(1).integers(0, 255, (300, 600, 3), dtype=np.uint8)
    with pytest.warns(MoongateWarning, match=r"600 x 300 pixels.*Resized and cropped to 88 x 40"):
        assert made(tiny, Edit(source=SOURCE, target=TARGET, picture=large)).image.shape == (40, 88, 3)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_edited_is_refused_before_anything_is_drawn(tiny: Backbone, other_folder: object) -> None:
    def refused(error: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(error, match=match):
            edit(tiny, [replace(Edit(source=SOURCE, target=TARGET), **changes)])

    refused(OptionError, "no word in common", target="in the chair")
    refused(OptionError, r"'green', whose attention.*photo, of, a, red, dog", reweight={"green": 2.0})
    refused(OptionError, r"'green', where the picture may change, is in neither", blend=("green",))
    refused(OptionError, "weight of 'red' is nan", reweight={"red": float("nan")})
    refused(TokenError, "unknown token '<rex>'", target="photo of a <rex> dog")
    refused(OptionError, "mask has 8 x 8 pixels, and the picture 64 x 64", picture=photo_of_blocks(),
            mask=np.ones((8, 8), np.uint8))  # fmt: skip
    refused(
        OptionError,
        "2400 x 16 pixels, and is too narrow: the model would draw 784 x 8",
        picture=np.zeros((16, 2400, 3), np.uint8),
    )
    refused(OptionError, "mask has 8 x 8 pixels, and the picture is drawn", mask=np.ones((8, 8), np.uint8))
    refused(OptionError, "mask is black", picture=photo_of_blocks(), mask=np.zeros((64, 64), np.uint8))
    refused(OptionError, "mask is black", mask=np.full((64, 64), 127, np.uint8))
    refused(OptionError, "seed 36893488147419103232 is out of range", seed=2**65)
    for sampling, error, match in (
        (SampleOptions(width_px=65), OptionError, "side of 65 px is not a positive multiple"),
        (SampleOptions(negative_prompt="a <rex>"), TokenError, "negative prompt 'a <rex>' uses the unknown token"),
    ):
        with pytest.raises(error, match=match):
            edit(tiny, [Edit(source=SOURCE, target=TARGET)], sampling=sampling)
    with pytest.raises(OptionError, match="Unknown scheduler"):
        edit(tiny, [Edit(source=SOURCE, target=TARGET)], sampling=SampleOptions(scheduler="none"))
    other = Backbone.load(str(other_folder), device="cpu")
    with pytest.raises(BaseMismatchError):
        edit(tiny, [Edit(source=SOURCE, target=TARGET)], concept=concept_of(other))
    for share in ({"cross_share": 1.1}, {"self_share": -0.1}, {"skip": 1.0}, {"blend_threshold": float("nan")}):
        with pytest.raises(OptionError):
            EditOptions(**share)


# --- pocket -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_full_injection_the_layout_stays() -> None:
    """A penguin instead of a car, on pocket: with control the picture stays nearer to where the car was."""
    pocket = Backbone.load("pocket", device="cpu")
    sampling = SampleOptions(steps=10, scheduler="ddim")
    edits = [Edit(source=f"photo of a car {place}", target=f"photo of a penguin {place}", seed=seed)
             for seed, place in enumerate(("on the beach", "in the snow", "in a forest", "in a meadow"))]  # fmt: skip
    distances = []
    for share in (1.0, 0.0):
        options = EditOptions(cross_share=share, self_share=share)
        pictures = edit(pocket, edits, options=options, sampling=sampling)
        distances.append([_edges_apart(edited.source, edited.image) for edited in pictures])
    assert np.mean(distances[0]) < 0.8 * np.mean(distances[1])


def _edges_apart(one: np.ndarray, other: np.ndarray) -> float:
    """How differently edges lie in two pictures, whatever their colors."""
    gray = torch.from_numpy(np.stack([one, other])).float().mean(3)[:, None]
    edges = torch.nn.functional.avg_pool2d((gray - torch.nn.functional.avg_pool2d(gray, 5, 1, 2)).abs(), 8).flatten(1)
    return float(1 - torch.nn.functional.cosine_similarity(edges[0], edges[1], dim=0))
