"""The losses of a run as charts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moongate.pages import Chart, line_chart

__all__ = ["held_out_chart", "loss_chart"]

SMOOTHED = 50
"""Largest number of steps of which a loss is averaged; the loss of one step depends mostly on its noise levels."""
MAX_POINTS = 500
"""Largest number of values in a chart."""


def loss_chart(steps: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the losses of target and regularization pictures: a point for each step, and their running mean.

    Args:
        steps: The lines of a log (`run_records.read_steps`), at least one.
    """
    curves = {"target pictures": "target_loss", "regularization pictures": "prior_loss"}
    values = {name: [float(line.get(key, 0)) for line in steps] for name, key in curves.items()}
    values = {name: losses for name, losses in values.items() if any(losses)}
    every = math.ceil(len(steps) / MAX_POINTS)
    return line_chart(
        {name: _running_mean(losses)[::every] for name, losses in values.items()},
        x_label="step",
        y_label="loss",
        x=[line["index"] for line in steps][::every],
        points={name: losses[::every] for name, losses in values.items()},
    )


def held_out_chart(losses: Mapping[int, float]) -> Chart:
    """Draw the loss of the held-out pictures by step."""
    curve = {"held-out pictures": list(losses.values())}
    return line_chart(curve, x_label="step", y_label="loss of the held-out pictures", x=list(losses))


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return for each value the mean of the finite ones up to it, of at most `SMOOTHED` or a tenth of all."""
    window = min(SMOOTHED, max(5, len(values) // 10))
    means = []
    for end in range(1, len(values) + 1):
        recent = [value for value in values[max(0, end - window) : end] if math.isfinite(value)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means
