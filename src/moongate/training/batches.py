"""The batch of a step: augmented target pictures with captions and masks, and regularization pictures as latents.

A batch depends only on the plan and the index of the step, so a resumed run sees the same batches. What cannot change
is computed once. The module knows nothing of losses and optimizers.
"""

from dataclasses import dataclass
from itertools import zip_longest

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.data import ZOOM, Regularization, augment, square
from moongate.training.plan import Plan
from moongate.training.runs import seeded

__all__ = ["Batch", "Batches", "Prior"]

ENCODE_AT_ONCE = 16
"""Regularization pictures that are encoded together: a compromise between speed and memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """Regularization pictures as latents, and their captions as conditioning."""

    latents: Float[Tensor, "n channels height width"]
    text: Conditioning

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The pictures of one step."""

    images: Float[Tensor, "n 3 height width"]
    """Augmented target pictures in -1..1."""
    masks: Bool[Tensor, "n 1 rows columns"]
    """The latent cells of the target pictures that count in the loss."""
    captions: list[str]
    """A caption for each target picture."""
    prior: Prior | None
    """As many regularization pictures; None for a method without."""


class Batches:
    """Draws the batch of each step.

    Subjects take turns, so that each is shown equally often, however many pictures it has. The pictures of a subject
    come in shuffled passes.

    Args:
        plan: The run; its regularization pictures are encoded here, once.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        side_px = round(plan.resolution_px * ZOOM[1])  # the largest size that augmentation asks for
        self._targets = [
            [square(picture, side_px, mask=mask) for picture, mask in zip_longest(subject.pictures, subject.masks)]
            for subject in plan.subjects
        ]
        self._priors = [_encoded(pictures, plan.backbone, plan.resolution_px) for pictures in plan.regularization]

    def draw(self, index: int) -> Batch:
        """Return the batch of step `index`, which counts from 0."""
        plan = self._plan
        generator = seeded(plan.options.seed, "augment", index)
        targets, captions, latents, text = [], [], [], []
        for turn in range(index * plan.targets_per_step, (index + 1) * plan.targets_per_step):
            position, which = divmod(turn, len(plan.subjects))
            row = self._row(position, len(self._targets[which]), "picture", which)
            target = augment(
                self._targets[which][row],
                side_px=plan.resolution_px,
                cell_px=plan.backbone.latent_scale,
                generator=generator,
                flips=plan.options.flips,
                resizes=plan.method.augments,
            )
            targets.append(target)
            captions.append(target.caption(plan.subjects[which].captions[row]))
            if self._priors:
                prior = self._priors[which]
                prior_row = self._row(position, len(prior), "prior", which)
                latents.append(prior.latents[prior_row])
                text.append(prior.text[prior_row : prior_row + 1])
        return Batch(
            images=torch.stack([target.image for target in targets]),
            masks=torch.stack([target.mask for target in targets])[:, None],
            captions=captions,
            prior=Prior(latents=torch.stack(latents), text=Conditioning.cat(text)) if latents else None,
        )

    def _row(self, position: int, count: int, *label: object) -> int:
        """Return the row at `position` of an endless sequence of shuffled passes over `count` rows."""
        passes, index = divmod(position, count)
        return int(torch.randperm(count, generator=seeded(self._plan.options.seed, *label, passes))[index])


@torch.no_grad()
def _encoded(regularization: Regularization, backbone: Backbone, side_px: int) -> Prior:
    latents, text = [], []
    for begin in range(0, len(regularization.pictures), ENCODE_AT_ONCE):
        part = slice(begin, begin + ENCODE_AT_ONCE)
        images = [square(picture, side_px) for picture in regularization.pictures[part]]
        latents.append(backbone.encode_images(torch.stack(images)))
        text.append(backbone.encode_text(regularization.captions[part]))
    return Prior(latents=torch.cat(latents), text=Conditioning.cat(text))
