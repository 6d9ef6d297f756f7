import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moongate.errors import BackboneError
from moongate.evaluation import load_network


class Detector(torch.nn.Module):
    """A stand-in for the real network, with its call and the width of its features."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        colors = images.mean((2, 3)) if return_features else images[:, :, 0, 0]
        return colors.repeat(1, self.width)[:, : self.width]


class Other(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


def saved(model: torch.nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(str(file))
    return file


def test_inception_is_a_torchscript_file_that_gets_0_to_255(tmp_path: Path) -> None:
    network = load_network(f"inception:{saved(Detector(), tmp_path / 'inception.pt')}")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features = network.image_features(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features[:, :3], 127.5 * (images.mean((2, 3)) + 1), atol=1e-3, rtol=1e-5)


def test_another_file_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="need a file, which '.' is not. Give inception:FILE"):
        load_network("inception")
    (tmp_path / "other.pt").write_text("no archive")
    with pytest.raises(BackboneError, match="is not a TorchScript file"):
        load_network(f"inception:{tmp_path / 'other.pt'}")
    with pytest.raises(BackboneError, match="cannot be called like Inception"):
        load_network(f"inception:{saved(Other(), tmp_path / 'call.pt')}")
    with pytest.raises(BackboneError, match=r"gives features of shape \(1, 3\) instead of \(1, 2048\)"):
        load_network(f"inception:{saved(Detector(3), tmp_path / 'narrow.pt')}")
