"""The Concept: what training makes, merging combines and generation applies.

A concept is the change of some weights relative to a base (deltas), the embedding rows of its new tokens, and a record
of its origin. It is stored in one `.safetensors` file. The module knows nothing of pictures, training and sampling.
"""

import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone, Fingerprint
from moongate.backbone.text import folded
from moongate.errors import BaseMismatchError, ConceptFileError, TokenError, listed
from moongate.files import check_writable, digest, is_file, write_atomically
from moongate.limits import CONCEPT_VERSION
from moongate.provenance import check_provenance
from moongate.summary import FORMAT, KEPT
from moongate.tensor_files import CHECKSUM, check_finite, checksum, read_tensors, safetensors_bytes
from moongate.texts import parse_json

__all__ = ["FORMAT", "Concept", "Dense", "LowRank", "SubjectRecord", "mismatches"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """A change of one weight, W - W0, in float32."""

    delta: Float[Tensor, "..."]

    def full(self) -> Float[Tensor, "..."]:
        """Return the change as one tensor of the weight's shape."""
        return self.delta

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are stored in a file, by the suffix of their name."""
        return {"delta": self.delta}

    def scaled(self, factor: float) -> Self:
        """Return `factor` times the change."""
        return dataclasses.replace(self, delta=factor * self.delta)

    @property
    def rank(self) -> None:
        """None: the change has no low-rank factors."""
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.delta.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """A change of one matrix as two low-rank factors, `up @ down`, in float32."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    def full(self) -> Float[Tensor, "out in"]:
        """Return the change as one matrix."""
        return self.up @ self.down

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are stored in a file, by the suffix of their name."""
        return {"up": self.up, "down": self.down}

    def scaled(self, factor: float) -> Self:
        """Return `factor` times the change."""
        return dataclasses.replace(self, up=factor * self.up)

    def core(self) -> Float[Tensor, "_ _"]:
        """Return a small matrix, float64, of the same singular values and Frobenius norm (QR of both factors)."""
        return torch.linalg.qr(self.up.double()).R @ torch.linalg.qr(self.down.double().T).R.T

    @property
    def rank(self) -> int:
        """Number of columns of `up` and rows of `down`."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (self.up.shape[0], self.down.shape[1])


@dataclass(frozen=True, kw_only=True)
class SubjectRecord:
    """What a concept records of one subject that it was taught."""

    category: str
    """Empty if the concept comes from another program's file that does not state it."""
    token: str | None = None
    prompts: tuple[str, ...] = ()
    """The captions it was taught with, each once."""
    more_tokens: tuple[str, ...] = ()
    """The tokens that follow `token` in a prompt, for a word of several vectors from another program."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that stand for the subject in a prompt, in order."""
        return (self.token, *self.more_tokens) if self.token else ()

    @property
    def words(self) -> str:
        """The words for the subject in a prompt: "<bear> teddy bear"."""
        return " ".join(filter(None, (*self.tokens, self.category)))

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON; `from_json` reads it."""
        more = {"more_tokens": list(self.more_tokens)} if self.more_tokens else {}
        return {"category": self.category, "token": self.token, "prompts": list(self.prompts), **more}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        return cls(
            category=value["category"],
            token=value.get("token"),
            prompts=tuple(value["prompts"]),
            more_tokens=tuple(value.get("more_tokens", ())),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Concept:
    """Deltas by full parameter name, token rows by token, and the record of their origin.

    Raises:
        TokenError: A token's row does not have the width of all text encoders together.
    """

    deltas: Mapping[str, Dense | LowRank]
    tokens: Mapping[str, Float[Tensor, " width"]] = field(default_factory=dict)
    """One embedding row for each token: its rows in all text encoders, one after the other."""
    token_widths: tuple[int, ...] = ()
    """Width of a token's row in each text encoder, in order; may be empty for one encoder."""
    subjects: tuple[SubjectRecord, ...]
    base: str
    """Name of the base model; empty if it is not known."""
    fingerprint: Fingerprint
    """What identifies the weights of the base model."""
    method: str
    """Name of the method that made the concept."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Further facts as plain JSON: steps, seed, learning rate, versions."""
    kept: Mapping[str, Float[Tensor, "rows _"]] = field(default_factory=dict)
    """What a merge kept, for later merges: the text `features`, and by matrix the change of their keys or values."""

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

        Raises:
            ConceptFileError: The file is missing, damaged, a pickle, safetensors of another kind, or written by a later
                version.
        """
        path = Path(path)
        _refuse_other_kinds(path)
        return cls.from_file(path, *read_tensors(path))

    @classmethod
    def from_file(cls, path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Self:
        """Return the concept of a safetensors file whose content was read from `path`. Raises as `load` does."""
        if header.get("format") != FORMAT:
            raise ConceptFileError(
                f"{path} is a safetensors file but not a Moongate concept (its metadata lacks format={FORMAT!r}). "
                "Give a file written by `moongate train`, or make one of it with `moongate convert`."
            )
        others = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        check_finite(others, path)
        try:
            if int(header["version"]) > CONCEPT_VERSION:
                raise ConceptFileError(
                    f"{path} has format version {header['version']}; this Moongate reads up to {CONCEPT_VERSION}. "
                    "Upgrade Moongate."
                )
            facts = parse_json(header["concept"])
            tokens = {token: others.pop(f"token.{token}") for token in facts["tokens"]}
            kept = {name.removeprefix(KEPT): others.pop(name) for name in list(others) if name.startswith(KEPT)}
            if any(row.ndim != 1 or not row.is_floating_point() for row in tokens.values()):
                raise ValueError("the row of a token is not a vector")
            concept = cls.from_json(facts, deltas=_deltas(others), tokens=tokens, kept=kept)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
            raise ConceptFileError(
                f"{path} lacks a part that its header promises: {error}. Copy or download it again."
            ) from error
        if CHECKSUM in header and header[CHECKSUM] != checksum(tensors, header["concept"]):
            raise ConceptFileError(f"{path} is damaged: its checksum does not match. Copy or download it again.")
        return concept

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the concept into one safetensors file, completely or not at all.

        Raises:
            OptionError: The file exists and `overwrite` is false, or it cannot be written.
        """
        path = Path(path)
        check_writable(path, overwrite=overwrite)
        write_atomically(path, self.file_bytes)
        return path

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, *, strength: float = 1.0) -> Iterator[Backbone]:
        """Add `strength` times the deltas to the backbone and let prompts use the tokens, until the block ends.

        Weights, tokens and tokenizer are restored bit for bit, also after an error. Concepts may be nested; their
        deltas then add up.

        Raises:
            BaseMismatchError: The concept is for another base; nothing has changed.
        """
        self.check_base(backbone)
        changed = {}
        for name, change in self.deltas.items():
            weight = backbone.parameter(name).data
            changed[name] = (weight.float() + strength * change.full().to(weight.device)).to(weight.dtype)
        with backbone.tokens(self.tokens), backbone.weights_replaced(changed):
            yield backbone

    def check_base(self, backbone: Backbone) -> None:
        """Check that the concept was made for this backbone.

        Raises:
            BaseMismatchError: A weight or token row does not fit, or the fingerprint differs.
        """
        other = self._other_base(backbone)
        wrong = mismatches(backbone, {name: change.shape for name, change in self.deltas.items()})
        if wrong:
            raise BaseMismatchError(f"{other} In detail: {listed(wrong, at_most=2)}.")
        width = sum(backbone.token_widths)
        for token, row in self.tokens.items():
            if len(row) != width or (len(self.token_widths) > 1 and self.token_widths != backbone.token_widths):
                raise BaseMismatchError(
                    f"{other} In detail: the token {token!r} has a row of {len(row)} numbers, but the model reads rows "
                    f"of {' + '.join(map(str, backbone.token_widths))}."
                )
        if not self.fingerprint.matches(backbone.fingerprint):
            raise BaseMismatchError(
                f"{other} In detail: its fingerprint is {self.fingerprint.short}, that of the model "
                f"{backbone.fingerprint.short}."
            )

    def _other_base(self, backbone: Backbone) -> str:
        if self.base in ("", backbone.name):  # another program's file takes the name of the base it is read with
            return (
                f"The concept does not fit the model {backbone.name!r}, and its file does not say which model it was "
                "made for. Name the right one with --model."
            )
        model = shlex.quote(self.base)
        return f"The concept was made for another model than {backbone.name!r}. Name its own: --model {model}."

    def rows(self, token: str) -> tuple[Float[Tensor, " _width"], ...]:
        """Return a token's row in each text encoder; their widths may differ."""
        row = self.tokens[token]
        return row.split(self.token_widths if len(self.token_widths) > 1 else (len(row),))

    def scaled(self, strength: float) -> Self:
        """Return the concept with `strength` times its deltas."""
        if strength == 1:
            return self
        changes = {name: change.scaled(strength) for name, change in self.deltas.items()}
        return dataclasses.replace(self, deltas=changes, kept={})

    def renamed(self, tokens: Mapping[str, str]) -> Self:
        """Return the concept with tokens renamed; its prompts and records follow.

        Args:
            tokens: The new name of each old name.

        Raises:
            TokenError: The concept lacks an old name, or two tokens would get the same name.
        """
        unknown = sorted(set(tokens) - set(self.tokens))
        if unknown:
            raise TokenError(
                f"The concept has no token {unknown[0]!r} to rename. It has: {', '.join(self.tokens) or 'none'}."
            )
        if not tokens:
            return self
        old = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))

        def rename(text: str) -> str:
            return re.sub(rf"(?<!\w)(?:{old})(?!\w)", lambda match: tokens[match[0]], text)

        subjects = tuple(
            SubjectRecord(
                category=subject.category,
                token=subject.token and rename(subject.token),
                prompts=tuple(map(rename, subject.prompts)),
                more_tokens=tuple(map(rename, subject.more_tokens)),
            )
            for subject in self.subjects
        )
        rows = {tokens.get(token, token): row for token, row in self.tokens.items()}
        if len({folded(token) for token in rows}) < len({folded(token) for token in self.tokens}):
            raise TokenError(f"Renaming {dict(tokens)} would give two tokens the same name.")
        return dataclasses.replace(self, tokens=rows, subjects=subjects)

    def spelled(self, prompt: str) -> str:
        """Return a prompt in which each word of several vectors is followed by its further tokens.

        Other programs write such a word once, and read all of its vectors.
        """
        for first, *more in (subject.tokens for subject in self.subjects if subject.tokens[1:]):
            further = "".join(f" {token}" for token in more)
            prompt = (first + further).join(re.split(rf"(?i){re.escape(first)}(?!{re.escape(further)})", prompt))
        return prompt

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits of tensors, tokens and words; what a merge kept and checksums do not count."""
        return digest(safetensors_bytes(*dataclasses.replace(self, kept={})._parts))

    @cached_property
    def file_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        tensors, header = self._parts
        tensors = {name: tensor.detach().float() for name, tensor in tensors.items()}
        return safetensors_bytes(tensors, header | {CHECKSUM: checksum(tensors, header["concept"])})

    @property
    def _parts(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of the file, and the texts of its header without a checksum."""
        tensors = {f"token.{token}": row for token, row in self.tokens.items()}
        tensors |= {f"{KEPT}{name}": rows for name, rows in self.kept.items()}
        for name, change in self.deltas.items():
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in change.tensors().items()}
        return tensors, {"format": FORMAT, "version": str(CONCEPT_VERSION), "concept": json.dumps(self.to_json())}

    def to_json(self) -> dict[str, Any]:
        """Return everything except the tensors as plain JSON; `from_json` reads it."""
        value: dict[str, Any] = {
            "base": self.base,
            "fingerprint": self.fingerprint.to_json(),
            "subjects": [subject.to_json() for subject in self.subjects],
            "tokens": list(self.tokens),
            "method": self.method,
            "record": dict(self.record),
        }
        if len(self.token_widths) > 1:
            value["token_widths"] = list(self.token_widths)
        return value

    @classmethod
    def from_json(
        cls,
        value: Mapping[str, Any],
        *,
        deltas: Mapping[str, Dense | LowRank],
        tokens: Mapping[str, Float[Tensor, " width"]],
        kept: Mapping[str, Float[Tensor, "rows _"]] | None = None,
    ) -> Self:
        """Return the concept of what `to_json` returned, with its tensors.

        Raises:
            KeyError, TypeError or ValueError: A part is missing or has another type. Callers name the file.
        """
        check_provenance(value)
        return cls(
            deltas=deltas,
            tokens=tokens,
            token_widths=tuple(value.get("token_widths", ())),
            subjects=tuple(SubjectRecord.from_json(subject) for subject in value["subjects"]),
            base=value["base"],
            fingerprint=Fingerprint.from_json(value["fingerprint"]),
            method=value["method"],
            record=value["record"],
            kept=kept or {},
        )


