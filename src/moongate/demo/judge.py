"""Decide whether pictures show a subject or something else of its category, by a linear discriminant of features.

The discriminant asks for the nearer of two mean features where differences count less, the more the pictures of one
class differ among themselves in the same way, such as in their places. In the features of pocket's CLIP it is right
for 90 % of real pictures of eighteen examples, and the nearer mean alone for 85 %. The recognizer knows categories
only, and EfficientNet sees no difference between soft pictures.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from moongate.data import Regularization
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.evaluation.networks.clip import Clip
from moongate.pocket import Example

__all__ = ["FEWEST_OTHERS", "Judge", "example_judge"]

FEWEST_OTHERS = 6
"""Least number of pictures of others that a judge of an example needs."""
SHRINKAGE = 0.7
"""Share of the covariance that is replaced by its mean variance in all directions, because there are fewer pictures
than features. From 0.5 to 0.9 all shares judge real pictures as well."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """A linear discriminant between the subject and others, and how far it can be trusted."""

    direction: Float[Tensor, " features"]
    """From the others to the subject, in unit vectors of features."""
    threshold: float
    """Half-way between both means along the direction."""
    accuracy: float
    """Share of real pictures, none of which the discriminant was made of, that are judged correctly; the mean over both
    classes."""

    @classmethod
    def fit(
        cls,
        subject: Float[Tensor, "n features"],
        others: Float[Tensor, "m features"],
        *,
        held_out: tuple[Float[Tensor, "k features"], Float[Tensor, "l features"]],
    ) -> Self:
        """Compute the discriminant of features of real pictures, and its accuracy on held-out ones.

        Args:
            subject: Features of pictures of the subject.
            others: Features of pictures of others of its category.
            held_out: Features of further pictures of the subject and of others.
        """
        classes = [F.normalize(features.double()) for features in (subject, others)]
        means = torch.stack([features.mean(0) for features in classes])
        # Each class counts as much, however many pictures it has, so that neither is preferred.
        covariance = torch.stack([features.T.cov(correction=0) for features in classes]).mean(0)
        isotropic = torch.eye(len(covariance)).to(covariance) * covariance.diagonal().mean()
        direction = torch.linalg.solve(covariance.lerp(isotropic, SHRINKAGE), means[0] - means[1])
        threshold = float(direction @ means.mean(0))
        judge = cls(direction=direction.float(), threshold=threshold, accuracy=math.nan)
        shares = [
            (judge.is_subject(features) == is_subject).double().mean()
            for features, is_subject in zip(held_out, (True, False), strict=True)
        ]
        return replace(judge, accuracy=float(torch.stack(shares).mean()))

    def is_subject(self, features: Float[Tensor, "n features"]) -> Bool[Tensor, " n"]:
        """Return for each picture whether it shows the subject rather than another."""
        return F.normalize(features) @ self.direction > self.threshold


def example_judge(example: Example, pool: Regularization, clip: Clip) -> Judge | None:
    """Return the judge of one of pocket's examples; None if the pool has too few others in its style.

    Every second picture makes the discriminant; the others measure its accuracy.

    Args:
        example: Its held-out pictures show the subject.
        pool: Pictures of its category, of which those with the category alone, in the style of the example, are used.
        clip: Gives the features.
    """
    beginning = f"{example.style} of a"
    others = [
        picture
        for picture, caption in zip(pool.pictures, pool.captions, strict=True)
        if caption.startswith(beginning) and " and " not in caption
    ]
    if len(others) < FEWEST_OTHERS:
        return None
    of_subject = clip.pictures([read_picture(path) for path in find_pictures(example.evaluation)])
    of_others = clip.pictures(others)
    return Judge.fit(of_subject[::2], of_others[::2], held_out=(of_subject[1::2], of_others[1::2]))
