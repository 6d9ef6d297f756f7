"""What a format is: how it is recognized, read and written, and what it does not keep."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank
from moongate.interop.content import Content, read_json

__all__ = ["Format", "Parts", "Rendered", "WriteOptions", "header_of", "provenance_in"]

HEADER_KEY = "moongate"
"""Entry of a safetensors header, in other programs' layouts, that holds what `Concept.provenance` returns."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a file holds in our terms, before its base is known."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Full weights by our name, from which the base's must be taken."""
    changes: Mapping[str, Dense | LowRank] = field(default_factory=dict)
    tokens: Mapping[str, tuple[Float[Tensor, " width"], ...]] = field(default_factory=dict)
    """Rows over the text encoders, by token."""
    left_out: tuple[str, ...] = ()
    """Keys of the file that cannot be taken."""
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What Moongate wrote beside the tensors, when it wrote the file."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What writing may need beside the concept."""

    base: Backbone | None = None
    """The model, in float32, for formats that store full weights."""
    rank: int | None = None
    """The most of a product; None keeps products as they are and cuts dense changes to `DEFAULT_RANK`."""
    name: str = "concept"
    """What files are called after where the format does not say."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Files by name, nameless for a format of one file, and what the user should know."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which a program keeps concepts."""

    name: str
    """As `--to` takes it."""
    title: str
    layout: str
    """What its files hold, for people."""
    recognizes: Callable[[Content], bool]
    parse: Callable[[Content], Parts]
    render: Callable[[Concept, WriteOptions], Rendered]
    is_folder: bool = False
    needs_base: bool = False
    """Whether it stores full weights."""
    keeps_changes: Literal["exactly", "products", "rounded", "no"]
    """What is read again of the changes of keys and values: the same bits; the same bits of products, while a dense
    change is cut to a rank; the change up to float32 rounding of the full weight; nothing."""
    keeps_names: bool = True
    """Whether the tokens' names come back; their rows do from every format."""
    keeps_provenance: bool = False
    """Whether class words, prompts, base, fingerprint and record come back."""
    usage: str = ""
    """The call with which a diffusers `pipeline` takes the weights in `folder`, for the model card."""


def header_of(concept: Concept) -> dict[str, str]:
    """Return the header by which a foreign file that Moongate writes remembers where it came from."""
    return {"format": "pt", HEADER_KEY: json.dumps(concept.provenance())}


def provenance_in(content: Content) -> dict[str, Any]:
    """Return what `header_of` left in a file's header; empty when another program wrote it."""
    return read_json(content.header.get(HEADER_KEY, "{}"), content.path)
