from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moongate.backbone import Backbone
from moongate.data import Regularization, Subject
from moongate.data.pictures import as_tensor
from moongate.errors import OptionError
from moongate.training import batches as batches_module
from moongate.training.batches import Batch, Batches, encoded_at_once
from moongate.training.method import METHODS
from moongate.training.plan import Plan, TrainOptions

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


def numbered(subject: Subject) -> Subject:
    """The subject with its pictures counted in their captions."""
    captions = (f"{caption} {index}" for index, caption in enumerate(subject.captions))
    return replace(subject, captions=tuple(captions))


def planned(backbone: Backbone, subjects: list[Subject], priors: list[Regularization], **options: object) -> Plan:
    method = METHOD if priors else METHODS["custom-diffusion-without-regularization"]
    return Plan.of(backbone, subjects, priors, method, options=TrainOptions(**options))


def batches_of(
    backbone: Backbone, subjects: list[Subject], priors: list[Regularization], *, first: int = 0, **options: object
) -> Iterator[Batch]:
    """The batches of all steps, one a step, with the tokens in use."""
    plan = planned(backbone, subjects, priors, **options)
    with backbone.tokens(plan.first_rows):
        for (batch,) in Batches(plan, first=first):
            yield batch


def captions_of(batch: Batch) -> list[str]:
    return [batch.captions[row] for row in batch.caption_rows]


