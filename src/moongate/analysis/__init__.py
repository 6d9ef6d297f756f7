"""Look into a concept: which layers change (paper, Fig. 3), of what rank (Fig. 12), where words look (Fig. 16).

The module computes; `analysis.page` writes what it found as files. It knows nothing of training.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.attention import recorded
from moongate.compression import norm_of, rank_of
from moongate.concept import Concept, Dense, LowRank
from moongate.editing import Edit, EditOptions, edit
from moongate.errors import OptionError
from moongate.sampling import Sample, SampleOptions, latent_shape, sample

__all__ = ["KindOfChange", "Spectrum", "WordMaps", "edit_maps", "spectra", "weight_changes", "word_maps"]


@dataclass(frozen=True, kw_only=True)
class KindOfChange:
    """How far the layers of one kind moved."""

    kind: str
    """cross-attention, self-attention or the rest."""
    mean: float
    """Mean of |W - W0| / |W0| over all layers of the kind, including those that did not move."""
    layers: int
    """Number of layers of the kind."""
    changed: int
    """Number of them that moved."""
    share: float
    """Share of the denoiser's parameters that are of this kind."""
    by_layer: Mapping[str, float]
    """|W - W0| / |W0| of the layers that moved, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Singular values of the change of one weight, largest first."""

    values: Float[Tensor, " values"]

    def rank(self, energy: float) -> int:
        """Return how many values sum to at least `energy` of all; `compress` keeps this rank."""
        return rank_of(self.values, energy)


@dataclass(frozen=True, kw_only=True, eq=False)
class WordMaps:
    """A picture, and for each word of its prompt where the picture attended to it."""

    picture: Sample
    words: tuple[tuple[str, Float[np.ndarray, "height width"]], ...]
    """Each word with a map over the latents, in 0..1."""


@torch.no_grad()
def weight_changes(backbone: Backbone, concept: Concept) -> list[KindOfChange]:
    """Measure how far the denoiser's layers moved, |W - W0| / |W0| by kind of layer (Sec. 3.1 and Fig. 3).

    A layer is a module: its weight and its bias count together.

    Args:
        backbone: The base model.
        concept: The concept.

    Returns:
        One entry for each kind of layer, the kind that moved most first.

    Raises:
        BaseMismatchError: The concept is for another base.
    """
    concept.check_base(backbone)
    weights = backbone.weights("denoiser")
    squares: dict[str, dict[str, tuple[float, float]]] = {}  # by kind and layer: of the change, and of the base
    parameters: dict[str, int] = {}
    for name, weight in weights.items():
        kind, layer = backbone.layer_kind(name), name.rpartition(".")[0]
        change = concept.deltas.get(name)
        moved, size = squares.setdefault(kind, {}).get(layer, (0.0, 0.0))
        moved += norm_of(change) ** 2 if change else 0.0
        squares[kind][layer] = moved, size + float(weight.double().square().sum())
        parameters[kind] = parameters.get(kind, 0) + weight.numel()
    changes = [
        _kind_of_change(kind, layers, share=parameters[kind] / sum(parameters.values()))
        for kind, layers in squares.items()
    ]
    return sorted(changes, key=lambda change: (-change.mean, change.kind))


def spectra(concept: Concept) -> dict[str, Spectrum]:
    """Return the singular values of each change that is a matrix or a convolution (Fig. 12).

    Args:
        concept: The concept; a convolution's kernel is laid flat, one row for each output channel.

    Returns:
        The spectra by name of the weight. Weights that did not change are left out.

    Raises:
        OptionError: The concept changes no such weight.
    """
    result = {}
    for name, change in concept.deltas.items():
        if len(change.shape) > 1 and norm_of(change):
            result[name] = Spectrum(values=_singular_values(change))
    if not result:
        raise OptionError(
            "The concept changes no matrix: it has only tokens, so there is no spectrum to show. Give a concept that "
            "was trained with another method."
        )
    return result


def word_maps(
    backbone: Backbone, prompt: str, *, seeds: tuple[int, ...] = (0,), options: SampleOptions | None = None
) -> list[WordMaps]:
    """Draw pictures and return where each of them attended to each word of the prompt (Fig. 16).

    Args:
        backbone: The model, with any concepts applied and tokens in use.
        prompt: What to draw.
        seeds: One for each picture.
        options: How pictures are drawn.

    Returns:
        For each seed the picture, and for each word the mean attention over heads, layers, steps and the word's
        pieces, divided by its largest value.

    Raises:
        TokenError: The prompt has a `<token>` that no applied concept provides.
        OptionError: The sampling options do not fit.
    """
    options = options or SampleOptions()
    _, height, width = latent_shape(backbone, options)
    result = []
    for seed in seeds:
        with recorded(backbone, pictures=1, size=(height, width)) as maps:
            (picture,) = sample(backbone, [prompt], seeds=[seed], options=options)
        mean = maps.mean()[0]
        words = [(word, mean[positions].mean(0)) for word, positions in backbone.words(prompt)]
        result.append(WordMaps(picture=picture, words=tuple((word, (m / m.max()).numpy()) for word, m in words)))
    return result


def edit_maps(
    backbone: Backbone,
    source: str,
    target: str,
    *,
    concept: Concept | None = None,
    picture: UInt8[np.ndarray, "height width 3"] | None = None,
    seeds: tuple[int, ...] = (0,),
    options: SampleOptions | None = None,
) -> list[WordMaps]:
    """Edit drawn pictures or a photo by prompt-to-prompt, and return where each and its edit attended to each word.

    Args:
        backbone: The model, with no concept applied.
        source: Prompt of the pictures as they are.
        target: Their changed prompt.
        concept: The concept of the edit, if there is one.
        picture: A photo, which the source prompt describes; drawn from the seeds when None.
        seeds: One for each picture.
        options: How pictures are drawn.

    Returns:
        For each seed two entries, the source and the edit.

    Raises:
        TokenError, OptionError or BaseMismatchError: As `editing.edit`.
    """
    edits = [Edit(source=source, target=target, seed=seed, picture=picture) for seed in seeds]
    result = []
    for edited in edit(backbone, edits, concept=concept, options=EditOptions(keeps_maps=True), sampling=options):
        both = ((edited.source, source, edited.source_maps), (edited.image, target, edited.target_maps))
        for image, prompt, words in both:
            result.append(WordMaps(picture=Sample(image=image, prompt=prompt, seed=edited.edit.seed), words=words))
    return result


def _singular_values(change: Dense | LowRank) -> Float[Tensor, " values"]:
    """Return all singular values of a change; low-rank factors are not multiplied out, and the values beyond are 0."""
    matrix = change.core() if isinstance(change, LowRank) else change.delta.double().flatten(1)
    values = torch.linalg.svdvals(matrix)
    count = min(change.shape[0], math.prod(change.shape[1:]))
    return torch.nn.functional.pad(values, (0, count - len(values)))


def _kind_of_change(kind: str, squares: Mapping[str, tuple[float, float]], *, share: float) -> KindOfChange:
    """Return the change of one kind from the squares of each layer's change and of its base weights."""
    changes = {layer: (moved / size) ** 0.5 if size else 0.0 for layer, (moved, size) in squares.items()}
    by_layer = {layer: change for layer, change in changes.items() if change}
    return KindOfChange(
        kind=kind,
        mean=sum(changes.values()) / len(changes),
        layers=len(changes),
        changed=len(by_layer),
        share=share,
        by_layer=by_layer,
    )
