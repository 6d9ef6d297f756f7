from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from moongate.errors import OptionError
from recipe import networks
from recipe.corpus import Corpus
from recipe.networks import read_weights, write_weights
from recipe.pretrain import decoder as module
from recipe.pretrain.decoder import DecoderOptions, train_decoder
from recipe.pretrain.prepare import Prepared

pytestmark = pytest.mark.usefixtures("fixed_perception")


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
    with pytest.raises(OptionError, match=r"below 99\. Lower --critic-weight \(0\.1\)"):
        train_decoder(DecoderOptions(**(vars(options) | {"least_psnr_db": 99})))


def test_a_larger_decoder_begins_as_the_autoencoders_own(options: DecoderOptions, tmp_path: Path) -> None:
    small = AutoencoderTiny(**(networks.AUTOENCODER | {"num_decoder_blocks": (3, 2, 1, 0)}))
    write_weights(tmp_path / "small.safetensors", small.state_dict())
    train_decoder(replace(options, autoencoder=tmp_path / "small.safetensors"))
    weights = read_weights(options.out / "weights.safetensors")[0]
    networks.make_autoencoder().load_state_dict(weights)
    torch.testing.assert_close(weights["encoder.layers.0.weight"], small.state_dict()["encoder.layers.0.weight"])


def test_drawn_latents_are_seen_by_the_critics_alone(options: DecoderOptions, tmp_path: Path) -> None:
    """There is no picture to compare them with."""
    write_weights(tmp_path / "drawn.safetensors", {"latents": torch.randn(3, 8, 16, 16)})
    corpus, prepared = Corpus(options.corpus), Prepared(options.prepared, options.corpus)
    decoder = networks.load_autoencoder(options.autoencoder).decoder
    players = nn.ModuleDict({"decoder": decoder, "critics": module._make_critics()}).eval()
    crops: list[int] = []
    players["critics"]["pixels"].register_forward_hook(lambda _, inputs, __: crops.append(len(inputs[0])))
    parts = []
    for each in (options, replace(options, drawn=tmp_path / "drawn.safetensors", drawn_batch=1)):
        torch.manual_seed(0)  # of the kernels of `FixedPerception`
        losses = module._Losses(players, corpus, prepared, each)
        parts.append(losses(torch.Generator().manual_seed(0), 100))
    assert crops == [2, 2, 2, 2, 3, 3]  # real ones, and twice the decoded ones
    without, beside = parts
    for name in ("picture", "perceptual"):
        torch.testing.assert_close(beside[name], without[name])


def test_a_file_without_drawn_latents_is_named(options: DecoderOptions) -> None:
    with pytest.raises(OptionError, match=r"holds no latents\. Give a file that `recipe.pretrain.drawn` writes"):
        train_decoder(replace(options, drawn=options.autoencoder))


def test_a_run_that_was_stopped_gives_the_decoder_of_an_uninterrupted_one(
    options: DecoderOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_decoder(options)
    stopped = replace(options, out=tmp_path / "stopped")

    def interrupted(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "psnr_db", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_decoder(stopped)
    train_decoder(stopped)
    whole, resumed = (read_weights(each.out / "weights.safetensors")[0] for each in (options, stopped))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
