from pathlib import Path

import pytest
import torch

from moongate.errors import OptionError
from recipe.networks import read_weights
from recipe.pretrain import decoder as module
from recipe.pretrain.decoder import DecoderOptions, train_decoder


@pytest.fixture
def options(corpus_folder: Path, prepared_folder: Path, autoencoder_file: Path, tmp_path: Path) -> DecoderOptions:
    return DecoderOptions(
        corpus=corpus_folder,
        prepared=prepared_folder,
        autoencoder=autoencoder_file,
        out=tmp_path / "decoder",
        steps=3,
        batch=2,
        measure_every=1,
        least_psnr_db=0,
    )


def test_only_the_decoder_changes(options: DecoderOptions) -> None:
    """Stored latents would no longer fit if the encoder moved too."""
    train_decoder(options)
    before, after = (read_weights(path)[0] for path in (options.autoencoder, options.out / "weights.safetensors"))
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"decoder"}


def test_the_last_decoder_that_keeps_the_psnr_is_written(
    options: DecoderOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter([30.0, 29.5, 28.9])
    monkeypatch.setattr(module, "psnr_db", lambda *_, **__: next(ratios))
    train_decoder(DecoderOptions(**(vars(options) | {"least_psnr_db": 29.0})))
    assert read_weights(options.out / "weights.safetensors")[1]["psnr_db"] == "29.5"


def test_a_critic_that_is_too_strong_is_named(options: DecoderOptions) -> None:
    with pytest.raises(OptionError, match=r"below 99\. Lower --critic-weight \(0\.05\)"):
        train_decoder(DecoderOptions(**(vars(options) | {"least_psnr_db": 99})))
