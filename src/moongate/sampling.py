"""Draw pictures: prompts and seeds to images, one random generator per picture (paper, Sec. 4: DDPM, guidance 6).

`sample` draws with the weights and tokens that the backbone has at that time; applying a concept is the caller's `with`
block. `draw_missing` keeps pictures in a folder and draws only those that are not there yet. The module knows nothing
of training or of judging pictures.
"""

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.backbone.schedulers import SCHEDULERS, check_scheduler, make_scheduler, timed_scheduler
from moongate.concept import Concept
from moongate.data.pictures import as_pixels
from moongate.errors import OptionError, TokenError, shortened, warn
from moongate.files import digest, file_name, write_atomically
from moongate.limits import MAX_CAPTION_CHARACTERS, MAX_DRAWN_PX, check_count
from moongate.pages import png_bytes
from moongate.texts import is_encodable

__all__ = [
    "MAX_ENLARGEMENT",
    "SCHEDULERS",
    "SETTINGS_FILE",
    "Sample",
    "SampleOptions",
    "check_pairs",
    "check_prompt",
    "check_scheduler",
    "check_seeds",
    "denoised",
    "draw_missing",
    "first_noise",
    "guided_prediction",
    "is_guided",
    "latent_shape",
    "make_scheduler",
    "prompted",
    "sample",
    "step_arguments",
    "timed_scheduler",
]

