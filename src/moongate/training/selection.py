"""Concepts that are kept while a run goes on, and which of their steps knows held-out pictures best.

The score of a step is the denoising loss of the held-out pictures over their valid region, without augmentation, at
eight fixed noises and timesteps. As all steps and runs get the same eight, their scores can be compared. The losses of
training cannot: each depends mostly on the timesteps that were drawn for it. The module knows nothing of gradients.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from moongate.backbone import Backbone
from moongate.data import Subject, augment, square
from moongate.run_records import CONCEPTS, held_out_losses, read_steps
from moongate.training.runs import seeded

__all__ = ["Judge", "best_step", "kept_file"]

DRAWS = 8
"""Noises and timesteps for each held-out picture; the timesteps are evenly spaced over the schedule."""


class Judge:
    """Measures the loss of held-out pictures.

    Args:
        backbone: The model. When `loss` is called, the captions' tokens must be in use.
        subjects: The held-out pictures, with captions and masks.
        side_px: Side to which the pictures are cut and resized.
    """

    def __init__(self, backbone: Backbone, subjects: Sequence[Subject], *, side_px: int) -> None:
        self._backbone = backbone
        self._captions = [caption for subject in subjects for caption in subject.captions]
        self._latents, self._masks = [], []
        for subject in subjects:
            for picture, mask in zip(subject.pictures, subject.masks or [None] * len(subject.pictures), strict=True):
                whole = augment(
                    square(picture, side_px, mask=mask),
                    side_px=side_px,
                    cell_px=backbone.latent_scale,
                    generator=torch.Generator(),
                    resizes=False,
                )
                self._latents.append(backbone.encode_images(whole.image[None]).float())
                self._masks.append(whole.mask.to(backbone.device))

    @torch.no_grad()
    def loss(self) -> float:
        """Return the loss of the backbone as it is now: the mean over the pictures of their masked means."""
        backbone, losses = self._backbone, []
        spacing = backbone.train_timesteps / DRAWS
        timesteps = torch.tensor([int((index + 0.5) * spacing) for index in range(DRAWS)], device=backbone.device)
        for index, (latents, mask) in enumerate(zip(self._latents, self._masks, strict=True)):
            shape = (DRAWS, *latents.shape[1:])
            noise = torch.randn(shape, generator=seeded(0, "held-out", index)).to(latents.device)
            repeated, text = latents.expand(shape), backbone.encode_text([self._captions[index]] * DRAWS)
            noisy = backbone.schedule.add_noise(repeated, noise, timesteps)
            error = (backbone.predict(noisy, timesteps, text) - backbone.target(repeated, noise, timesteps)).square()
            losses.append(float(error[..., mask].mean()))
        return sum(losses) / len(losses)


def kept_file(run_folder: Path, step: int) -> Path:
    """Return the file of the concept that a run kept after a step."""
    return run_folder / CONCEPTS / f"{step:06d}.safetensors"


def best_step(run_folder: Path) -> int | None:
    """Return the step with the lowest held-out loss of those whose concepts are still kept, the first of equals.

    None if there is no score.
    """
    losses = held_out_losses(read_steps(run_folder))
    kept = [step for step in losses if kept_file(run_folder, step).exists()]
    return min(kept, key=lambda step: (losses[step], step), default=None)
