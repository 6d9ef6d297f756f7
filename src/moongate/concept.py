"""The Concept: what training makes, merging combines and generation applies.

A concept is the change of a few weights against a base (deltas), the embeddings of its new tokens, and a record of
where it came from. It is kept in one `.safetensors` file. It knows nothing of pictures, training or sampling.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from moongate.backbone import Backbone, Fingerprint
from moongate.errors import BaseMismatchError, ConceptFileError, TokenError, listed
from moongate.files import check_writable, write_atomically

__all__ = [
    "FORMAT",
    "Concept",
    "Dense",
    "LowRank",
    "SubjectRecord",
    "check_finite",
    "mismatches",
    "read_provenance",
    "safetensors_bytes",
]

FORMAT = "moongate-concept"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A change of one weight, W - W0, in float32."""

    delta: Float[Tensor, "..."]

    def full(self) -> Float[Tensor, "..."]:
        """Return the change as one tensor of the weight's shape."""
        return self.delta

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written into the file, by suffix."""
        return {"delta": self.delta}

    def scaled(self, factor: float) -> Self:
        """Return `factor` times the change."""
        return dataclasses.replace(self, delta=factor * self.delta)

    @property
    def rank(self) -> None:
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.delta.shape)


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A change of one matrix as a product `up @ down`, in float32."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    def full(self) -> Float[Tensor, "out in"]:
        """Return the change as one matrix."""
        return self.up @ self.down

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written into the file, by suffix."""
        return {"up": self.up, "down": self.down}

    def scaled(self, factor: float) -> Self:
        """Return `factor` times the change."""
        return dataclasses.replace(self, up=factor * self.up)

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (self.up.shape[0], self.down.shape[1])