MAX_STEPS = 1000
"""Noise levels of the models that are read; more denoising steps than levels cannot be taken."""
MAX_GUIDANCE = 100
"""Beyond a few dozen pictures are noise; a larger number is a mistake."""
MAX_ENLARGEMENT = 8
"""Sides of more than this multiple of the model's own (cost grows with their fourth power), or less than its inverse,
are refused."""
PAPER_GUIDANCE = 6.0
"""Scale of guidance in the paper's experiments (Sec. 4)."""
SETTINGS_FILE = "settings.json"
"""File in a folder of `draw_missing` that says what its pictures depend on."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How pictures are drawn; the defaults are the paper's."""

    steps: int = 50
    """Number of denoising steps."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 0..1 draws only the conditional prediction. None: the model's, or else 6."""
    scheduler: str = "ddpm"
    """One of `SCHEDULERS`, or the name of a scheduler class of diffusers."""
    negative_prompt: str = ""
    """What guidance leads away from; without guidance it has no effect."""
    width_px: int | None = None
    """Width in pixels, a multiple of a latent cell; None is the model's own."""
    height_px: int | None = None
    """Height in pixels; None is the model's own."""
    batch: int = 8
    """Number of pictures drawn at once."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "width_px", "height_px"):
            check_count(name, getattr(self, name))
        if self.steps > MAX_STEPS:
            raise OptionError(f"steps is {self.steps}; models have {MAX_STEPS} noise levels, so it is at most that.")
        if (side := max(self.width_px or 1, self.height_px or 1)) > MAX_DRAWN_PX:
            raise OptionError(f"A side of {side} px cannot be drawn; it is at most {MAX_DRAWN_PX} px. Enlarge later.")
        if self.guidance is not None and not 0 <= self.guidance <= MAX_GUIDANCE:
            raise OptionError(f"guidance is {self.guidance}; it must be in 0..{MAX_GUIDANCE} (the paper's is 6).")

    def for_model(self, backbone: Backbone) -> Self:
        """Return the options with the guidance of the model's `moongate.json`, or the paper's, if none is set."""
        if self.guidance is not None:
            return self
        guidance = backbone.settings.guidance
        return replace(self, guidance=PAPER_GUIDANCE if guidance is None else guidance)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One drawn picture with its prompt and seed."""

    image: UInt8[np.ndarray, "height width 3"]
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
    """Draw one picture for each pair of prompt and seed.

    All randomness of a picture comes from its own seed, so it does not depend on what is drawn in the same batch.

    Args:
        backbone: The model, with any concepts applied and tokens in use.
        prompts: One for each picture.
        seeds: One for each picture.
        options: How pictures are drawn.
        on_step: Called after each denoising step of each batch.

    Returns:
        An iterator over the pictures in the order of the prompts. Each batch is drawn when it is asked for; what can
        be checked is checked before this function returns.

    Raises:
        TokenError: A prompt has a `<token>` that no applied concept provides, or that the text encoder does not read.
        OptionError: The numbers of prompts and seeds differ, the scheduler is unknown or cannot take the
            number of steps, or a side does not fit.
    """
    options = (options or SampleOptions()).for_model(backbone)
    check_pairs(prompts, seeds)
    for prompt in dict.fromkeys(prompts):
        check_prompt(backbone, prompt)
    if options.negative_prompt:
        check_prompt(backbone, options.negative_prompt, kind="negative prompt")
        if not is_guided(backbone, options):
            warn(
                f"The negative prompt {options.negative_prompt!r} has no effect without guidance: "
                f"{_why_unguided(backbone, options)}."
            )
    check_seeds(seeds)
    timed_scheduler(backbone, options.scheduler, options.steps)
    latent_shape(backbone, options)
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

    The files are in a folder inside `folder`. Its name is a digest of everything else that the pictures depend on: the
    base model, its precision, the concept and the sampling options; a `settings.json` in it lists them. So a stopped
    run continues, pictures of different settings never mix, and several processes may draw into one folder, because
    each file is written completely or not at all. A file that keeps the state of the run was rejected: it can
    disagree with the pictures, and a name cannot.

    Args:
        backbone: The model, with no concept applied.
        prompts: One for each picture.
        seeds: One for each picture.
        folder: Where the folder for these settings is made.
        concept: The concept to apply while drawing; the base model draws when None.
        options: How pictures are drawn. `batch` is no part of the folder's name, because pictures do not depend on it.
        on_picture: Called after each drawn picture with the number of pictures that exist and the number wanted.

    Returns:
        The files in the order of the prompts; equal pairs share one file.

    Raises:
        TokenError: A prompt has a `<token>` that neither the backbone nor the concept provides.
        OptionError: The options do not fit, the numbers of prompts and seeds differ, or a file cannot be written.
        BaseMismatchError: The concept is for another base.
    """
    options = (options or SampleOptions()).for_model(backbone)
    check_pairs(prompts, seeds)
    settings = _settings(backbone, concept, options)
    place = folder / digest(json.dumps(settings, sort_keys=True))
    pairs = list(zip(prompts, seeds, strict=True))
    paths = [place / _picture_name(prompt, seed) for prompt, seed in pairs]
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


def check_prompt(backbone: Backbone, prompt: str, *, kind: str = "prompt") -> None:
    """Check that every `<token>` of a prompt is known now and is read; warn of the part of a prompt that is not read.

    Args:
        backbone: The model, with any concepts applied and tokens in use.
        prompt: The words.
        kind: What messages call it.

    Raises:
        OptionError: The prompt has more than `MAX_CAPTION_CHARACTERS`, or a character that UTF-8 cannot hold.
        TokenError: It names the first unknown token and the known ones, or a token in the part that is cut off.
    """
    if len(prompt) > MAX_CAPTION_CHARACTERS:
        raise OptionError(
            f"The {kind} has {len(prompt)} characters; at most {MAX_CAPTION_CHARACTERS} are read. Shorten it: the text "
            "encoder reads some 75 words."
        )
    if not is_encodable(prompt):
        raise OptionError(f"The {kind} {shortened(prompt)!r} has a character that UTF-8 cannot hold. Type it in UTF-8.")
    unknown = backbone.unknown_tokens(prompt)
    if unknown:
        known = ", ".join(backbone.known_tokens) or "none; give --concept"
        raise TokenError(
            f"The {kind} {shortened(prompt)!r} uses the unknown token {unknown[0]!r}. Known tokens: {known}."
        )
    lost = backbone.cut_off(prompt)
    if not lost:
        return
    read, said = prompt.removesuffix(lost), f"{kind} {shortened(prompt)!r} is longer than the text encoder reads"
    for token in backbone.known_tokens:
        if token.lower() in prompt.lower() and token.lower() not in read.lower():
            raise TokenError(
                f"The {said}, and its end {shortened(lost)!r} with the token {token!r} would be cut off. Shorten it, "
                "or move the token to its beginning."
            )
    warn(f"The {said}. This end has no effect: {shortened(lost)!r}.")


def check_seeds(seeds: Iterable[int]) -> None:
    """Check that PyTorch's generators take the seeds. Raises OptionError for one of more than 64 bits."""
    for seed in seeds:
        if not -(2**63) <= seed < 2**63:
            raise OptionError(f"The seed {seed} is out of range. Give a whole number of at most 18 digits.")


# --- drawing ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _drawn(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SampleOptions,
    on_step: Callable[[], None] | None,
) -> Iterator[Sample]:
    for begin in range(0, len(prompts), options.batch):
        batch = slice(begin, begin + options.batch)
        latents = denoised(backbone, prompts[batch], seeds[batch], options, on_step)
        pictures = as_pixels(backbone.decode_latents(latents))
        for image, prompt, seed in zip(pictures, prompts[batch], seeds[batch], strict=True):
            yield Sample(image=image, prompt=prompt, seed=seed)


