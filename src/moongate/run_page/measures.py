"""What the kept concepts of a run were measured to be, when to stop, and the chart of both; without PyTorch.

Alignment with photos that training has not seen says how well the subject is known; how far pictures of unrelated
prompts have moved from those of the base says what this has cost. Training on, once the first no longer rises and the
second does, only costs.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moongate.files import write_atomically
from moongate.pages import Chart, line_chart
from moongate.run_records import MEASURES
from moongate.texts import parse_json, read_text

__all__ = ["Measured", "measures_chart", "read_measures", "stop_said", "when_to_stop", "write_measures"]

RISE_SHARE = 0.1
"""Share of the whole rise of a curve below which a further rise counts as noise: four pictures measure each step."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measures of the concept after one step."""

    step: int
    """Steps of training; 0 is the base model."""
    alignment: float
    """Mean cosine similarity, -1..1, of pictures of the subject with the held-out photos."""
    drift: float
    """One minus the mean cosine similarity, 0..2, of pictures of unrelated prompts with those of the base."""
    network: str
    """The network whose features are compared."""
    photos: str
    """Digest of the held-out photos."""
    unrelated: int = 8
    """Number of unrelated prompts that drift was measured on."""


def read_measures(run_folder: Path) -> list[Measured]:
    """Return the measures of a run by step; none if there are none that can be read."""
    try:
        found = [Measured(**line) for line in parse_json(read_text(run_folder / MEASURES))]
    except (OSError, ValueError, TypeError):
        return []
    numbers = [(each.step, each.alignment, each.drift) for each in found]
    if not all(isinstance(s, int) and isinstance(a, int | float) and isinstance(d, int | float) for s, a, d in numbers):
        return []
    return sorted(found, key=lambda each: each.step)


def write_measures(run_folder: Path, measures: Sequence[Measured]) -> None:
    """Write the measures of a run, whole or not at all."""
    write_atomically(run_folder / MEASURES, json.dumps([asdict(each) for each in measures], indent=1).encode())


def when_to_stop(measures: Sequence[Measured]) -> int | None:
    """Return the step from which on image alignment no longer rises while drift still does.

    It is the first step whose alignment no later one exceeds by more than `RISE_SHARE` of the whole rise. Drift must be
    higher at the last step than there, by as much of its own rise.

    Args:
        measures: In the order of their steps.

    Returns:
        The step; None while alignment still rises, if it never rose, or if drift does not rise after it.
    """
    if len(measures) < 3:
        return None
    alignment, drift = [each.alignment for each in measures], [each.drift for each in measures]
    if not all(map(math.isfinite, (*alignment, *drift))):
        return None
    rise, cost = max(alignment) - alignment[0], max(drift) - min(drift)
    if rise <= 0 or cost <= 0:
        return None
    stop = next(place for place in range(len(measures)) if max(alignment) - alignment[place] <= RISE_SHARE * rise)
    is_last = stop == len(measures) - 1
    return None if is_last or drift[-1] - drift[stop] <= RISE_SHARE * cost else measures[stop].step


def stop_said(measures: Sequence[Measured]) -> str:
    """Return what `when_to_stop` says of measures, as a sentence."""
    stop = when_to_stop(measures)
    if stop is not None:
        return f"Image alignment stops rising at step {stop}, while drift still rises: stop there."
    if len(measures) > 1 and all(each.alignment <= measures[0].alignment for each in measures):
        return "Image alignment never rose above that of the base model on these photos."
    return "Image alignment still rises, or drift does not: more steps may help."


def measures_chart(measures: Sequence[Measured], stop: int | None) -> Chart:
    """Draw alignment and drift by step, with a dot on each at the step at which to stop.

    Args:
        measures: In the order of their steps, at least one.
        stop: The step that `when_to_stop` gives.
    """
    curves = {
        "image alignment with held-out photos": [each.alignment for each in measures],
        "drift on unrelated prompts": [each.drift for each in measures],
    }
    dots = {
        name: [value if each.step == stop else math.nan for each, value in zip(measures, values, strict=True)]
        for name, values in curves.items()
    }
    return line_chart(
        curves, x_label="step", y_label="cosine", x=[each.step for each in measures], points=dots, point_px=4
    )
