"""Record which words pictures attend to.

The attention probabilities are computed a second time, in addition to the processor that is there. A processor that
replaced it would compute with another kernel and change the pictures; so they stay the same bit for bit.
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


@dataclass(kw_only=True, eq=False)
class AttentionMaps:
    """Attention probabilities, added up while pictures are drawn."""

    pictures: int
    """Pictures in a batch: its last rows. The rows before belong to guidance."""
    size: tuple[int, int]
    """Height and width of the latents."""
    _total: Float[Tensor, "pictures tokens height width"] | None = None
    _count: int = field(default=0)

    def mean(self) -> Float[Tensor, "pictures tokens height width"]:
        """Return the mean over layers, heads and steps so far; at every position the tokens sum to one.

        Raises:
            OptionError: Nothing was drawn.
        """
        if self._total is None:
            raise OptionError("Nothing was drawn while attention was recorded. Draw a picture inside the block.")
        return self._total / self._count

    def add(self, probabilities: Float[Tensor, "pictures positions tokens"]) -> None:
        """Add one layer at one step; its positions are resized to the latents."""
        height, width = self._shape(probabilities.shape[1])
        maps = probabilities.float().transpose(1, 2).reshape(len(probabilities), -1, height, width)
        maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False).cpu()
        self._total = maps if self._total is None else self._total + maps
        self._count += 1

    def _shape(self, positions: int) -> tuple[int, int]:
        """Return the height and width of a layer: those of the latents, halved as often as needed."""
        height, width = self.size
        while height * width > positions:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != positions:
            raise OptionError(
                f"A layer has {positions} positions, but latents of {self.size} cannot be halved to them. Draw a "
                "picture of the size that was given."
            )
        return height, width


@contextlib.contextmanager
def recorded(backbone: Backbone, *, pictures: int, size: tuple[int, int]) -> Iterator[AttentionMaps]:
    """Record the cross-attention of everything drawn in the block.

    Args:
        backbone: The model that draws.
        pictures: Pictures that are drawn at once.
        size: Height and width of the latents.

    Yields:
        The maps, which grow while pictures are drawn.
    """
    maps = AttentionMaps(pictures=pictures, size=size)
    modules: list[Any] = list(backbone.cross_attentions().values())
    before = [module.processor for module in modules]
    try:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(_Recording(processor, maps))
        yield maps
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)


class _Recording:
    """A processor that computes the attention probabilities and then calls the processor that it replaces."""

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
            self._record(attn, hidden_states, encoder_hidden_states)
        return self.processor(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **rest,
        )

    @torch.no_grad()
    def _record(
        self, attn: Any, hidden: Float[Tensor, "n positions width"], text: Float[Tensor, "n tokens text_width"]
    ) -> None:
        last = slice(-self.maps.pictures, None)
        query = attn.head_to_batch_dim(attn.to_q(hidden[last]))
        key = attn.head_to_batch_dim(attn.to_k(text[last]))
        probabilities = attn.get_attention_scores(query, key)
        self.maps.add(probabilities.reshape(-1, attn.heads, *probabilities.shape[1:]).mean(1))