def denoised(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SampleOptions,
    on_step: Callable[[], None] | None = None,
) -> Float[Tensor, "pictures channels height width"]:
    """Return latents without noise, of one batch; each seed gives a picture's first noise and, if used, each step's."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = first_noise(backbone, generators, options)
    scheduler = timed_scheduler(backbone, options.scheduler, options.steps)
    latents = noise * scheduler.init_noise_sigma
    text = prompted(backbone, prompts, options)
    extra = step_arguments(scheduler, generators)
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, timestep)
        predicted = guided_prediction(backbone, noisy, timestep, text, options)
        latents = scheduler.step(predicted, timestep, latents, **extra).prev_sample
        if on_step:
            on_step()
    return latents


def first_noise(
    backbone: Backbone, generators: Sequence[torch.Generator], options: SampleOptions
) -> Float[Tensor, "pictures channels height width"]:
    """Return the noise that each picture begins with, from its own generator; raises errors as `latent_shape`."""
    shape = latent_shape(backbone, options)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(backbone.device)


def prompted(backbone: Backbone, prompts: Sequence[str], options: SampleOptions) -> Conditioning:
    """Return the conditioning of prompts; with guidance, that of the negative prompt comes first, once for each."""
    text = backbone.encode_text(prompts)
    if not is_guided(backbone, options):
        return text
    return Conditioning.cat([backbone.encode_negative(options.negative_prompt, len(prompts)), text])


def guided_prediction(
    backbone: Backbone,
    noisy: Float[Tensor, "pictures channels height width"],
    timestep: Tensor,
    text: Conditioning,
    options: SampleOptions,
) -> Float[Tensor, "pictures channels height width"]:
    """Return what the denoiser predicts, led away from the negative prompt if there is guidance.

    Args:
        backbone: The model.
        noisy: Latents with noise, in the scale of the denoiser's input.
        timestep: Their common noise level.
        text: What `prompted` returned for the same options.
        options: How pictures are drawn, with the guidance of `for_model`.
    """
    guided, guidance = is_guided(backbone, options), options.guidance
    noisy = torch.cat([noisy, noisy]) if guided else noisy
    predicted = backbone.predict(noisy, timestep.expand(len(noisy)), text, guidance=guidance)
    if not guided:
        return predicted
    assert guidance is not None  # `for_model` fills it in
    unconditional, conditional = predicted.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def step_arguments(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return the further arguments of a scheduler's `step`: the generators, if it draws noise."""
    takes_generators = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if takes_generators else {}


def is_guided(backbone: Backbone, options: SampleOptions) -> bool:
    """Return whether each step also predicts from the negative prompt, as in diffusers' pipelines."""
    return options.guidance is not None and options.guidance > 1 and not backbone.takes_guidance


def _why_unguided(backbone: Backbone, options: SampleOptions) -> str:
    if backbone.takes_guidance:
        return "this model takes the scale of guidance as an input"
    return f"guidance is {options.guidance}, and starts above 1"


def latent_shape(backbone: Backbone, options: SampleOptions) -> tuple[int, int, int]:
    """Return channels, height and width of a picture's latents. Raises OptionError when a side does not fit."""
    cell, own, times = backbone.latent_scale, backbone.resolution_px, MAX_ENLARGEMENT
    sides = [side or own for side in (options.height_px, options.width_px)]
    for side in sides:
        if side < cell or side % cell:
            nearest = max(cell, round(side / cell) * cell)
            raise OptionError(f"A side of {side} px is not a positive multiple of {cell} px. Give {nearest}.")
        if side > times * own:
            raise OptionError(
                f"A side of {side} px is more than {times} times that of the model's pictures, {own} px, which would "
                "take hours. Enlarge later."
            )
        if side * times < own:
            raise OptionError(
                f"A side of {side} px is less than 1/{times} of that of the model's pictures, {own} px, which would "
                "show nothing. Draw larger."
            )
    return (int(backbone.unet.config.in_channels), sides[0] // cell, sides[1] // cell)


def check_pairs(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise OptionError unless there are as many seeds as prompts."""
    if len(prompts) != len(seeds):
        raise OptionError(f"{len(prompts)} prompts and {len(seeds)} seeds were given; each picture needs one of each.")


# --- files ------------------------------------------------------------------------------------------------------------


def _settings(backbone: Backbone, concept: Concept | None, options: SampleOptions) -> dict[str, Any]:
    """Return everything that a picture depends on in addition to its prompt and its seed, as plain JSON."""
    sampling = {name: value for name, value in dataclasses.asdict(options).items() if name != "batch"}
    return {
        "fingerprint": backbone.fingerprint.to_json(),
        "dtype": str(backbone.dtype),
        "concept": concept.hash if concept else None,
        "sampling": sampling,
    }


def _picture_name(prompt: str, seed: int) -> str:
    """Return a name that people can read and that no other prompt or seed has."""
    return f"{file_name(prompt)}-{digest(prompt, length=8)}-{seed:04d}.png"
