"""Measuring the concepts that a run has kept: alignment with held-out photos, and drift on unrelated prompts."""

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
from moongate.files import digest
from moongate.merging.neutral import neutral_captions
from moongate.run_page.album import Album, Drawn, Part
from moongate.run_page.drawing import draw
from moongate.run_page.measures import Measured, read_measures, write_measures
from moongate.run_records import kept_concepts
from moongate.training.method import METHODS

__all__ = ["SEEDS", "measure", "unrelated_prompts"]

SEEDS = range(4)
"""Seeds of the pictures of the subject; `moongate train --validate-every` draws the same."""
LEAST_LETTERS = 3
"""Shorter words, such as "a" and the "t" of "t shirt", are in most captions and do not say what is taught."""
SEED = 0
"""Seed of the pictures of unrelated prompts."""

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
    earlier = read_measures(run_folder)
    found = {each.step: each for each in earlier if (each.network, each.photos, each.unrelated) == alike}
    for step, file in ((0, None), *kept.items()):
        if step in found:
            continue
        concept = Concept.load(file) if file else None
        subject, unrelated = _pictures(backbone, Album(run_folder), concept or first, step, prompts)
        before = _features(network, _drawn(Album(run_folder), "unrelated", 0, prompts))
        found[step] = Measured(
            step=step,
            alignment=float(image_alignment(_features(network, subject), targets).mean()),
            drift=float(1 - F.cosine_similarity(_features(network, unrelated), before).mean()) if step else 0.0,
            network=network.name,
            photos=content,
            unrelated=len(prompts),
        )
        write_measures(run_folder, [found[step] for step in sorted(found)])
        on_step(found[step])
    return [found[step] for step in sorted(found)]


def _pictures(
    backbone: Backbone, album: Album, concept: Concept, step: int, prompts: Sequence[str]
) -> tuple[list[Pixels], list[Pixels]]:
    """Return pictures of the subject and of unrelated prompts after a step, drawing those that are missing.

    For step 0 the base draws: the words of the concept without its tokens.
    """
    validated = [each for each in album.drawn("validation") if each.step == step]
    prompt = validated[0].prompt if validated else _prompt(album, concept, step)

    def complete() -> None:
        _complete(backbone, album, "validation", step, [prompt], SEEDS)
        _complete(backbone, album, "unrelated", step, prompts, [SEED])

    if step:
        with concept.applied(backbone):
            complete()
    else:
        complete()
    return _drawn(album, "validation", step, [prompt]), _drawn(album, "unrelated", step, prompts)


def _prompt(album: Album, concept: Concept, step: int) -> str:
    others = [each.prompt for each in album.drawn("validation") if each.step]
    method = METHODS.get(concept.method)
    words = [
        method.worded(each.words, token=each.token, category=each.category) if method else each.words
        for each in concept.subjects
    ]
    prompt = others[0] if others else photo_of(*words)
    return prompt if step else without_tokens(prompt, concept.subjects)


def _complete(
    backbone: Backbone, album: Album, part: Part, step: int, prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    there = {(each.prompt, each.seed) for each in album.drawn(part) if each.step == step}
    if missing := [prompt for prompt in prompts if any((prompt, seed) not in there for seed in seeds)]:
        places = [prompts.index(prompt) for prompt in missing]
        for place, prompt in zip(places, missing, strict=True):
            draw(backbone, album, [prompt], seeds=seeds, step=step, part=part, place=place)


def _drawn(album: Album, part: Part, step: int, prompts: Sequence[str]) -> list[Pixels]:
    found: list[Drawn] = [each for each in album.drawn(part) if each.step == step and each.prompt in prompts]
    return [album.image(each) for each in sorted(found, key=lambda each: (prompts.index(each.prompt), each.seed))]


def _features(network: Network, pictures: Sequence[Pixels]) -> Float[Tensor, "pictures width"]:
    return network.image_features(torch.stack([as_tensor(picture) for picture in pictures]))
