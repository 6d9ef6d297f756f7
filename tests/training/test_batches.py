from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch

from moongate.backbone import Backbone
from moongate.data import Regularization, Subject
from moongate.training.batches import Batches
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


def test_a_batch_depends_on_the_seed_and_the_step_alone(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    first = Batches(planned(tiny, [make_subject()], [prior], batch=2))
    second = Batches(planned(tiny, [make_subject()], [prior], batch=2))
    for _ in range(3):
        first.draw(0)
    one, two = first.draw(5), second.draw(5)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.masks, two.masks)
    assert torch.equal(one.prior.latents, two.prior.latents)
    assert one.captions == two.captions
    other = Batches(planned(tiny, [make_subject()], [prior], batch=2, seed=1)).draw(5)
    assert not torch.equal(one.images, other.images)


def test_every_picture_of_a_subject_is_shown_once_in_each_pass(tiny: Backbone, make_subject: MakeSubject) -> None:
    batches = Batches(planned(tiny, [numbered(make_subject(count=5))], [], batch=1))
    shown = [batches.draw(index).captions[0][-1] for index in range(20)]
    for begin in range(0, 20, 5):
        assert sorted(shown[begin : begin + 5]) == list("01234")
    assert shown[:5] != shown[5:10]


def test_subjects_take_turns_however_many_pictures_they_have(tiny: Backbone, make_subject: MakeSubject) -> None:
    subjects = [numbered(make_subject("<one>", count=2)), numbered(make_subject("<two>", count=6))]
    batches = Batches(planned(tiny, subjects, [], batch=3))
    captions = [caption for index in range(8) for caption in batches.draw(index).captions]
    tokens = ["<one>" if "<one>" in caption else "<two>" for caption in captions]
    assert tokens == ["<one>", "<two>"] * 12
    counts = Counter(caption[caption.index("<") :] for caption in captions)
    assert sorted(counts.values()) == [2] * 6 + [6] * 2


def test_a_batch_has_as_many_regularization_pictures_of_the_same_subjects(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    white = replace(prior, pictures=tuple(picture * 0 + 255 for picture in prior.pictures))
    subjects = [make_subject("<one>"), make_subject("<two>", category="cat")]
    batch = Batches(planned(tiny, subjects, [prior, white], batch=4)).draw(0)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.masks.shape == (4, 1, 8, 8)
    assert len(batch.captions) == len(batch.prior) == len(batch.prior.text) == 4
    with torch.no_grad():
        expected = tiny.encode_images(torch.ones(1, 3, 64, 64))[0]
    is_white = [torch.allclose(latents, expected, atol=1e-5) for latents in batch.prior.latents]
    assert is_white == [False, True, False, True]


def test_a_method_without_regularization_has_none_in_its_batches(tiny: Backbone, make_subject: MakeSubject) -> None:
    assert Batches(planned(tiny, [make_subject()], [])).draw(0).prior is None
