import pytest
import torch

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


def test_pictures_go_to_the_mean_that_points_in_their_direction() -> None:
    subject = torch.tensor([[1.0, 0.1], [10.0, -1.0]])
    others = torch.tensor([[0.1, 1.0], [-0.1, 0.2]])
    held_out = torch.tensor([[1.0, 0.2], [0.2, 1.0]]), torch.tensor([[0.0, 1.0]])
    judge = Judge.fit(subject, others, held_out=held_out)
    assert judge.is_subject(torch.tensor([[5.0, 1], [0.1, 0.9], [0.02, 0.01]])).tolist() == [True, False, True]
    assert judge.accuracy == 0.75  # half of the subject, all of the others
    torch.testing.assert_close(judge.means.norm(dim=1), torch.ones(2))


def test_real_pictures_that_are_not_in_the_means_are_judged_correctly(clip: Clip) -> None:
    example = pocket.example("drawn-teapot")
    judge = example_judge(example, pool(example), clip)
    assert judge is not None
    assert judge.accuracy >= 0.9
    unseen = [read_picture(path) for path in find_pictures(example.evaluation)[1::2]]
    assert judge.is_subject(clip.pictures(unseen)).float().mean() >= 0.9


def test_there_is_no_judge_when_the_pool_has_no_others_in_the_style(clip: Clip) -> None:
    example = pocket.example("teddyBear")
    assert example_judge(example, pool(example), clip) is None
