"""Look into a concept: which layers change (paper, Fig. 3), of what rank (Fig. 12), where words look (Fig. 16)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.attention import recorded
from moongate.compression import rank_of
from moongate.concept import Concept
from moongate.errors import OptionError
from moongate.sampling import Sample, SampleOptions, sample

__all__ = ["KindOfChange", "Spectrum", "WordMaps", "spectra", "weight_changes", "word_maps"]


@dataclass(frozen=True, kw_only=True)
class KindOfChange:
    """How far the layers of one kind moved."""

    kind: str
    mean: float
    """Mean of |W - W0| / |W0| over all layers of the kind, those that stayed included (Sec. 3.1)."""
    layers: int
    changed: int
    """How many of them moved."""
    share: float
    """Share of the denoiser's parameters that are of this kind."""
    by_layer: Mapping[str, float]
    """The layers that moved."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of the change of one layer, largest first."""

    values: Float[Tensor, " rank"]

    def rank(self, energy: float) -> int:
        """Return the fewest values whose sum is at least `energy` of all, as compression keeps them."""
        return rank_of(self.values, energy)


@dataclass(frozen=True, kw_only=True)
class WordMaps:
    """A picture, and for each word of its prompt where it was attended to, in 0..1 over the latents."""

    picture: Sample
    words: tuple[tuple[str, np.ndarray], ...]


@torch.no_grad()
def weight_changes(backbone: Backbone, concept: Concept) -> list[KindOfChange]:
    """Return the change by kind of layer, the kind that moved most first. Raises BaseMismatchError.

    A layer is a module: its weight and bias are taken together.
    """
    concept.check_base(backbone)
    sizes: dict[str, dict[str, list[float]]] = {}
    numbers: dict[str, int] = {}
    for name, weight in backbone.weights("denoiser").items():
        kind, layer = backbone.layer_kind(name), name.rpartition(".")[0]
        change = concept.deltas.get(name)
        squares = sizes.setdefault(kind, {}).setdefault(layer, [0.0, 0.0])
        squares[0] += float(change.full().double().square().sum()) if change else 0.0
        squares[1] += float(weight.double().square().sum())
        numbers[kind] = numbers.get(kind, 0) + weight.numel()
    found = []
    for kind, layers in sizes.items():
        rates = {layer: (moved / size) ** 0.5 if size else 0.0 for layer, (moved, size) in layers.items()}
        by_layer = {layer: rate for layer, rate in rates.items() if rate}
        found.append(
            KindOfChange(
                kind=kind,
                mean=sum(rates.values()) / len(rates),
                layers=len(rates),
                changed=len(by_layer),
                share=numbers[kind] / sum(weight.numel() for weight in backbone.weights("denoiser").values()),
                by_layer=by_layer,
            )
        )
    return sorted(found, key=lambda change: (-change.mean, change.kind))


def spectra(concept: Concept) -> dict[str, Spectrum]:
    """Return the singular values of each change that is a matrix or a convolution (its kernel laid flat).

    Raises OptionError when the concept changes no such weight.
    """
    found = {}
    for name, change in concept.deltas.items():
        delta = change.full()
        if delta.ndim > 1 and delta.any():
            found[name] = Spectrum(values=torch.linalg.svdvals(delta.double().flatten(1)))
    if not found:
        raise OptionError("The concept changes no matrix: it has tokens alone, so that there is no spectrum to show.")
    return found


def word_maps(
    backbone: Backbone, prompt: str, *, seeds: tuple[int, ...] = (0,), options: SampleOptions | None = None
) -> list[WordMaps]:
    """Draw pictures with whatever weights the backbone holds, and tell where each word was attended to.

    The maps are means over heads, layers and steps; of a word in several pieces, over these too. Each is scaled by
    its own largest value.
    """
    options = options or SampleOptions()
    sides = [side or backbone.resolution_px for side in (options.height_px, options.width_px)]
    size = (sides[0] // backbone.latent_scale, sides[1] // backbone.latent_scale)
    found = []
    for seed in seeds:
        with recorded(backbone, pictures=1, size=size) as maps:
            (picture,) = sample(backbone, [prompt], seeds=[seed], options=options)
        mean = maps.mean()[0]
        words = [(word, mean[positions].mean(0)) for word, positions in backbone.words(prompt)]
        scaled = tuple((word, (where / where.max()).numpy()) for word, where in words)
        found.append(WordMaps(picture=picture, words=scaled))
    return found
