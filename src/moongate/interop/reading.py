"""One door to every readable file: look what it is, then make a concept of it.

Nothing is skipped silently: what does not fit is an error that lists it, what cannot be taken is a note.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moongate.backbone import Backbone, Fingerprint
from moongate.concept import Concept, Dense, LowRank, SubjectRecord, check_finite, mismatches, read_provenance
from moongate.errors import BaseMismatchError, ConceptFileError, OptionError, TokenError, listed
from moongate.interop.content import open_content
from moongate.interop.format import Format, Parts
from moongate.interop.formats import FORMATS
from moongate.interop.full_weights import TEXT_PREFIX
from moongate.interop.lora import kinds
from moongate.interop.tokens import bracketed

__all__ = ["Found", "Imported", "look", "read"]

FOREIGN = 0.5
"""Full weights that differ from the base's by more than this share of their norm belong to another model."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The concept of a file, and what of the file is not in it."""

    concept: Concept
    format: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file, or the files of a folder, hold."""

    path: Path
    format: Format
    """Of the weights; of the tokens where there are no weights."""
    parts: Parts

    @property
    def base(self) -> str:
        """The model it says it was made for; empty when it does not say."""
        return str(self.parts.provenance.get("base", ""))

    def concept(
        self, *, base: Backbone | None = None, tokens: Sequence[str] = (), categories: Sequence[str] = ()
    ) -> Imported:
        """Return the concept; `tokens` and `categories` name, in the file's order, what it does not name itself.

        With a base it is checked against it, and takes its fingerprint where the file has none. Without one only
        names and shapes can be checked, once it is applied. Raises OptionError when the file holds full weights and
        there is no base, BaseMismatchError listing what does not fit, ConceptFileError when nothing would change.
        """
        parts = self.parts
        changes = {**parts.changes, **self._differences(base)}
        if not parts.tokens and not any(_changes_something(change) for change in changes.values()):
            left = f" It holds {listed(kinds(parts.left_out))}." if parts.left_out else ""
            raise ConceptFileError(
                f"{self.path} would change nothing: it has no token, and no key or value of cross-attention differs "
                f"from the base.{left} Check that it is the file you mean."
            )
        rows = {token: torch.cat(row) for token, row in parts.tokens.items()}
        tensors = {f"{name}.{kind}": part for name, each in changes.items() for kind, part in each.tensors().items()}
        check_finite({**tensors, **rows}, self.path)
        fields = self._provenance(base)
        concept = Concept(**{**fields, "deltas": changes, "tokens": rows})
        concept = _named(concept, tokens, categories)
        if base is not None:
            concept.check_base(base)
        return Imported(concept=concept, format=self.format.name, notes=self._notes())

    def _differences(self, base: Backbone | None) -> dict[str, Dense]:
        """Return W - W0 of the full weights, in float32; those that are equal are left out."""
        weights = self.parts.weights
        if not weights:
            return {}
        if base is None:
            raise OptionError(
                f"{self.path} ({self.format.title}) stores full weights, so that its change cannot be told without "
                "the model it was trained from. Name it with --base (--model for other commands than convert)."
            )
        if base.dtype != torch.float32:
            raise OptionError(
                f"{self.path} stores full weights, whose change is taken in float32, but {base.name!r} is loaded in "
                f"{base.dtype}. Load it in float32 (--dtype float32), or convert the file first."
            )
        weights = dict(_as_the_base_has_it(name, weight, base) for name, weight in weights.items())
        wrong = mismatches(base, {name: tuple(weight.shape) for name, weight in weights.items()})
        if wrong:
            raise BaseMismatchError(f"{self.path} does not fit {base.name!r}: {listed(wrong)}. Name the right base.")
        found, moved, whole = {}, 0.0, 0.0
        for name, weight in weights.items():
            before = base.parameter(name).detach().float().cpu()
            delta = weight - before
            moved += float(delta.double().square().sum())
            whole += float(before.double().square().sum())
            if delta.any():
                found[name] = Dense(delta=delta)
        if moved > FOREIGN**2 * whole:
            raise BaseMismatchError(
                f"The weights of {self.path} differ from those of {base.name!r} by {(moved / whole) ** 0.5:.0%}; "
                "fine-tuning changes them by a few per cent. Name the base that they were trained from."
            )
        return found

    def _provenance(self, base: Backbone | None) -> dict[str, Any]:
        """Return all fields of the concept but its tensors."""
        parts, told = self.parts, self.parts.provenance
        if told:
            try:
                fields, named = read_provenance(told), list(map(str, told["tokens"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ConceptFileError(
                    f"The header of {self.path} lacks a part: {error}. Download it again."
                ) from error
            missing = [token for token in named if token not in parts.tokens]
            if missing:
                raise ConceptFileError(
                    f"{self.path} was written beside the tokens {', '.join(missing)}, which are not there. Give the "
                    "folder that holds all of its files."
                )
            return fields
        widths = {tuple(len(row) for row in rows) for rows in parts.tokens.values()}
        if len(widths) > 1:
            raise ConceptFileError(f"The tokens of {self.path} have rows of different widths: {sorted(widths)}.")
        return {
            "subjects": tuple(SubjectRecord(category="", token=token) for token in parts.tokens),
            "token_widths": widths.pop() if widths else base.token_widths if base else (),
            "base": base.name if base else "",
            "fingerprint": base.fingerprint if base else Fingerprint.unknown(),
            "method": f"imported ({self.format.name})",
            "record": {"file": self.path.name},
        }

    def _notes(self) -> tuple[str, ...]:
        notes = list(self.parts.notes)
        if self.parts.left_out:
            notes.insert(
                0,
                "Not taken, because a concept changes keys and values of cross-attention: "
                f"{listed(kinds(self.parts.left_out))}.",
            )
        return tuple(notes)


def look(path: str | Path) -> Found:
    """Open a file, or a folder of files that belong together, and recognize its format by what it holds.

    Raises ConceptFileError for a file that cannot be read, that holds code, or that is of no known format.
    """
    path = Path(path)
    contents = open_content(path)
    known = [(content, each) for content in contents for each in FORMATS.values() if each.recognizes(content)]
    if not known:
        keys = listed([repr(key) for content in contents for key in content.values], at_most=4)
        raise ConceptFileError(
            f"{path} is of no format that Moongate reads; it holds {keys or 'nothing'}. Known: {', '.join(FORMATS)}."
        )
    recognized = {content.path for content, _ in known}
    parts = [each.parse(content) for content, each in known]
    strangers = tuple(f"{content.path.name} was not read." for content in contents if content.path not in recognized)
    weights_first = sorted((each for _, each in known), key=lambda each: each.keeps_changes == "no")
    united = Parts(
        weights=_united(path, [each.weights for each in parts]),
        changes=_united(path, [each.changes for each in parts]),
        tokens=_united(path, [_with_brackets(each.tokens) for each in parts]),
        left_out=tuple(key for each in parts for key in each.left_out),
        notes=tuple(note for each in parts for note in each.notes) + strangers,
        provenance=next((each.provenance for each in parts if each.provenance), {}),
    )
    return Found(path=path, format=weights_first[0], parts=united)


def read(
    path: str | Path, *, base: Backbone | None = None, tokens: Sequence[str] = (), categories: Sequence[str] = ()
) -> Imported:
    """Read a concept of any format; see `Found.concept`."""
    return look(path).concept(base=base, tokens=tokens, categories=categories)


def _named(concept: Concept, tokens: Sequence[str], categories: Sequence[str]) -> Concept:
    if tokens:
        if len(tokens) != len(concept.tokens):
            raise OptionError(
                f"{len(tokens)} token names are given, but the file has {len(concept.tokens)} tokens: "
                f"{', '.join(concept.tokens) or 'none'}. Name each once, in this order."
            )
        odd = [token for token in tokens if token != bracketed(token)]
        if odd:
            raise TokenError(f"The token {odd[0]!r} is not one word in angle brackets. Write {bracketed(odd[0])!r}.")
        concept = concept.renamed(dict(zip(concept.tokens, tokens, strict=True)))
    if not categories:
        return concept
    subjects = concept.subjects or tuple(SubjectRecord(category=category) for category in categories)
    if len(categories) != len(subjects):
        words = ", ".join(repr(subject.words) for subject in subjects)
        raise OptionError(f"{len(categories)} categories are given for {len(subjects)} subjects: {words}.")
    named = tuple(dataclasses.replace(s, category=c) for s, c in zip(subjects, categories, strict=True))
    return dataclasses.replace(concept, subjects=named)


def _with_brackets(tokens: Mapping[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
    return {bracketed(token): rows for token, rows in tokens.items()}


def _united(path: Path, each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the finds of several files together. Raises ConceptFileError when two hold the same."""
    united: dict[str, Any] = {}
    for found in each:
        twice = sorted(set(found) & set(united))
        if twice:
            raise ConceptFileError(f"Two files of {path} both hold {listed(twice)}. Give the file of one alone.")
        united |= found
    return united


def _changes_something(change: Dense | LowRank) -> bool:
    return all(bool(tensor.any()) for tensor in change.tensors().values())


def _as_the_base_has_it(name: str, weight: Tensor, base: Backbone) -> tuple[str, Tensor]:
    """Name a text encoder's weight as this version of transformers does, and cut a table to the base's own words."""
    part, _, rest = name.partition(".")
    for spelling in (name, f"{part}.{TEXT_PREFIX}{rest}"):
        with contextlib.suppress(KeyError):
            own = base.parameter(spelling)
            is_table = name.endswith("token_embedding.weight")
            return spelling, weight[: len(own)] if is_table else weight
    return name, weight
