from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone
from moongate.data.pictures import as_tensor
from moongate.errors import OptionError
from moongate.sampling import SampleOptions, sample
from recipe.corpus import Corpus
from recipe.networks import make_denoiser, read_weights, write_weights
from recipe.pretrain.assemble import make_pipeline
from recipe.pretrain.drawn import DrawnOptions, draw_latents


@pytest.fixture
def options(corpus_folder: Path, _small_networks: None, tmp_path: Path) -> DrawnOptions:
    torch.manual_seed(0)
    write_weights(tmp_path / "denoiser.safetensors", make_denoiser().state_dict(), pictures_seen=0)
    return DrawnOptions(
        corpus=corpus_folder,
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


def test_latents_are_those_that_sampling_decodes(options: DrawnOptions) -> None:
    drawn = _drawn(options)
    pipeline, _ = make_pipeline(options.denoiser, autoencoder=None, text=options.text)
    backbone = Backbone(name="pocket", pipeline=pipeline)
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randint(0, (corpus := Corpus(options.corpus)).training, (3,), generator=generator).tolist()
    seeds = torch.randint(0, 2**62, (3,), generator=generator).tolist()
    sampling = SampleOptions(steps=2, guidance=options.guidance, scheduler="dpm++")
    pictures = sample(backbone, [corpus.captions[row] for row in rows], seeds=seeds, options=sampling)
    decoded = backbone.decode_latents(drawn)
    for latents, picture in zip(decoded, pictures, strict=True):
        assert (as_tensor(picture.image) - latents).abs().mean() < 0.02  # half precision, and the rounding of pixels


def test_a_count_of_nothing_is_refused(options: DrawnOptions) -> None:
    with pytest.raises(OptionError, match="count is 0; it must be at least 1"):
        replace(options, count=0)
