"""Watch what pictures attend to in their captions; the only code that touches diffusers' attention processors.

What the processors compute is left as it is: pictures drawn meanwhile are those drawn otherwise, bit for bit.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moongate.backbone import Backbone
from moongate.errors import OptionError

__all__ = ["AttentionMaps", "recorded"]


@dataclass(kw_only=True)
class AttentionMaps:
    """Attention probabilities of the last `pictures` of each batch, as they come in; earlier rows are guidance's."""

    pictures: int
    size: tuple[int, int]
    """Height and width of the latents."""
    _total: Tensor | None = None
    _count: int = field(default=0)

    def mean(self) -> Float[Tensor, "pictures tokens height width"]:
        """Return the mean over layers, heads and steps so far; every place's tokens sum to one."""
        if self._total is None:
            raise OptionError("Nothing was drawn while attention was recorded. Draw a picture inside the block.")
        return self._total / self._count

    def add(self, probabilities: Float[Tensor, "pictures places tokens"]) -> None:
        """Take in one layer at one step; its places are scaled up to the latents."""
        height, width = self._shape(probabilities.shape[1])
        maps = probabilities.float().transpose(1, 2).unflatten(2, (height, width))
        maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False).cpu()
        self._total = maps if self._total is None else self._total + maps
        self._count += 1

    def _shape(self, places: int) -> tuple[int, int]:
        """Return the height and width of a layer with so many places: the latents' halved some times."""
        height, width = self.size
        while height * width > places:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != places:
            raise OptionError(f"A layer has {places} places, which are no halving of latents of {self.size}.")
        return height, width


@contextlib.contextmanager
def recorded(backbone: Backbone, *, pictures: int, size: tuple[int, int]) -> Iterator[AttentionMaps]:
    """Record the cross-attention of whatever is drawn in the block, `pictures` at once; restore the processors."""
    maps = AttentionMaps(pictures=pictures, size=size)
    modules: list[Any] = list(backbone.cross_attentions().values())
    found = [module.processor for module in modules]
    try:
        for module, processor in zip(modules, found, strict=True):
            module.set_processor(_Watching(processor, maps))
        yield maps
    finally:
        for module, processor in zip(modules, found, strict=True):
            module.set_processor(processor)


class _Watching:
    """A processor that computes the attention probabilities beside the one that it stands for."""

    def __init__(self, processor: Any, maps: AttentionMaps) -> None:
        self.processor = processor
        self.maps = maps

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            self._watch(attn, hidden_states, encoder_hidden_states)
        return self.processor(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **rest,
        )

    @torch.no_grad()
    def _watch(self, attn: Any, hidden: Float[Tensor, "n places width"], text: Float[Tensor, "n tokens w"]) -> None:
        last = slice(-self.maps.pictures, None)
        query = attn.head_to_batch_dim(attn.to_q(hidden[last]))
        key = attn.head_to_batch_dim(attn.to_k(text[last]))
        probabilities = attn.get_attention_scores(query, key)
        self.maps.add(probabilities.unflatten(0, (-1, attn.heads)).mean(1))
