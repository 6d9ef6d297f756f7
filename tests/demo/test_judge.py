from typing import cast

import numpy as np
import torch

from moongate import pocket
from moongate.data import Regularization
from moongate.data.pictures import find_pictures, read_picture
from moongate.demo.judge import Judge
from moongate.evaluation.networks.clip import PocketClip


class Brightness:
    """Stands in for pocket CLIP: red and green as two features."""

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, :2]


def pool(example: pocket.Example) -> Regularization:
    return Regularization.load(pocket.pool_folder(), category=example.category, only_category=True)


def test_a_picture_is_seen_as_what_its_features_are_nearer_to() -> None:
    judge = Judge(clip=cast(PocketClip, Brightness()), means=torch.tensor([[1.0, -1], [-1, 1]]), right=1.0)
    red, green = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    red[..., 0] = green[..., 1] = 200
    assert judge.sees([red, green, red]).tolist() == [True, False, True]


def test_real_pictures_are_told_right_that_the_means_do_not_hold() -> None:
    example = pocket.example("drawn-teapot")
    judge = Judge.of(example, pool(example))
    assert judge is not None
    assert judge.right >= 0.9
    unseen = [read_picture(path) for path in find_pictures(example.evaluation)[1::2]]
    assert judge.sees(unseen).float().mean() >= 0.9


def test_there_is_no_judge_where_the_pool_has_no_others_in_the_style() -> None:
    example = pocket.example("teddyBear")
    assert Judge.of(example, pool(example)) is None
