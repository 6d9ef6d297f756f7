"""What a training takes: time from a measured speed, and disk from known sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moongate.run_records import read_progress

__all__ = ["Estimate", "Facts", "estimated", "measured_speed", "size"]

TARGETS_PER_STEP = 4
"""Target pictures of a step by default; as many regularization pictures join them."""
STATE_SHARES = 4
"""A saved state holds the weights, their changes and two moments of the optimizer, each of the concept's size."""
COMPARED, VALIDATED = 20, 4
"""Pictures that the page of a run draws at the end, and each time on the way."""
EVALUATIONS = 40
"""Evaluations of the denoiser for a picture: twenty steps with guidance."""
BACKWARD = 3
"""A step of training costs about this many evaluations for each picture."""
PICTURE_SHARE = 0.6
"""Size of a PNG picture relative to its pixels in three bytes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model."""

    resolution_px: int
    change_bytes: int
    """Size of an uncompressed concept."""
    pictures_per_second: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training will take."""

    training_s: float
    drawing_s: float
    disk_bytes: float


def estimated(facts: Facts, *, steps: int, looks: int, regularizes: bool) -> Estimate:
    """Return the time and the disk that a training takes.

    Args:
        facts: The model and its speed.
        steps: Steps of the training.
        looks: How often validation pictures are drawn and a concept is kept.
        regularizes: Whether regularization pictures join each step.
    """
    speed = max(facts.pictures_per_second, 1e-9)
    pictures = VALIDATED * (looks + 1) + COMPARED
    return Estimate(
        training_s=steps * TARGETS_PER_STEP * (2 if regularizes else 1) / speed,
        drawing_s=pictures * EVALUATIONS / (BACKWARD * speed),
        disk_bytes=facts.change_bytes * (1 + looks + STATE_SHARES)
        + pictures * 3 * facts.resolution_px**2 * PICTURE_SHARE,
    )


def measured_speed(runs: Sequence[Path], model: str) -> tuple[float, str] | None:
    """Return the speed of the latest run of a model, and the name of the run; None if there is none."""
    for folder in runs:
        found = read_progress(folder)
        if found and found.model == model and found.step > 1:
            return found.pictures_per_second, folder.name
    return None


def size(number: float) -> str:
    """Return a number of bytes for people to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1e3:.0f} kB"