@dataclass(frozen=True, kw_only=True)
class SubjectRecord:
    """What a concept remembers of one thing it was taught."""

    category: str
    """Empty where another program's file does not tell it."""
    token: str | None = None
    prompts: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The words that call the thing up in a prompt: "<bear> teddy bear"."""
        return " ".join(filter(None, (self.token, self.category)))


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Deltas by full parameter name, token embeddings by token, and provenance.

    A token has one row: its rows over the text encoders, one after the other. `record` holds further facts as plain
    JSON: steps, seed, rates, versions.
    """

    deltas: Mapping[str, Dense | LowRank]
    tokens: Mapping[str, Float[Tensor, " width"]] = field(default_factory=dict)
    token_widths: tuple[int, ...] = ()
    """Width of a token's row in each text encoder, in order; may be empty for one encoder."""
    subjects: tuple[SubjectRecord, ...]
    base: str
    fingerprint: Fingerprint
    method: str
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for token, row in self.tokens.items():
            if len(self.token_widths) > 1 and len(row) != sum(self.token_widths):
                raise TokenError(
                    f"The row of {token!r} holds {len(row)} numbers, but the widths {self.token_widths} of the text "
                    f"encoders sum to {sum(self.token_widths)}. Put the rows of all encoders one after the other."
                )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a concept file.

        Raises ConceptFileError when the file is missing, truncated, a pickle, or safetensors of another kind.
        """
        path = Path(path)
        _refuse_other_kinds(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConceptFileError(
                f"{path} is damaged or not a safetensors file ({error}). Copy or download it again."
            ) from error
        if header.get("format") != FORMAT:
            raise ConceptFileError(
                f"{path} is a safetensors file but not a Moongate concept (its metadata lacks format={FORMAT!r}). "
                "Give a file written by `moongate train`, or make one of it with `moongate convert`."
            )
        check_finite(tensors, path)
        try:
            if int(header["version"]) > FORMAT_VERSION:
                raise ConceptFileError(
                    f"{path} has format version {header['version']}; this Moongate reads up to {FORMAT_VERSION}. "
                    "Upgrade Moongate."
                )
            provenance = json.loads(header["concept"])
            tokens = {token: tensors.pop(f"token.{token}") for token in provenance["tokens"]}
            return cls(tokens=tokens, deltas=_deltas(tensors), **read_provenance(provenance))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConceptFileError(
                f"{path} lacks a part that its header promises: {error}. Copy or download it again."
            ) from error

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the concept into one safetensors file, whole or not at all.

        Raises OptionError when the file exists and `overwrite` is false.
        """
        path = Path(path)
        check_writable(path, overwrite=overwrite)
        write_atomically(path, self.file_bytes)
        return path

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, *, strength: float = 1.0) -> Iterator[Backbone]:
        """Change the backbone by `strength` times the deltas and let prompts use the tokens, until the block ends.

        Weights, tokens and tokenizer are restored bit for bit, also after an error. Concepts may be nested; their
        deltas then add up. Raises BaseMismatchError before anything changes when the concept is for another base.
        """
        self.check_base(backbone)
        changed = {
            name: (weight.float() + strength * change.full().to(weight.device)).to(weight.dtype)
            for name, change in self.deltas.items()
            for weight in [backbone.parameter(name).data]
        }
        with backbone.tokens(self.tokens), backbone.weights_replaced(changed):
            yield backbone

    def check_base(self, backbone: Backbone) -> None:
        """Raise BaseMismatchError unless the concept fits this backbone."""
        here = backbone.fingerprint
        wrong = mismatches(backbone, {name: change.shape for name, change in self.deltas.items()})
        if wrong:
            raise BaseMismatchError(
                f"The concept does not fit {backbone.name!r}: {listed(wrong)}. {self._made_for(backbone)}"
            )
        width = sum(backbone.token_widths)
        for token, row in self.tokens.items():
            if len(row) != width or (len(self.token_widths) > 1 and self.token_widths != backbone.token_widths):
                raise BaseMismatchError(
                    f"The token {token!r} has a row of {len(row)} numbers, but {backbone.name!r} reads rows of "
                    f"{' + '.join(map(str, backbone.token_widths))}. {self._made_for(backbone)}"
                )
        if not self.fingerprint.matches(here):
            raise BaseMismatchError(
                f"The concept was made for {self.base!r} (fingerprint {self.fingerprint.short}), but the model is "
                f"{backbone.name!r} (fingerprint {here.short}). Load that model, or train the concept on this one."
            )

    def _made_for(self, backbone: Backbone) -> str:
        if self.base in ("", backbone.name):  # another program's file takes the name of the base it is read with
            return "Its file does not say which model it was made for; name the right one."
        return f"It was made for {self.base!r}; load that model."

    def rows(self, token: str) -> tuple[Float[Tensor, " width"], ...]:
        """Return a token's row in each text encoder."""
        row = self.tokens[token]
        return row.split(self.token_widths or (len(row),))

    def scaled(self, strength: float) -> Self:
        """Return the concept with `strength` times its deltas."""
        if strength == 1:
            return self
        return dataclasses.replace(self, deltas={name: change.scaled(strength) for name, change in self.deltas.items()})

    def renamed(self, tokens: Mapping[str, str]) -> Self:
        """Return the concept with tokens renamed, as `{old: new}`; prompts and records follow."""
        unknown = sorted(set(tokens) - set(self.tokens))
        if unknown:
            raise TokenError(
                f"The concept has no token {unknown[0]!r} to rename. It has: {', '.join(self.tokens) or 'none'}."
            )

        if not tokens:
            return self
        old = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))

        def rename(text: str) -> str:
            return re.sub(rf"(?<!\w)(?:{old})(?!\w)", lambda found: tokens[found[0]], text)

        subjects = tuple(
            SubjectRecord(
                category=subject.category,
                token=subject.token and rename(subject.token),
                prompts=tuple(map(rename, subject.prompts)),
            )
            for subject in self.subjects
        )
        rows = {tokens.get(token, token): row for token, row in self.tokens.items()}
        if len(rows) < len(self.tokens):
            raise TokenError(f"Renaming {dict(tokens)} would give two tokens the same name.")
        return dataclasses.replace(self, tokens=rows, subjects=subjects)

    @cached_property
    def hash(self) -> str:
        """Twelve characters that name the concept's content: its tensors, tokens and words."""
        return hashlib.sha256(self.file_bytes).hexdigest()[:12]

    @cached_property
    def file_bytes(self) -> bytes:
        """What `save` writes."""
        tensors = {f"token.{token}": row for token, row in self.tokens.items()}
        for name, change in self.deltas.items():
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in change.tensors().items()}
        header = {"format": FORMAT, "version": str(FORMAT_VERSION), "concept": json.dumps(self.provenance())}
        return safetensors_bytes(tensors, header)

    def provenance(self) -> dict[str, Any]:
        """Return all that is no tensor as plain JSON; `read_provenance` reads it."""
        provenance: dict[str, Any] = {
            "base": self.base,
            "fingerprint": self.fingerprint.to_json(),
            "subjects": [dataclasses.asdict(subject) for subject in self.subjects],
            "tokens": list(self.tokens),
            "method": self.method,
            "record": dict(self.record),
        }
        if len(self.token_widths) > 1:
            provenance["token_widths"] = list(self.token_widths)
        return provenance


