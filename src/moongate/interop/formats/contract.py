"""What a format is: how it is recognized, read and written, and what it keeps of a concept.

A format is a value. Each module of this package declares one, next to the functions that parse and render it. A new
format therefore needs no converter to each of the others, and the table in docs/formats.md is printed from the values.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank
from moongate.errors import ConceptFileError
from moongate.interop.content import Content, read_json
from moongate.provenance import check_provenance

__all__ = ["Format", "Parts", "Rendered", "WriteOptions", "header_of", "provenance_in"]

HEADER_KEY = "moongate"
"""The entry of a safetensors header that holds `Concept.to_json` in files for other programs, which ignore it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a file holds, in Moongate's terms, before its base model is known."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Full weights W by parameter name; the change is W - W0, with the weight W0 of the base."""
    changes: Mapping[str, Dense | LowRank] = field(default_factory=dict)
    """Changes by parameter name, for files that store changes."""
    tokens: Mapping[str, tuple[Float[Tensor, " _width"], ...]] = field(default_factory=dict)
    """The rows of each token, one for each text encoder."""
    subtracted: Mapping[str, Callable[[Tensor], LowRank]] = field(default_factory=dict)
    """By parameter name the function from W0 to a part that must be subtracted from the change, for adapters that were
    initialized from the base's weights."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What a merge kept, by name (`Concept.kept`)."""
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The further tokens of words of several vectors, by their first token."""
    left_out: tuple[str, ...] = ()
    """Keys of the file that a concept cannot hold."""
    notes: tuple[str, ...] = ()
    """Sentences for the user."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What Moongate wrote into the file's header; empty in files of other programs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WriteOptions:
    """What writing may need in addition to the concept."""

    base: Backbone | None = None
    """The base model in float32, for formats that store full weights."""
    rank: int | None = None
    """The maximum rank of low-rank factors. None keeps existing factors and cuts dense changes to `DEFAULT_RANK`."""
    name: str = "concept"
    """The name of files that the format does not name itself, without a suffix."""
    one_file: bool = False
    """Whether a format that is a folder is written as one file, for formats that can be (`Format.fits_one_file`)."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The files of a concept in one format."""

    files: Mapping[str, bytes]
    """Content by file name; the name is empty for a format of a single file."""
    notes: tuple[str, ...] = ()
    """What the files do not hold, as sentences for the user."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which a program stores concepts."""

    name: str
    """The value of `--to`."""
    title: str
    layout: str
    """What its files hold, for people."""
    recognizes: Callable[[Content], bool]
    """Whether a file has this format, decided by its content and never by its name, on which programs do not agree."""
    parse: Callable[[Content], Parts]
    render: Callable[[Concept, WriteOptions], Rendered]
    is_folder: bool = False
    fits_one_file: bool = False
    """Whether a format that is a folder can also be one file."""
    needs_base: bool = False
    """Whether it stores full weights, which need the base model to be written and to be read."""
    keeps_changes: Literal["exactly", "factors", "rounded", "no"]
    """What is read again of the changes of keys and values. "exactly": the same bits. "factors": the same bits of
    low-rank factors, and dense changes cut to a rank. "rounded": the change within float32 rounding of the full
    weight. "no": nothing."""
    keeps_names: bool = True
    """Whether the names of the tokens are read again; every format keeps their rows."""
    keeps_provenance: bool = False
    """Whether categories, prompts, base, fingerprint and record are read again."""
    usage: str = ""
    """Python code that loads the weights in `folder` into a diffusers `pipeline`, for the model card."""


def header_of(concept: Concept) -> dict[str, str]:
    """Return the safetensors header that keeps a concept's provenance in a file for another program."""
    return {"format": "pt", HEADER_KEY: json.dumps(concept.to_json())}


def provenance_in(content: Content) -> dict[str, Any]:
    """Return the provenance that `header_of` wrote, or an empty dictionary for a file of another program.

    Raises:
        ConceptFileError: The entry of the header is not a JSON object, or not one that a concept can have.
    """
    value = read_json(content.header.get(HEADER_KEY, "{}"), content.path)
    try:
        if value:
            check_provenance(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ConceptFileError(f"The header of {content.path} lacks a part: {error}. Download it again.") from error
    return value
