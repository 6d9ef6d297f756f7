import pytest
import torch
from torch.nn import functional as F

from moongate import pocket
from moongate.data import Regularization
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.demo.judge import Judge, example_judge
from moongate.evaluation.networks.clip import Clip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load("pocket")


def pool(example: pocket.Example) -> Regularization:
    return Regularization.load(pocket.pool_folder(), category=example.category, only_category=True)


def test_pictures_go_to_the_class_that_points_in_their_direction() -> None:
    subject = torch.tensor([[1.0, 0.1], [10.0, -1.0]])
    others = torch.tensor([[0.1, 1.0], [-0.1, 1.0]])
    held_out = torch.tensor([[1.0, 0.2], [0.2, 1.0]]), torch.tensor([[0.0, 1.0]])
    judge = Judge.fit(subject, others, held_out=held_out)
    assert judge.is_subject(torch.tensor([[5.0, 1], [0.1, 0.9], [0.02, 0.01]])).tolist() == [True, False, True]
    assert judge.accuracy == 0.75  # half of the subject, all of the others


def test_a_difference_within_both_classes_counts_less_than_one_between_them() -> None:
    """The second feature is a place: the subject is on one side in two of three pictures, and others on the other."""

    def shown(identity: float, *places: float) -> torch.Tensor:
        return torch.stack([torch.tensor([identity, place, 3.0, *[0.0] * 20]) for place in places])

    subject, others = shown(0.4, 1, 1, -1), shown(0.0, -1, -1, 1)
    elsewhere = torch.cat([shown(0.4, -1), shown(0.0, 1)])
    judge = Judge.fit(subject, others, held_out=(subject, others))
    assert judge.is_subject(elsewhere).tolist() == [True, False]
    means = F.normalize(torch.stack([F.normalize(one).mean(0) for one in (subject, others)]))
    assert (F.normalize(elsewhere) @ means.T).argmax(1).tolist() == [1, 0]  # the nearer mean goes by the place


def test_the_discriminant_is_half_way_between_classes_of_unequal_size(clip: Clip) -> None:
    example = pocket.example("drawn-teapot")
    features = F.normalize(clip.pictures([read_picture(path) for path in find_pictures(example.evaluation)]))
    subject, others = features[:12], -features[12:16]
    judge = Judge.fit(subject, others, held_out=(subject, others))
    scores = [float((one @ judge.direction).mean()) for one in (subject, others)]
    assert judge.threshold == pytest.approx(sum(scores) / 2, rel=1e-3)


def test_real_pictures_that_the_discriminant_has_not_seen_are_judged_correctly(clip: Clip) -> None:
    example = pocket.example("drawn-teapot")
    judge = example_judge(example, pool(example), clip)
    assert judge is not None
    assert judge.accuracy >= 0.9
    unseen = [read_picture(path) for path in find_pictures(example.evaluation)[1::2]]
    assert judge.is_subject(clip.pictures(unseen)).float().mean() >= 0.9


def test_there_is_no_judge_when_the_pool_has_no_others_in_the_style(clip: Clip) -> None:
    example = pocket.example("teddyBear")
    assert example_judge(example, pool(example), clip) is None
