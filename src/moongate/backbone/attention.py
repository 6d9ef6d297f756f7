"""Record which words pictures attend to, or compute attention in another way.

`recorded` computes the probabilities a second time, in addition to the processor that is there, so that the pictures
stay the same bit for bit. `computed` replaces the processors of some layers, and hands their queries, keys and values
to a function.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moongate.backbone import Backbone
from moongate.errors import OptionError

__all__ = ["Attend", "AttentionMaps", "computed", "layer_size", "recorded", "self_attentions"]


class Attend(Protocol):
    """What computes attention in `computed`."""

    def __call__(
        self,
        layer: str,
        query: Float[Tensor, "n heads positions width"],
        key: Float[Tensor, "n heads tokens width"],
        value: Float[Tensor, "n heads tokens width"],
    ) -> Float[Tensor, "n heads positions width"]:
        """Return what each position gets; `scaled_dot_product_attention` of the three is what the model does itself."""
        ...


@dataclass(kw_only=True, eq=False)
class AttentionMaps:
    """Attention probabilities, added up while pictures are drawn."""

    pictures: int
    """Pictures in a batch: its last rows. The rows before belong to guidance."""
    size: tuple[int, int]
    """Height and width of the latents."""
    _total: Float[Tensor, "pictures tokens height width"] | None = None
    _count: int = 0

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
        height, width = layer_size(probabilities.shape[1], self.size)
        maps = probabilities.float().transpose(1, 2).reshape(len(probabilities), -1, height, width)
        maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False).cpu()
        self._total = maps if self._total is None else self._total + maps
        self._count += 1


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


@contextlib.contextmanager
def computed(layers: Mapping[str, nn.Module], attend: Attend) -> Iterator[None]:
    """Let `attend` compute the attention of some layers until the block ends; errors restore the processors as well.

    Args:
        layers: Attention modules by name, such as `backbone.cross_attentions()`.
        attend: Called for each layer with its name. A plain `scaled_dot_product_attention` there gives the same
            pictures bit for bit as diffusers' own processor.
    """
    modules: dict[str, Any] = dict(layers)
    before = {name: module.processor for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.set_processor(_Computing(name, attend))
        yield
    finally:
        for name, processor in before.items():
            modules[name].set_processor(processor)


def self_attentions(backbone: Backbone) -> dict[str, nn.Module]:
    """Return the modules in which positions of the picture attend to one another, by full name."""
    return {f"unet.{name}": module for name, module in backbone.unet.named_modules() if name.endswith(".attn1")}


def layer_size(positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a layer: those of the latents, halved as often as needed.

    Args:
        positions: Number of the layer's positions.
        size: Height and width of the latents.

    Raises:
        OptionError: The latents cannot be halved to this number of positions.
    """
    height, width = size
    while height * width > positions:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise OptionError(
            f"A layer has {positions} positions, but latents of {size} cannot be halved to them. Draw a "
            "picture of the size that was given."
        )
    return height, width


class _Computing:
    """A processor for the attention layers of a transformer block, whose hidden states are normalized already."""

    def __init__(self, name: str, attend: Attend) -> None:
        self.name = name
        self.attend = attend

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        heads = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        attended = self.attend(self.name, *heads)
        output, dropout = attn.to_out
        return dropout(output(attended.transpose(1, 2).flatten(2)))


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
