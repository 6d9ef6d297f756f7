import numpy as np
import pytest
import torch

from editing_making import photo_of_blocks
from moongate.backbone import Backbone
from moongate.data.pictures import as_tensor
from moongate.editing.photos import ddim_path, noised_path
from moongate.sampling import make_scheduler


def scheduler_of(backbone: Backbone, name: str, steps: int) -> object:
    scheduler = make_scheduler(backbone, name)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_denoiser_that_always_sees_the_same_picture_and_noise_gives_their_straight_path(
    tiny: Backbone, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDIM backwards then ends at that noise, and each point on the way is their mixture at its level."""
    clean, noise = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    cumulative = tiny.schedule.alphas_cumprod
    scheduler = scheduler_of(tiny, "ddim", 5)
    monkeypatch.setattr(tiny, "schedule", tiny.schedule.from_config({**tiny.scheduler_config, "prediction_type": kind}))

    def predict(_noisy: torch.Tensor, timesteps: torch.Tensor, _text: object) -> torch.Tensor:
        level = cumulative[int(timesteps[0])] if levels else torch.tensor(1.0)
        levels.append(float(level))
        signal, sigma = level.sqrt(), (1 - level).sqrt()
        seen = 1.1 * clean if len(levels) == 1 else clean  # of clean latents an error counts as no noise
        return {"epsilon": noise, "sample": seen, "v_prediction": signal * noise - sigma * clean}[kind]

    levels: list[float] = []
    monkeypatch.setattr(tiny, "predict", predict)
    path = ddim_path(tiny, clean, tiny.encode_text(["a dog"]), scheduler=scheduler)
    assert len(path) == 6
    assert torch.equal(path[-1], clean)
    for timestep, latents in zip(scheduler.timesteps, path, strict=False):
        level = cumulative[int(timestep)]
        # The first step has the clean latents alone, from which a predicted sample tells no noise.
        told = 0 if kind == "sample" else noise
        expected = level.sqrt() * clean + (1 - level).sqrt() * told
        torch.testing.assert_close(latents, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["ddpm", "euler"])
def test_noise_of_every_level_is_independent_and_in_the_schedulers_scale(tiny: Backbone, name: str) -> None:
    scheduler = scheduler_of(tiny, name, 4)
    clean = tiny.encode_images(as_tensor(photo_of_blocks()[None]))
    path = noised_path(clean, scheduler=scheduler, generators=[torch.Generator().manual_seed(0)])
    assert torch.equal(path[-1], clean)
    levels = tiny.schedule.alphas_cumprod[scheduler.timesteps.round().long()]
    noises = []
    for latents, level in zip(path, levels, strict=False):
        scaled = latents * level.sqrt() if name == "euler" else latents
        noises.append(((scaled - level.sqrt() * clean) / (1 - level).sqrt()).flatten().numpy())
    correlations = np.corrcoef(noises)
    assert np.abs(correlations - np.eye(4)).max() < 0.25
    assert np.std(noises, axis=1) == pytest.approx(np.ones(4), abs=0.2)
