"""Draw pictures: prompts and seeds to images, one random generator per picture (paper, Sec. 4: DDPM, guidance 6).

It draws with whatever weights and tokens the backbone holds; applying a concept is the caller's `with` block.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.data.pictures import as_pixels
from moongate.errors import OptionError, TokenError

__all__ = ["SCHEDULERS", "Sample", "SampleOptions", "sample"]

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names; the name of any scheduler class of diffusers is taken too."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How pictures are drawn; the defaults are the paper's."""

    steps: int = 50
    guidance: float = 6.0
    """Scale of classifier-free guidance; 1 turns it off."""
    scheduler: str = "ddpm"
    negative_prompt: str = ""
    width_px: int | None = None
    """Width, a multiple of the latent cell; the backbone's own size when None."""
    height_px: int | None = None
    batch: int = 8
    """Pictures drawn at once."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.guidance >= 0:
            raise OptionError(f"guidance is {self.guidance}; it must be 0 or more (the paper's is 6).")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture, uint8 [height, width, 3], and what it was drawn from."""

    image: np.ndarray
    prompt: str
    seed: int


def sample(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    options: SampleOptions | None = None,
    on_step: Callable[[], None] | None = None,
) -> Iterator[Sample]:
    """Draw one picture for each pair of prompt and seed, in order; `on_step` is called after each denoising step.

    A picture's randomness comes from its own seed alone. Raises TokenError for a `<token>` that no applied concept
    provides, and OptionError for an unknown scheduler or a size that does not fit, before anything is drawn.
    """
    options = options or SampleOptions()
    if len(prompts) != len(seeds):
        raise OptionError(f"{len(prompts)} prompts and {len(seeds)} seeds were given; each picture needs one of each.")
    for prompt in prompts:
        check_prompt(backbone, prompt)
    make_scheduler(backbone, options.scheduler)
    _latent_size(backbone, options)
    return _drawn(backbone, prompts, seeds, options, on_step)


def check_prompt(backbone: Backbone, prompt: str) -> None:
    """Raise TokenError when a prompt holds a `<token>` that is not known now."""
    unknown = backbone.unknown_tokens(prompt)
    if unknown:
        known = ", ".join(backbone.known_tokens) or "none; give --concept"
        raise TokenError(f"The prompt {prompt!r} uses the unknown token {unknown[0]!r}. Known tokens: {known}.")


def make_scheduler(backbone: Backbone, name: str) -> Any:
    """Return a scheduler by short or class name, set up for the backbone's noise schedule."""
    found: Any = getattr(diffusers, SCHEDULERS.get(name.lower(), name), None)
    is_scheduler = inspect.isclass(found) and issubclass(found, SchedulerMixin)
    if not is_scheduler:
        raise OptionError(
            f"Unknown scheduler {name!r}. Known: {', '.join(SCHEDULERS)}, or a scheduler class of diffusers."
        )
    return found.from_config(backbone.scheduler_config)


@torch.no_grad()
def _drawn(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SampleOptions,
    on_step: Callable[[], None] | None,
) -> Iterator[Sample]:
    for begin in range(0, len(prompts), options.batch):
        part = slice(begin, begin + options.batch)
        latents = _denoised(backbone, prompts[part], seeds[part], options, on_step)
        pictures = as_pixels(backbone.decode_latents(latents))
        for image, prompt, seed in zip(pictures, prompts[part], seeds[part], strict=True):
            yield Sample(image=image, prompt=prompt, seed=seed)


def _denoised(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SampleOptions,
    on_step: Callable[[], None] | None,
) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = _latent_size(backbone, options)
    latents = torch.stack([torch.randn(size, generator=generator) for generator in generators])
    scheduler = make_scheduler(backbone, options.scheduler)
    scheduler.set_timesteps(options.steps, device=backbone.device)
    latents = latents.to(backbone.device) * scheduler.init_noise_sigma
    guided = options.guidance != 1
    text = backbone.encode_text(prompts)
    if guided:
        text = Conditioning.cat([backbone.encode_negative(options.negative_prompt, len(prompts)), text])
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if "generator" in accepted else {}
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(latents, timestep)
        given = torch.cat([given, given]) if guided else given
        predicted = backbone.predict(given, timestep.expand(len(given)), text)
        if guided:
            unconditional, conditional = predicted.chunk(2)
            predicted = unconditional + options.guidance * (conditional - unconditional)
        latents = scheduler.step(predicted, timestep, latents, **extra).prev_sample
        if on_step:
            on_step()
    return latents


def _latent_size(backbone: Backbone, options: SampleOptions) -> tuple[int, int, int]:
    cell = backbone.latent_scale
    sides = [side or backbone.resolution_px for side in (options.height_px, options.width_px)]
    for side in sides:
        if side < cell or side % cell:
            raise OptionError(f"A side of {side} px is not a positive multiple of {cell} px. Round it to one.")
    return (int(backbone.unet.config.in_channels), sides[0] // cell, sides[1] // cell)
