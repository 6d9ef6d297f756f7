"""Draw pictures: prompts and seeds to images, one random generator per picture (paper, Sec. 4: DDPM, guidance 6).

`sample` draws with the weights and tokens that the backbone holds now; applying a concept is the caller's `with`
block. `draw_missing` keeps pictures in a folder and draws only those that are not there yet. The module knows nothing
of training or of judging pictures.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.concept import Concept
from moongate.data.pictures import as_pixels
from moongate.errors import OptionError, TokenError
from moongate.files import write_atomically
from moongate.pages import png_bytes

__all__ = [
    "SCHEDULERS",
    "SETTINGS_FILE",
    "Sample",
    "SampleOptions",
    "check_prompt",
    "draw_missing",
    "make_scheduler",
    "sample",
]

SETTINGS_FILE = "settings.json"
"""File in a folder of `draw_missing` that says what its pictures depend on."""

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
    _check_pairs(prompts, seeds)
    for prompt in prompts:
        check_prompt(backbone, prompt)
    make_scheduler(backbone, options.scheduler)
    _latent_size(backbone, options)
    return _drawn(backbone, prompts, seeds, options, on_step)


def draw_missing(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    folder: Path,
    concept: Concept | None = None,
    options: SampleOptions | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Return a PNG file for each pair of prompt and seed, drawing only the pictures that are not there yet.

    The files lie in a folder below `folder`. Its name is a digest of everything else that the pictures depend on: the
    base model, its precision, the concept and the sampling options; a `settings.json` in it says what these are. So a
    stopped run continues, pictures of different settings never mix, and several processes may draw into one folder:
    each file is written whole or not at all. A state file would have to be kept true; a name cannot become false.

    Args:
        backbone: The model, with no concept applied.
        prompts: One for each picture.
        seeds: One for each picture.
        folder: Where the folder of these settings lies.
        concept: The concept to apply while drawing; the base model draws when None.
        options: How pictures are drawn. `batch` does not count as a setting, because pictures do not depend on it.
        on_picture: Called after each drawn picture with the number of pictures that exist and the number wanted.

    Returns:
        The files, in the order of the prompts; equal pairs share one file.

    Raises:
        TokenError: If a prompt contains a `<token>` that neither the backbone nor the concept has.
        OptionError: If the options or the numbers of prompts and seeds do not fit, or a file cannot be written.
        BaseMismatchError: If the concept is for another base.
    """
    options = options or SampleOptions()
    _check_pairs(prompts, seeds)
    settings = _settings(backbone, concept, options)
    place = folder / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    pairs = list(zip(prompts, seeds, strict=True))
    paths = [place / _file_name(prompt, seed) for prompt, seed in pairs]
    wanted = dict(zip(paths, pairs, strict=True))
    missing = {path: pair for path, pair in wanted.items() if not path.exists()}
    if not missing:
        return paths
    with concept.applied(backbone) if concept else contextlib.nullcontext():
        new_prompts, new_seeds = zip(*missing.values(), strict=True)
        pictures = sample(backbone, new_prompts, seeds=new_seeds, options=options)
        facts = {"base": backbone.name, **settings}
        write_atomically(place / SETTINGS_FILE, (json.dumps(facts, indent=1) + "\n").encode())
        for count, (path, picture) in enumerate(zip(missing, pictures, strict=True), len(wanted) - len(missing) + 1):
            write_atomically(path, png_bytes(picture.image))
            if on_picture:
                on_picture(count, len(wanted))
    return paths


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


def _check_pairs(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    if len(prompts) != len(seeds):
        raise OptionError(f"{len(prompts)} prompts and {len(seeds)} seeds were given; each picture needs one of each.")


def _settings(backbone: Backbone, concept: Concept | None, options: SampleOptions) -> dict[str, Any]:
    """Return everything that a picture depends on in addition to its prompt and its seed, as plain JSON."""
    sampling = {name: value for name, value in dataclasses.asdict(options).items() if name != "batch"}
    return {
        "fingerprint": backbone.fingerprint.to_json(),
        "dtype": str(backbone.dtype),
        "concept": concept.hash if concept else None,
        "sampling": sampling,
    }


def _file_name(prompt: str, seed: int) -> str:
    """Return a name that people can read and that only this prompt and seed have."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-")
    return f"{words}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-{seed:04d}.png"