def test_a_batch_depends_on_the_seed_and_the_step_alone(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    whole = list(batches_of(tiny, [make_subject()], [prior], batch=2, steps=7))
    later = list(batches_of(tiny, [make_subject()], [prior], batch=2, steps=9, first=5))
    assert (len(whole), len(later)) == (7, 4)
    one, two = whole[5], later[0]
    for name in ("latents", "masks", "noise", "timesteps", "counted"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert captions_of(one) == captions_of(two)
    other = list(batches_of(tiny, [make_subject()], [prior], batch=2, steps=6, seed=1))[5]
    assert not torch.equal(one.latents, other.latents)
    assert not torch.equal(one.noise, other.noise)


def test_each_step_has_another_augmentation_and_noise_at_levels_of_the_whole_schedule(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    found = list(batches_of(tiny, [make_subject(count=1)], [prior], batch=1, steps=40))
    framings, noises = (
        len({getattr(batch, name)[0].numpy().tobytes() for batch in found}) for name in ("latents", "noise")
    )
    assert framings > 25, "on eight cells a framing comes again now and then"
    assert noises == 40
    assert all(not torch.equal(*batch.noise) for batch in found), "each picture of a step has its own"
    levels = torch.cat([batch.timesteps for batch in found]).double()
    assert 0 <= levels.min() < 0.1 * tiny.train_timesteps
    assert 0.9 * tiny.train_timesteps < levels.max() < tiny.train_timesteps
    noise = torch.stack([batch.noise for batch in found])
    assert noise.mean().abs() < 0.03  # of 20480 numbers; the standard error is 0.007
    assert noise.std() == pytest.approx(1, abs=0.03)


def test_every_picture_of_a_subject_is_shown_once_in_each_pass(tiny: Backbone, make_subject: MakeSubject) -> None:
    batches = batches_of(tiny, [numbered(make_subject(count=5))], [], batch=1, steps=20)
    shown = [captions_of(batch)[0][-1] for batch in batches]
    for begin in range(0, 20, 5):
        assert sorted(shown[begin : begin + 5]) == list("01234")
    assert shown[:5] != shown[5:10]


def test_subjects_take_turns_however_many_pictures_they_have(tiny: Backbone, make_subject: MakeSubject) -> None:
    subjects = [numbered(make_subject("<one>", count=2)), numbered(make_subject("<two>", count=6))]
    batches = batches_of(tiny, subjects, [], batch=3, steps=8)
    captions = [caption for batch in batches for caption in captions_of(batch)]
    tokens = ["<one>" if "<one>" in caption else "<two>" for caption in captions]
    assert tokens == ["<one>", "<two>"] * 12
    counts = Counter(caption[caption.index("<") :] for caption in captions)
    assert sorted(counts.values()) == [2] * 6 + [6] * 2


def test_a_batch_has_as_many_regularization_pictures_of_the_same_subjects(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    white = replace(prior, pictures=tuple(picture * 0 + 255 for picture in prior.pictures))
    subjects = [make_subject("<one>"), make_subject("<two>", category="cat")]
    (batch,) = batches_of(tiny, subjects, [prior, white], batch=4, steps=1)
    assert batch.masks.shape == (4, 1, 8, 8)
    assert batch.latents.shape == batch.noise.shape == (8, 4, 8, 8)
    assert len(captions_of(batch)) == len(batch.prior_text) == 4
    with torch.no_grad():
        expected = tiny.encode_images(torch.ones(1, 3, 64, 64))[0]
    is_white = [torch.allclose(latents, expected, atol=1e-5) for latents in batch.latents[4:]]
    assert is_white == [False, True, False, True]


def test_each_picture_of_a_batch_comes_with_its_own_caption(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    """Whole pictures in ten shades of gray, five of them targets, so that their latents tell which each one is."""
    shades = tuple(np.full((64, 64, 3), 25 * number, dtype=np.uint8) for number in range(10))
    subject = replace(numbered(make_subject(count=5)), pictures=shades[:5])
    others = replace(prior, pictures=shades[5:])
    method = METHODS["custom-diffusion-without-augmentation"]
    plan = Plan.of(tiny, [subject], [others], method, options=TrainOptions(batch=2, steps=5))
    with tiny.tokens(plan.first_rows), torch.no_grad():
        latents = tiny.encode_images(as_tensor(np.stack(shades)))
        features = tiny.encode_text([*subject.captions, *others.captions]).features
        batches, shown = Batches(plan), []
        for (batch,) in batches:
            for one, read in zip(batch.latents, batches.text(batch).features, strict=True):
                distances = (latents - one).flatten(1).norm(dim=1)
                shown.append(int(distances.argmin()))
                assert distances.sort().values[1] > 100 * distances.min()
                torch.testing.assert_close(read, features[shown[-1]])
    assert sorted(shown) == sorted([*range(10)] * 2), "two passes of each"


def test_a_method_without_regularization_has_none_in_its_batches(tiny: Backbone, make_subject: MakeSubject) -> None:
    (batch,) = batches_of(tiny, [make_subject()], [], batch=2, steps=1)
    assert batch.prior_text is None
    assert len(batch.latents) == len(batch.masks) == 2


def test_target_latents_are_those_of_the_augmented_pictures(
    tiny: Backbone, make_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture is encoded alone here, and in chunks by the batches."""
    shown: list[torch.Tensor] = []
    real = batches_module.framed
    monkeypatch.setattr(batches_module, "framed", lambda *a, **k: shown.append(real(*a, **k).image) or real(*a, **k))
    found = list(batches_of(tiny, [make_subject()], [], batch=2, steps=3))
    assert len(shown) == 6
    for batch, images in zip(found, (shown[:2], shown[2:4], shown[4:]), strict=True):
        alone = torch.cat([tiny.encode_images(image[None]) for image in images])
        torch.testing.assert_close(batch.latents, alone, rtol=1e-4, atol=1e-5)


def test_equal_pictures_are_encoded_once_in_a_run(
    tiny: Backbone, make_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    real = tiny.encode_images
    monkeypatch.setattr(tiny, "encode_images", lambda images: encoded.append(len(images)) or real(images))
    method = METHODS["textual-inversion"]
    plan = Plan.of(tiny, [make_subject(count=3)], [], method, options=TrainOptions(batch=2, steps=30))
    with tiny.tokens(plan.first_rows):
        assert len(list(Batches(plan))) == 30
    assert encoded == [2, 2]  # three pictures without augmentation, two at once


def test_a_large_batch_is_encoded_in_parts(
    tiny: Backbone, make_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    real = tiny.encode_images
    whole = [batch.latents for batch in batches_of(tiny, [make_subject(count=4)], [], batch=4, steps=2)]
    monkeypatch.setattr(tiny, "encode_images", lambda images: encoded.append(len(images)) or real(images))
    monkeypatch.setattr(batches_module, "PIXELS_AT_ONCE", 2 * 64 * 64)
    parts = [batch.latents for batch in batches_of(tiny, [make_subject(count=4)], [], batch=4, steps=2)]
    assert encoded == [2] * 4
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_latents_of_a_long_run_are_kept_in_a_file(
    tiny: Backbone, make_subject: MakeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"batch": 2, "steps": 4, "run_folder": tmp_path}
    in_memory = list(batches_of(tiny, [make_subject()], [], **chosen))
    files: list[str] = []
    real = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda name, **kwargs: files.append(name) or real(name, **kwargs))
    monkeypatch.setattr(batches_module, "BYTES_IN_MEMORY", 100)
    in_file = list(batches_of(tiny, [make_subject()], [], **chosen))
    assert [Path(name).parent for name in files] == [tmp_path]
    assert not list(tmp_path.iterdir()), "the file goes with the process"
    assert all(torch.equal(one.latents, two.latents) for one, two in zip(in_memory, in_file, strict=True))

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OptionError, match=r"latents of \d+ target pictures take .* has no room for"):
        list(batches_of(tiny, [make_subject()], [], **chosen))


def test_captions_are_read_once_a_step_and_not_at_all_if_no_token_is_trained(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []
    real = tiny.encode_text
    monkeypatch.setattr(tiny, "encode_text", lambda captions: read.append(list(captions)) or real(captions))
    chosen = TrainOptions(batch=2, steps=1)
    for name, expected in (
        ("custom-diffusion-without-augmentation", [["photo of a <bear> bear"]]),  # both pictures have this caption
        ("custom-diffusion-fixed-token", []),
    ):
        plan = Plan.of(tiny, [make_subject()], [prior], METHODS[name], options=chosen)
        with tiny.tokens(plan.first_rows), torch.no_grad():
            batches = Batches(plan)
            ((batch,),) = batches
            before = len(read)
            features = batches.text(batch).features
            assert read[before:] == expected
            everything = [batch.captions[row] for row in batch.caption_rows] if expected else list(batch.captions)
            torch.testing.assert_close(features[: len(everything)], real(everything).features)


def test_the_shards_of_a_step_are_parts_of_the_whole_one(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    (whole,) = batches_of(tiny, [make_subject()], [prior], batch=4, steps=1)
    plan = planned(tiny, [make_subject()], [prior], batch=4, steps=1, shards=2)
    with tiny.tokens(plan.first_rows):
        ((one, two),) = Batches(plan)
    for name in ("latents", "noise", "timesteps"):
        parts = [getattr(shard, name) for shard in (one, two)]
        joined = torch.cat([parts[0][:2], parts[1][:2], parts[0][2:], parts[1][2:]])
        assert torch.equal(joined, getattr(whole, name)), name
    assert torch.equal(torch.cat([one.masks, two.masks]), whole.masks)
    assert one.counted == two.counted == whole.counted == 4 * whole.masks.sum()
    assert captions_of(one) + captions_of(two) == captions_of(whole)


def test_fewer_large_pictures_are_encoded_together() -> None:
    assert [encoded_at_once(side) for side in (64, 128, 256, 512, 768, 1024)] == [16, 16, 8, 2, 1, 1]
