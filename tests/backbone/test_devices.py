import pytest
import torch

from moongate.backbone.devices import available_device
from moongate.errors import OptionError


def test_without_a_name_the_gpu_is_used_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert available_device(None) == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "build", "gpus", "message"),
    [
        ("gpu", "12.8", 1, "There is no device 'gpu'. Known: cpu, cuda"),
        ("xpu", "12.8", 1, "'xpu' is not supported"),
        ("mps", None, 0, "has no double precision"),
        ("cuda", None, 0, "needs a build of PyTorch with CUDA.*uv pip install torch --torch-backend=auto"),
        ("cuda", "12.8", 0, "finds no GPU for the device 'cuda'"),
        ("cuda:2", "12.8", 2, "There is no GPU 'cuda:2': PyTorch finds 2"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_what_is_missing(
    name: str, build: str | None, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(OptionError, match=message):
        available_device(name)
    assert available_device("cpu") == torch.device("cpu")
    if gpus:
        assert available_device("cuda:0") == torch.device("cuda:0")
