"""The option --tracker of `moongate train`: losses and pictures for TensorBoard or Weights & Biases.

Both are reached through accelerate's trackers, which write only in the main process.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moongate.extras import library

if TYPE_CHECKING:
    from moongate.training import Step

__all__ = ["Tracker"]

PROJECT = "moongate"


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """Passes the losses and pictures of a run on."""

    _inner: Any
    _how: Mapping[str, str]
    """How TensorBoard is told that pictures are [height, width, 3]."""

    @classmethod
    def of(cls, name: str, run: Path) -> "Tracker":
        """Return the tracker of a name, tensorboard or wandb; what it writes is in the run folder.

        Raises:
            MissingLibrary: Its library is not installed.
        """
        library(name)
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it which process is the main one
        kind = LOGGER_TYPE_TO_CLASS[name]
        inner = kind(PROJECT, logging_dir=run) if kind.requires_logging_directory else kind(PROJECT, dir=str(run))
        inner.start()
        return cls(_inner=inner, _how={"dataformats": "NHWC"} if name == "tensorboard" else {})

    def log(self, step: "Step") -> None:
        """Pass on the losses and the speed of a step."""
        values = {
            "loss": step.loss,
            "target_loss": step.target_loss,
            "prior_loss": step.prior_loss,
            "held_out_loss": step.held_out_loss,
            "pictures_per_second": step.pictures_per_second,
        }
        known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        self._inner.log(known, step=step.index)

    def log_pictures(self, images: Sequence[np.ndarray], step: int) -> None:
        """Pass on validation pictures, each uint8 [height, width, 3]."""
        self._inner.log_images({"validation": np.stack(images)}, step=step, **self._how)

    def finish(self) -> None:
        """Write what is not written yet."""
        self._inner.finish()
