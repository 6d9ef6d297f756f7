"""How fast a run is: pictures per second and, on a GPU, the share of the speed of a matrix product (MFU)."""

import contextlib
import time
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Speed", "matmul_peak"]


class Speed:
    """Measures a run from its second step on, because the first one prepares kernels and is counted, not timed.

    Args:
        pictures_per_step: Target and regularization pictures of a step.
        device: Where the model computes.
        dtype: Precision of the base.
        counts: Whether the operations of the first step are counted, which the utilization needs; None is on a GPU.
    """

    def __init__(
        self, pictures_per_step: int, device: torch.device, dtype: torch.dtype, *, counts: bool | None = None
    ) -> None:
        self._pictures_per_step = pictures_per_step
        self._began = time.perf_counter()
        self._steps = 0
        self._operations = 0
        self._counts = device.type == "cuda" if counts is None else counts
        self._peak = matmul_peak(device, dtype, seconds=0.1) if self._counts else 0.0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Note a step, which is the block; the first one is counted."""
        if self._steps == 0 and self._counts:
            with FlopCounterMode(display=False) as counter:
                yield
            self._operations = counter.get_total_flops()
        else:
            yield
        self._steps += 1
        if self._steps == 1:
            self._first_s, self._began = time.perf_counter() - self._began, time.perf_counter()

    @property
    def pictures_per_second(self) -> float:
        """Pictures per second on average; after one step alone, those of this step."""
        return self._pictures_per_step * self._steps_per_second

    @property
    def utilization(self) -> float | None:
        """The share of the speed of a matrix product that steps reach, 0..1; None where operations are not counted."""
        return self._operations * self._steps_per_second / self._peak if self._counts else None

    @property
    def _steps_per_second(self) -> float:
        if self._steps == 1:
            return 1 / self._first_s
        return (self._steps - 1) / (time.perf_counter() - self._began)


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Return the operations per second of a large square matrix product.

    Args:
        device: Where to compute.
        dtype: Precision of the matrices.
        seconds: How long to measure.
    """
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def once() -> None:
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    once()
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < seconds:
        once()
        done += 1
    return 2 * side**3 * done / (time.perf_counter() - began)