def mismatches(backbone: Backbone, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return a phrase for each weight of these names and shapes that the backbone does not have."""
    phrases = []
    for name, shape in shapes.items():
        try:
            own = tuple(backbone.parameter(name).shape)
        except KeyError:
            phrases.append(f"it has no weight {name!r}")
            continue
        if own != shape:
            phrases.append(f"its {name!r} has the shape {own}, not {shape}")
    return phrases


def _refuse_other_kinds(path: Path) -> None:
    if not is_file(path):
        raise ConceptFileError(f"There is no concept file {path}. Check the path; `moongate train` writes one.")
    with path.open("rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{"  # after eight bytes of length, which may begin as a pickle does
    if not is_safetensors and start.startswith((b"PK", b"\x80")):
        raise ConceptFileError(
            f"{path} is a pickle (.bin, .ckpt, .pt), which may run code when it is opened. Moongate reads concepts "
            "from safetensors files only; `moongate convert` reads those of other programs without running code."
        )


def _deltas(tensors: Mapping[str, Tensor]) -> dict[str, Dense | LowRank]:
    deltas: dict[str, Dense | LowRank] = {}
    for key, tensor in tensors.items():
        name, _, suffix = key.rpartition(".")
        if not tensor.is_floating_point() or (suffix != "down" and name in deltas):
            raise ValueError(f"{key!r} holds {tensor.dtype}, or its weight is changed twice")
        if suffix == "delta":
            deltas[name] = Dense(delta=tensor)
        elif suffix == "up":
            down = tensors[f"{name}.down"]
            if not (tensor.ndim == down.ndim == 2 and tensor.shape[1] == len(down)):
                raise ValueError(f"the factors of {name!r} do not fit together")
            deltas[name] = LowRank(up=tensor, down=down)
        elif suffix != "down" or f"{name}.up" not in tensors:
            raise ValueError(f"{key!r} is no change of a weight")
    return deltas
