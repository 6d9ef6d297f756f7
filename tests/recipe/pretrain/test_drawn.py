from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moongate.errors import OptionError
from recipe.networks import make_denoiser, read_weights, write_weights
from recipe.pretrain.drawn import DrawnOptions, draw_latents


@pytest.fixture
def options(corpus_folder: Path, prepared_folder: Path, tmp_path: Path) -> DrawnOptions:
    torch.manual_seed(0)
    write_weights(tmp_path / "denoiser.safetensors", make_denoiser().state_dict(), pictures_seen=0)
    return DrawnOptions(
        corpus=corpus_folder,
        prepared=prepared_folder,
        denoiser=tmp_path / "denoiser.safetensors",
        out=tmp_path / "drawn.safetensors",
        count=3,
        steps=2,
    )


def _drawn(options: DrawnOptions) -> torch.Tensor:
    draw_latents(options)
    return read_weights(options.out)[0]["latents"]


def test_the_seed_decides_what_is_drawn(options: DrawnOptions) -> None:
    first, again, other = _drawn(options), _drawn(options), _drawn(replace(options, seed=1))
    assert first.shape == (3, 8, 16, 16)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_count_of_nothing_is_refused(options: DrawnOptions) -> None:
    with pytest.raises(OptionError, match="count is 0; give at least 1"):
        replace(options, count=0)
