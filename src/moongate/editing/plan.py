"""What to edit and how, and what is found in the prompts before anything is drawn."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.editing.alignment import Alignment, Word, align, positions_of, spelled
from moongate.editing.control import WordMap
from moongate.editing.photos import fitted, fitted_mask
from moongate.errors import OptionError
from moongate.sampling import SampleOptions, check_prompt, latent_shape

__all__ = ["Edit", "EditOptions", "Edited", "Plan", "planned"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """One picture to edit: a photo, or the one that the source prompt and the seed draw."""

    source: str
    """Prompt of the picture before the edit."""
    target: str
    """The changed prompt."""
    seed: int = 0
    """Seed of the noise."""
    picture: UInt8[np.ndarray, "height width 3"] | None = None
    """A photo, which the source prompt describes."""
    mask: UInt8[np.ndarray, "mask_height mask_width"] | None = None
    """White where the picture may change, of the size of the picture; all of it may when None."""
    reweight: Mapping[str, float] = field(default_factory=dict)
    """What the attention to some words of the target is multiplied by, at each of their occurrences. 0 removes the
    words from the attention."""
    blend: tuple[str, ...] = ()
    """Words of either prompt; the picture changes only where it attends to one of them."""


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """How much of the source an edit keeps; the defaults are prompt-to-prompt's."""

    cross_share: float = 0.8
    """Share of the steps, from the first, in which words look where they look in the source."""
    self_share: float = 0.4
    """Share of the steps in which the parts of the picture relate to one another as in the source."""
    blend_threshold: float = 0.3
    """A place counts for `Edit.blend` from this share of the largest attention on."""
    blend_from: float = 0.2
    """Share of the steps after which `Edit.blend` begins, when words look at something."""
    inversion: Literal["direct", "edit-friendly"] = "direct"
    """How the latents of a photo are found: DDIM backwards, put right in every step (Direct Inversion), or independent
    noise at every step (edit-friendly DDPM)."""
    skip: float = 0.36
    """Share of the steps that edit-friendly DDPM leaves out at the beginning: more keeps more of the photo."""
    keeps_maps: bool = False
    """Whether the maps of all words are recorded."""

    def __post_init__(self) -> None:
        for name in ("cross_share", "self_share", "blend_threshold", "blend_from", "skip"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1.")
        if self.skip == 1:
            raise OptionError("skip is 1, which leaves no step to edit in. Give less, such as 0.36.")

    @property
    def scheduler(self) -> str:
        """The scheduler for which the inversion was made."""
        return {"direct": "ddim", "edit-friendly": "ddpm"}[self.inversion]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """An edit that was made."""

    source: UInt8[np.ndarray, "height width 3"]
    """The picture as it was: drawn, or the photo in the size that was edited."""
    image: UInt8[np.ndarray, "height width 3"]
    """The picture after the edit."""
    edit: Edit
    source_maps: tuple[WordMap, ...] = ()
    """Each word of the source prompt with its map, if `EditOptions.keeps_maps`."""
    target_maps: tuple[WordMap, ...] = ()
    """The same for each word of the target prompt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """An edit whose words are found in its prompts, and whose photo has a size that the model draws."""

    edit: Edit
    words: tuple[list[Word], list[Word]]
    """Words of the source and of the target."""
    alignment: Alignment
    factors: Float[Tensor, " tokens"]
    blend: tuple[list[int], list[int]]
    """Positions of the words of `Edit.blend` in the source and in the target."""
    source_has_concept: bool
    changes_nothing: bool
    """Whether the two branches have the same words, factors and weights."""
    size_px: tuple[int, int]

    @property
    def batches_with(self) -> tuple[object, ...]:
        """What the edits of one batch have in common."""
        return self.size_px, self.edit.picture is not None, self.source_has_concept

    def watched(self, branch: int) -> list[list[int]]:
        """Return the positions of the words whose maps may be needed: those of the blend as one word, then each word.

        Args:
            branch: 0 for the source, 1 for the target.
        """
        return [self.blend[branch], *(positions for _, positions in self.words[branch])]


def planned(backbone: Backbone, item: Edit, sampling: SampleOptions, concept: Concept | None) -> Plan:
    """Check an edit and prepare it.

    Args:
        backbone: The model, with the concept applied, so that its tokens are known.
        item: The edit.
        sampling: How pictures are drawn.
        concept: The concept, if there is one.

    Raises:
        TokenError, OptionError: As `edit` says.
    """
    for prompt, kind in ((item.source, "source prompt"), (item.target, "target prompt")):
        check_prompt(backbone, prompt, kind=kind)
    words = (backbone.words(item.source), backbone.words(item.target))
    length = backbone.token_ids([item.source]).shape[1]
    source_has_concept = concept is not None and any(token in item.source for token in concept.tokens)
    has_same_weights = concept is None or source_has_concept
    own_size_px = (sampling.height_px or backbone.resolution_px, sampling.width_px or backbone.resolution_px)
    if item.picture is not None:
        picture = fitted(backbone, item.picture)
        mask = None if item.mask is None else fitted_mask(backbone, item.mask, of=item.picture)
        item = dataclasses.replace(item, picture=picture, mask=mask)
    else:
        latent_shape(backbone, sampling)
        if item.mask is not None and item.mask.shape != own_size_px:
            raise OptionError(
                f"The mask has {item.mask.shape[1]} x {item.mask.shape[0]} pixels, and the picture is drawn with "
                f"{own_size_px[1]} x {own_size_px[0]}. Give the mask that size."
            )
    if item.mask is not None and item.mask.max() < 128:
        raise OptionError("The mask is black where the picture is used, so nothing may change. Paint the place white.")
    return Plan(
        edit=item,
        words=words,
        alignment=align(*words, length=length),
        factors=_factors(backbone, item, words[1], length),
        blend=_blend(backbone, item, words),
        source_has_concept=source_has_concept,
        changes_nothing=item.source == item.target and not item.reweight and has_same_weights,
        size_px=own_size_px if item.picture is None else item.picture.shape[:2],
    )


def _factors(backbone: Backbone, item: Edit, words: Sequence[Word], length: int) -> Float[Tensor, " tokens"]:
    """Return what the attention to each token of the target is multiplied by."""
    factors = torch.ones(length)
    for phrase, factor in item.reweight.items():
        positions = positions_of(words, spelled(backbone.words(phrase)))
        if not positions:
            raise OptionError(
                f"The word {phrase!r}, whose attention is to be reweighted, is not in the target prompt. Its words: "
                f"{', '.join(spelled(words))}."
            )
        if not math.isfinite(factor):
            raise OptionError(f"The weight of {phrase!r} is {factor}. Give a number such as 2.0.")
        factors[positions] = factor
    return factors


def _blend(backbone: Backbone, item: Edit, words: tuple[list[Word], list[Word]]) -> tuple[list[int], list[int]]:
    """Return the positions in the source and in the target of the words where the picture may change."""
    positions: tuple[list[int], list[int]] = ([], [])
    for phrase in item.blend:
        found = [positions_of(prompt, spelled(backbone.words(phrase))) for prompt in words]
        if not any(found):
            raise OptionError(
                f"The word {phrase!r}, where the picture may change, is in neither prompt. Their words: "
                f"{', '.join(dict.fromkeys(spelled([*words[0], *words[1]])))}."
            )
        for branch, more in zip(positions, found, strict=True):
            branch.extend(more)
    return positions