def safetensors_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Return a safetensors file of float32 tensors: the same content gives the same bytes."""
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    return _canonical(to_safetensors(plain, metadata=dict(header)))


def mismatches(backbone: Backbone, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return, for people to read, which weights of these names and shapes the backbone does not have."""
    wrong = []
    for name, shape in shapes.items():
        try:
            here = tuple(backbone.parameter(name).shape)
        except KeyError:
            wrong.append(f"it has no weight {name!r}")
            continue
        if here != shape:
            wrong.append(f"{name!r} is {here} there and {shape} here")
    return wrong


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ConceptFileError when a tensor read from `path` holds a number that is not finite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ConceptFileError(
                f"{name!r} in {path} holds numbers that are not finite, which would spoil every picture. Train the "
                "concept again."
            )


def _refuse_other_kinds(path: Path) -> None:
    if not path.is_file():
        raise ConceptFileError(f"There is no concept file {path}. Check the path; `moongate train` writes one.")
    with path.open("rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{"  # after eight bytes of length, which may begin as a pickle does
    if not is_safetensors and start.startswith((b"PK", b"\x80")):
        raise ConceptFileError(
            f"{path} is a pickle (.bin, .ckpt, .pt), which may run code when it is opened. Moongate reads concepts "
            "from safetensors files only; `moongate convert` reads those of other programs without running code."
        )


def read_provenance(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Concept that `Concept.provenance` wrote, all but tensors."""
    subjects = tuple(SubjectRecord(**{**s, "prompts": tuple(s["prompts"])}) for s in value["subjects"])
    if not (isinstance(value["base"], str) and isinstance(value["record"], Mapping)):
        raise TypeError("the base is no name, or the record no object")
    return {
        "base": value["base"],
        "fingerprint": Fingerprint.from_json(value["fingerprint"]),
        "subjects": subjects,
        "method": value["method"],
        "record": value["record"],
        "token_widths": tuple(value.get("token_widths", ())),
    }


def _deltas(tensors: Mapping[str, Tensor]) -> dict[str, Dense | LowRank]:
    deltas: dict[str, Dense | LowRank] = {}
    for key, tensor in tensors.items():
        name, _, suffix = key.rpartition(".")
        if suffix == "delta":
            deltas[name] = Dense(delta=tensor)
        elif suffix == "up":
            down = tensors[f"{name}.down"]
            if not (tensor.ndim == down.ndim == 2 and tensor.shape[1] == len(down)):
                raise ValueError(f"the factors of {name!r} do not fit together")
            deltas[name] = LowRank(up=tensor, down=down)
    return deltas


def _canonical(serialized: bytes) -> bytes:
    """Return the file with its header keys sorted: safetensors orders metadata differently from run to run."""
    length = int.from_bytes(serialized[:8], "little")
    header = json.loads(serialized[8 : 8 + length])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + serialized[8 + length :]
