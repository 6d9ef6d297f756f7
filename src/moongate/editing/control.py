"""Attention control: a target branch draws with attention of its source branch (Hertz et al. 2022, Sec. 3.2).

The two branches run one after the other in each step, so that they may have different weights. No attention map is ever
formed. A map that is replaced, mixed column by column and reweighted is linear in the values, so the same result comes
from the fast attention of torch with other values:

    M* V = M_source (A diag(c) V) + M_target (diag(own) diag(c) V)

where A is the alignment's mapping, own marks the tokens that keep their own attention, and c has the factors of
reweighting. In a step the source's queries and keys of the controlled layers are kept, and each is dropped once the
target has used it: memory grows with the number of positions, neither with its square nor with the number of steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

from moongate.backbone.attention import AttentionMaps

__all__ = ["BRANCHES", "Branch", "Control", "WordMap", "WordMaps"]

Branch = Literal["source", "target"]
BRANCHES: tuple[Branch, Branch] = ("source", "target")
WordMap = tuple[str, Float[np.ndarray, "rows columns"]]
"""A word, and where a picture attended to it, over the latents."""


@dataclass(kw_only=True, eq=False)
class WordMaps:
    """Where the pictures of one branch attend to some words, added up while they are drawn."""

    words: Float[Tensor, "pictures tokens words"]
    """Weight of each token in each word: with these as values, attention returns a word's map."""
    sums: AttentionMaps

    @classmethod
    def of(cls, words: Sequence[Sequence[Sequence[int]]], *, tokens: int, size: tuple[int, int]) -> "WordMaps":
        """Return maps of words in which nothing is added up yet.

        Args:
            words: For each picture the positions of the pieces of each word; a word's map is the mean of theirs.
            tokens: Number of tokens that the text encoder reads.
            size: Height and width of the latents.
        """
        weights = torch.zeros(len(words), tokens, max(map(len, words)))
        for row, of_picture in zip(weights, words, strict=True):
            for column, positions in enumerate(of_picture):
                row[positions, column] = 1 / max(len(positions), 1)
        return cls(words=weights, sums=AttentionMaps(pictures=len(words), size=size))

    def named(self, picture: int, names: Sequence[str], *, first: int) -> tuple[WordMap, ...]:
        """Return the mean maps of a picture's words from the `first` on, each divided by its largest value."""
        maps = self.sums.mean()[picture, first : first + len(names)]
        return tuple((name, (where / where.max()).numpy()) for name, where in zip(names, maps, strict=True))


@dataclass(kw_only=True, eq=False)
class Control:
    """What computes the attention of both branches of a batch of edits; `attention.computed` calls it for each layer.

    In each branch the last rows of the batch are the pictures, one for each edit. The rows before them belong to
    guidance and are left alone.
    """

    mapping: Float[Tensor, "pictures source target"]
    """`Alignment.mapping` of each edit."""
    own: Float[Tensor, "pictures target"]
    """`Alignment.own` of each edit."""
    factors: Float[Tensor, "pictures target"]
    """What the attention to each token of the target is multiplied by, in every step; 1 changes nothing."""
    maps: Mapping[Branch, WordMaps] | None = None
    """The words of each branch whose maps are recorded, if any."""
    branch: Branch = "source"
    """The branch that runs now."""
    injects_cross: bool = False
    """Whether the target's cross-attention comes from the source in this step."""
    injects_self: bool = False
    """Whether its self-attention does."""
    _kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Queries and keys of the source's pictures in this step, by layer."""

    def __call__(
        self,
        layer: str,
        query: Float[Tensor, "n heads positions width"],
        key: Float[Tensor, "n heads tokens width"],
        value: Float[Tensor, "n heads tokens width"],
    ) -> Float[Tensor, "n heads positions width"]:
        """Return the attention of one layer in the branch that runs now."""
        crosses = layer.endswith(".attn2")
        injects = self.injects_cross if crosses else self.injects_self
        first = len(query) - len(self.own)
        own = query[first:], key[first:]
        if self.branch == "source":
            if injects:
                self._kept[layer] = own
            if crosses and self.maps:
                self._watch(lambda words: attention(*own, words), query)
            return attention(query, key, value)
        source = self._kept.pop(layer) if injects else own
        if crosses:
            if self.maps:
                self._watch(lambda words: self._mixed(own, source, words), query)
            value = torch.cat([value[:first], value[first:] * self.factors[:, None, :, None].to(value)])
        if not injects:
            return attention(query, key, value)
        left_alone = attention(query[:first], key[:first], value[:first])
        injected = self._mixed(own, source, value[first:]) if crosses else attention(*source, value[first:])
        return torch.cat([left_alone, injected])

    def _mixed(
        self,
        own: tuple[Tensor, Tensor],
        source: tuple[Tensor, Tensor],
        value: Float[Tensor, "pictures heads tokens columns"],
    ) -> Float[Tensor, "pictures heads positions columns"]:
        """Return M* V of the equation above, from queries and keys; own attention where both are the same ones."""
        if source is own:
            return attention(*own, value)
        mixed = attention(*source, torch.einsum("nst,nhtc->nhsc", self.mapping.to(value), value))
        if self.own.any():
            mixed = mixed + attention(*own, value * self.own[:, None, :, None].to(value))
        return mixed

    def _watch(self, attend: Callable[[Tensor], Tensor], query: Tensor) -> None:
        """Add up the maps of the branch's words."""
        assert self.maps is not None
        maps = self.maps[self.branch]
        words = maps.words.to(query)[:, None].expand(-1, query.shape[1], -1, -1)
        maps.sums.add(attend(words).mean(1))
