"""Decide whether pictures show a subject or something else of its category: the nearer of two mean features.

Nearness is the cosine similarity to the means of unit vectors, so that neither class is preferred because its pictures
are more alike. In the features of pocket's CLIP this is right for most real pictures of the examples; the recognizer
knows categories only, and EfficientNet sees no difference between soft pictures.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """The mean features of the subject and of others, and how far they can be trusted."""

    means: Float[Tensor, "2 features"]
    """Unit vectors: of the subject, and of others of its category."""
    accuracy: float
    """Share of real pictures, none of them in the means, that are judged correctly; the mean over both classes."""

    @classmethod
    def fit(
        cls,
        subject: Float[Tensor, "n features"],
        others: Float[Tensor, "m features"],
        *,
        held_out: tuple[Float[Tensor, "k features"], Float[Tensor, "l features"]],
    ) -> Self:
        """Compute the means of features of real pictures, and the accuracy on held-out ones.

        Args:
            subject: Features of pictures of the subject.
            others: Features of pictures of others of its category.
            held_out: Features of further pictures of the subject and of others.
        """
        means = F.normalize(torch.stack([F.normalize(features).mean(0) for features in (subject, others)]))
        shares = [(_nearer(features, means) == index).double().mean() for index, features in enumerate(held_out)]
        return cls(means=means, accuracy=float(torch.stack(shares).mean()))

    def is_subject(self, features: Float[Tensor, "n features"]) -> Bool[Tensor, " n"]:
        """Return for each picture whether its features are nearer to the subject than to the others."""
        return _nearer(features, self.means) == 0


def example_judge(example: Example, pool: Regularization, clip: Clip) -> Judge | None:
    """Return the judge of one of pocket's examples; None if the pool has too few others in its style.

    Every second picture makes the means; the others measure the accuracy.

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


def _nearer(features: Float[Tensor, "n features"], means: Float[Tensor, "2 features"]) -> Tensor:
    """Return the index of the nearer mean for each picture."""
    return (F.normalize(features) @ means.T).argmax(1)
