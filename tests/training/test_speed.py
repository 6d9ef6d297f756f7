import pytest
import torch

from moongate.training import speed as speed_module
from moongate.training.speed import Speed, matmul_peak

CPU = torch.device("cpu")


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(speed_module.time, "perf_counter", lambda: self.seconds)


def test_pictures_per_second_leave_out_the_first_step_which_prepares_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    speed = Speed(8, CPU, torch.float32)
    for seconds, expected in ((20.0, 8 / 20), (1.0, 8.0), (3.0, 16 / 4)):
        with speed.step():
            clock.seconds += seconds
        assert speed.pictures_per_second == pytest.approx(expected)
    assert speed.utilization is None, "operations are counted on a GPU"


def test_utilization_is_the_operations_of_a_step_against_those_of_a_matrix_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(speed_module, "matmul_peak", lambda *_, **__: 1e6)
    speed = Speed(8, CPU, torch.float32, counts=True)
    left, right = torch.ones(20, 30), torch.ones(30, 50)
    for _ in range(3):
        with speed.step():
            torch.mm(left, right)
            clock.seconds += 0.5
    assert speed.utilization == pytest.approx(2 * 20 * 30 * 50 / 0.5 / 1e6)


def test_the_peak_is_that_of_a_product_on_this_machine() -> None:
    assert 1e8 < matmul_peak(CPU, torch.float32, seconds=0.01) < 1e14
