"""Decay that returns the keys and values of neutral captions to the base's while weights are trained.

Weight decay pulls all of a change toward zero alike. This decay pulls it by how far it moves the text features of
neutral captions, C_reg of the merge (paper, Eq. 4). After each step a change D of a matrix of keys or values becomes
the nearest one that the same captions cost less:

    argmin_E  |E - D|^2 + s |E C_reg^T|^2 / g  =  D (I + s C_reg^T C_reg / g)^-1,

where g is the mean eigenvalue of C_reg^T C_reg, so that the strength s means the same for every text encoder. Where
captions differ little from one another, a change stays free; where all captions are alike, it is held small. This is an
addition to the paper's method, and a strength of 0 leaves it out.
"""

from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import WEIGHT_SETS, Backbone
from moongate.concept import Concept
from moongate.merging.neutral import neutral_captions, regularization_gram
from moongate.ranks import Ranks
from moongate.training.method import Trainable
from moongate.training.plan import Plan

__all__ = ["NeutralDecay"]

SLIGHT = 1e-4
"""A step removes nothing in a direction in which it would remove less than this share, 2.5 % in 250 steps. With
pocket's text features 69 of 256 directions are left, so that a decay takes two thirds of the time."""
_GRAMS: WeakKeyDictionary[Backbone, Float[Tensor, "width width"]] = WeakKeyDictionary()
"""The Gram matrix of the neutral captions of each model, for the next training in this process."""


class NeutralDecay:
    """The decay of one run: the directions in which a step removes some of a change, and how much of it."""

    @classmethod
    def of(cls, plan: Plan) -> Self | None:
        """Return the decay of a run, or None if its strength is 0."""
        if not plan.neutral_decay:
            return None
        return cls(plan.backbone, plan.neutral_decay, start_from=plan.start_from, cache=plan.options.cache)

    def __init__(
        self, backbone: Backbone, strength: float, *, start_from: Concept | None = None, cache: Path | None = None
    ) -> None:
        """Encode the neutral captions, or read their Gram matrix, and find its eigenvectors.

        Args:
            backbone: The model; its text encoder is used.
            strength: s above, over 0.
            start_from: The concept that the training continues. What it changes is not decayed.
            cache: Folder in which the Gram matrix is kept for each text encoder; not kept when None.
        """
        ranks = Ranks.current()
        gram = ranks.of_first(_GRAMS.get(backbone))  # the first may have trained alone before the others joined it
        if gram is None:
            gram = regularization_gram(backbone, neutral_captions(), cache=cache, ranks=ranks)
        _GRAMS[backbone] = gram
        eigenvalues, directions = torch.linalg.eigh(gram)
        strengths = strength * eigenvalues / eigenvalues.mean()
        removed = strengths / (1 + strengths)
        counts = removed > SLIGHT
        self.before = {name: change.full() for name, change in (start_from.deltas if start_from else {}).items()}
        self.directions: Float[Tensor, "width directions"] = directions[:, counts].float().to(backbone.device)
        self.removed: Float[Tensor, " directions"] = removed[counts].float().to(backbone.device)

    @torch.no_grad()
    def apply(self, moving: Trainable, moved: Float[Tensor, ""]) -> None:
        """Decay the changes of all trained matrices that read text features, in place.

        Args:
            moving: What is trained.
            moved: 1 if the step moved it; 0 leaves all as it is.
        """
        removed = self.directions * (moved * self.removed)
        for name, weight in moving.weights.items():
            if name.endswith(WEIGHT_SETS["cross-attention-kv"]):
                change = weight - moving.pretrained[name]
                if name in self.before:
                    change -= self.before[name].to(change.device)
                weight.addmm_(change @ removed, self.directions.T, alpha=-1)
