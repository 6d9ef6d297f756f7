from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import nn

from moongate.errors import OptionError
from recipe.networks import (
    AUTOENCODER,
    DENOISER,
    grown,
    load_autoencoder,
    load_into,
    make_schedule,
    read_weights,
    write_weights,
)


def test_the_denoiser_has_cross_attention_at_both_levels_and_the_stated_size() -> None:
    model = UNet2DConditionModel(**DENOISER)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(12.4e6, rel=0.01)
    assert [bool(block.attentions) for block in (*model.down_blocks, *model.up_blocks)] == [True] * 4


def test_the_autoencoder_has_latents_of_eight_channels_and_eight_times_smaller() -> None:
    model = AutoencoderTiny(**AUTOENCODER)
    latents = model.encoder(torch.zeros(1, 3, 64, 64))
    assert latents.shape == (1, 8, 8, 8)
    assert model.decoder(latents).shape == (1, 3, 64, 64)


def test_an_autoencoder_begins_as_a_smaller_one() -> None:
    """With fewer latent channels, a narrower decoder and fewer blocks; none are added where there were none."""
    torch.manual_seed(0)
    more = {"num_decoder_blocks": (2, 3, 2, 1), "decoder_block_out_channels": (12,) * 4}
    fewer = {"num_decoder_blocks": (2, 2, 1, 1), "decoder_block_out_channels": (8,) * 4, "latent_channels": 4}
    sizes = AUTOENCODER | {"encoder_block_out_channels": (8,) * 4}
    large, small = AutoencoderTiny(**(sizes | more)), AutoencoderTiny(**(sizes | fewer))
    large.load_state_dict(grown(small.state_dict(), large.state_dict()))
    images, latents = torch.randn(1, 3, 64, 64), torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(large.encoder(images)[:, :4], small.encoder(images))
    torch.testing.assert_close(large.decoder(latents), small.decoder(latents[:, :4]))


def test_an_autoencoder_does_not_begin_as_a_larger_or_another_network(tmp_path: Path) -> None:
    larger = AutoencoderTiny(**(AUTOENCODER | {"decoder_block_out_channels": (72,) * 4}))
    for name, weights in (("larger", larger.state_dict()), ("other", nn.Linear(2, 3).state_dict())):
        write_weights(tmp_path / name, weights)
        with pytest.raises(OptionError, match=f"{name} holds no autoencoder of at most this size"):
            load_autoencoder(tmp_path / name)


def test_nothing_of_a_picture_is_left_at_the_last_time() -> None:
    schedule = make_schedule()
    noise = torch.randn(1, 8, 16, 16)
    noisy = schedule.add_noise(torch.full_like(noise, 100.0), noise, torch.tensor([999]))
    torch.testing.assert_close(noisy, noise)


def test_weights_and_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    write_weights(tmp_path / "weights.safetensors", model.state_dict(), pictures_seen=12)
    other = nn.Linear(2, 3)
    assert load_into(other, tmp_path / "weights.safetensors") == {"pictures_seen": "12"}
    assert torch.equal(other.weight, model.weight)


def test_missing_broken_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"There are no weights .*none\.safetensors"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(OptionError, match=r"is not a safetensors file"):
        read_weights(tmp_path / "broken.safetensors")
    write_weights(tmp_path / "other.safetensors", nn.Linear(2, 4).state_dict())
    with pytest.raises(OptionError, match=r"weights of another network: 2 of them .* for example bias"):
        load_into(nn.Linear(2, 3), tmp_path / "other.safetensors")
