"""Measuring the concepts that a run has kept: alignment with held-out photos, and drift on unrelated prompts."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import square
from moongate.data.captions import photo_of, without_tokens
from moongate.data.pictures import as_tensor
from moongate.errors import OptionError
from moongate.evaluation.metrics import image_alignment
from moongate.evaluation.networks import Network
from moongate.evaluation.prompts import subject_words
from moongate.files import digest
from moongate.merging.neutral import neutral_captions
from moongate.run_page.album import Album, Part
from moongate.run_page.drawing import draw
from moongate.run_page.measures import Measured, read_measures, write_measures
from moongate.run_records import kept_concepts

__all__ = ["SEEDS", "measure", "unrelated_prompts"]

SEEDS = range(4)
"""Seeds of the pictures of the subject; `moongate train --validate-every` draws the same."""
LEAST_LETTERS = 3
"""Shorter words, such as "a" and the "t" of "t shirt", are in most captions and do not say what is taught."""
UNRELATED_SEEDS = (0,)
"""Seeds of the pictures of unrelated prompts."""

Pixels = UInt8[np.ndarray, "_height _width 3"]


def unrelated_prompts(words: Sequence[str], count: int) -> list[str]:
    """Return captions of a merge's neutral ones that name none of the words; any captions if all do.

    Args:
        words: What is taught, such as categories.
        count: How many.
    """
    named = [word.lower() for text in words for word in text.split() if len(word) >= LEAST_LETTERS]
    captions = neutral_captions()
    return ([text for text in captions if not any(word in text.lower() for word in named)] or captions)[:count]


def measure(
    backbone: Backbone,
    run_folder: Path,
    photos: Sequence[Pixels],
    network: Network,
    *,
    count: int = 8,
    on_step: Callable[[Measured], None] = lambda _measured: None,
) -> list[Measured]:
    """Measure the concepts that a run has kept and the base, but none that was measured before in the same way.

    Pictures are drawn into the run's album, and those that are there already are not drawn again.

    Args:
        backbone: The base model, with no concept applied.
        run_folder: The run; it may still be going on.
        photos: Pictures of the subject that it does not learn from.
        network: The network whose features are compared.
        count: Number of unrelated prompts.
        on_step: Called after each concept, when its measures are written.

    Raises:
        OptionError: There are no photos, or the run has kept no concept.
        BaseMismatchError: The run is of another base.
    """
    kept = kept_concepts(run_folder)
    if not photos:
        raise OptionError("There are no photos to compare with.")
    if not kept:
        raise OptionError(f"{run_folder} has kept no concept to measure. Train with --save-every.")
    content = digest(*(np.ascontiguousarray(photo).tobytes() for photo in photos))
    targets = network.image_features(torch.stack([square(photo, backbone.resolution_px) for photo in photos]))
    first = Concept.load(next(iter(kept.values())))
    prompts = unrelated_prompts([subject.words for subject in first.subjects], count)
    alike = (network.name, content, len(prompts))
    album, earlier = Album(run_folder), read_measures(run_folder)
    measures = {each.step: each for each in earlier if (each.network, each.photos, each.unrelated) == alike}
    for step, file in ((0, None), *kept.items()):
        if step in measures:
            continue
        concept = Concept.load(file) if file else first
        subject, unrelated = _pictures(backbone, album, concept, step, prompts)
        before = _features(network, _drawn(album, "unrelated", 0, prompts))
        measures[step] = Measured(
            step=step,
            alignment=float(image_alignment(_features(network, subject), targets).mean()),
            drift=float(1 - F.cosine_similarity(_features(network, unrelated), before).mean()) if step else 0.0,
            network=network.name,
            photos=content,
            unrelated=len(prompts),
        )
        write_measures(run_folder, [measures[step] for step in sorted(measures)])
        on_step(measures[step])
    return [measures[step] for step in sorted(measures)]


def _pictures(
    backbone: Backbone, album: Album, concept: Concept, step: int, prompts: Sequence[str]
) -> tuple[list[Pixels], list[Pixels]]:
    """Return pictures of the subject and of unrelated prompts after a step, drawing those that are missing.

    For step 0 the base draws: the words of the concept without its tokens.
    """
    validated = [each for each in album.drawn("validation") if each.step == step]
    prompt = validated[0].prompt if validated else _prompt(album, concept, step)
    with concept.applied(backbone) if step else contextlib.nullcontext():
        _complete(backbone, album, "validation", step, [prompt], SEEDS)
        _complete(backbone, album, "unrelated", step, prompts, UNRELATED_SEEDS)
    return _drawn(album, "validation", step, [prompt]), _drawn(album, "unrelated", step, prompts)


def _prompt(album: Album, concept: Concept, step: int) -> str:
    """Return the prompt of the subject after a step: that of other steps, or else a photo of it."""
    others = [drawn.prompt for drawn in album.drawn("validation") if drawn.step]
    prompt = others[0] if others else photo_of(*subject_words(concept))
    return prompt if step else without_tokens(prompt, concept.subjects)


def _complete(
    backbone: Backbone, album: Album, part: Part, step: int, prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    """Draw the pictures of a step that the album lacks."""
    there = {(drawn.prompt, drawn.seed) for drawn in album.drawn(part) if drawn.step == step}
    for place, prompt in enumerate(prompts):
        if not there.issuperset((prompt, seed) for seed in seeds):
            draw(backbone, album, [prompt], seeds=seeds, step=step, part=part, place=place)


def _drawn(album: Album, part: Part, step: int, prompts: Sequence[str]) -> list[Pixels]:
    """Return the pictures of a step in the order of the prompts and seeds."""
    pictures = [drawn for drawn in album.drawn(part) if drawn.step == step and drawn.prompt in prompts]
    pictures.sort(key=lambda drawn: (prompts.index(drawn.prompt), drawn.seed))
    return [album.image(drawn) for drawn in pictures]


def _features(network: Network, pictures: Sequence[Pixels]) -> Float[Tensor, "pictures width"]:
    return network.image_features(torch.stack([as_tensor(picture) for picture in pictures]))
