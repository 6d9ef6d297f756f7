"""One door to every readable file: recognize its format, then make a concept of it.

Nothing is skipped silently: what does not fit is an error that lists it, what cannot be taken is a note.
"""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moongate.backbone import POCKET, WEIGHT_SETS, Backbone, Fingerprint
from moongate.backbone.hub import AUTOENCODER, MODEL_ID, is_model
from moongate.concept import Concept, Dense, LowRank, SubjectRecord, mismatches
from moongate.errors import BaseMismatchError, ConceptFileError, OptionError, TokenError, listed
from moongate.interop.content import Content, open_content
from moongate.interop.formats import FORMATS
from moongate.interop.formats.contract import Format, Parts
from moongate.interop.full_weights import changes_against
from moongate.interop.initialization import subtracted
from moongate.interop.layers import kinds_of
from moongate.interop.tokens import bracketed, check_number, names_of_vectors
from moongate.tensor_files import check_finite

__all__ = ["Imported", "Recognized", "read", "recognize"]

PARTS_OF_MODELS = (
    *("model.diffusion_model.", "diffusion_model.", "down_blocks.", "cond_stage_model.", "conditioner.embedders."),
    *("text_model.", "embeddings.", "encoder.layers."),
)
"""How the names of weights begin in a file with the denoiser, or a text encoder alone."""

KEYS_AND_VALUES = WEIGHT_SETS["cross-attention-kv"]
"""How the names of keys and values end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """The concept of a file, and what of the file is not in it."""

    concept: Concept
    format: str
    """The name of the format that was read."""
    notes: tuple[str, ...]
    """What of the file the concept does not hold, as sentences for the user."""


def read(
    path: str | Path, *, base: Backbone | None = None, tokens: Sequence[str] = (), categories: Sequence[str] = ()
) -> Imported:
    """Read a concept from a file of any format, or from a folder of files that belong together.

    Args:
        path: The file or folder.
        base: The base model; see `Recognized.concept`.
        tokens: New names for the tokens, in the file's order.
        categories: Categories of the subjects, in the file's order.

    Raises:
        ConceptFileError: The file cannot be read, holds code, is of no known format, or would change nothing.
        OptionError: The file holds full weights and there is no base, or names are given that do not fit.
        BaseMismatchError: The concept does not fit the base.
        TokenError: A new name is not a token.
    """
    return recognize(path).concept(base=base, tokens=tokens, categories=categories)


def recognize(path: str | Path) -> "Recognized":
    """Open a file, or a folder of files that belong together, and recognize its format by its content.

    Raises:
        ConceptFileError: The file cannot be read, holds code, or is of no known format.
    """
    path = Path(path)
    _check_no_model(path)
    contents, errors = open_content(path)
    recognized = [(content, form) for content in contents if (form := _format_of(content))]
    if not recognized and errors:
        raise errors[0]
    if not recognized:
        raise _unrecognized(path, contents)
    parts = [_parsed(content, form) for content, form in recognized]
    return Recognized(
        path=path,
        format=_format_of_weights(form for _, form in recognized),
        parts=dataclasses.replace(
            _united(path, parts),
            notes=tuple(note for part in parts for note in part.notes)
            + _ignored(contents, recognized)
            + tuple(f"A file was not read: {error}" for error in errors),
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Recognized:
    """What a file, or the files of a folder, hold."""

    path: Path
    format: Format
    """The format of the weights, or of the tokens when there are no weights."""
    parts: Parts

    @property
    def base(self) -> str:
        """The name of the model that the file was made for; empty when the file does not say."""
        base: str = self.parts.provenance.get("base", "")
        return base

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the model that the file was made for; unknown when the file does not say."""
        facts = self.parts.provenance
        return Fingerprint.from_json(facts["fingerprint"]) if facts else Fingerprint.unknown()

    @property
    def layout(self) -> str:
        """The layout of the model's fingerprint; empty when the file does not say."""
        return self.fingerprint.layout if self.fingerprint.norms else ""

    @property
    def needs_base(self) -> bool:
        """Whether its changes are computed from the base's weights, which then must be as exact as they are."""
        return bool(self.parts.weights or self.parts.subtracted)

    @property
    def changes_text_only(self) -> bool:
        """Whether it changes keys and values of cross-attention only."""
        return all(name.endswith(KEYS_AND_VALUES) for name in (*self.parts.weights, *self.parts.changes))

    def concept(
        self, *, base: Backbone | None = None, tokens: Sequence[str] = (), categories: Sequence[str] = ()
    ) -> Imported:
        """Return the concept.

        Args:
            base: The base model. The concept is checked against it, and takes its fingerprint when the file has none.
                Without a base only names and shapes can be checked, when the concept is applied.
            tokens: New names for the tokens, in the file's order.
            categories: Categories of the subjects, in the file's order.

        Raises:
            ConceptFileError: Nothing would change, or a number is not finite.
            OptionError: The file holds full weights and there is no base, or the number of names does not fit.
            BaseMismatchError: The concept does not fit the base; the message lists what differs.
            TokenError: A new name is not a token.
        """
        changes_of_full_weights, notes = self._changes_of_full_weights(base)
        changes = {**self._changes(base), **changes_of_full_weights}
        self._check_that_something_changes(changes)
        rows = self._rows
        tensors = {f"{name}.{kind}": part for name, c in changes.items() for kind, part in c.tensors().items()}
        check_finite({**tensors, **rows}, self.path)
        concept = self._assembled(changes, rows, base)
        concept = _with_categories(_with_tokens(concept, tokens), categories)
        if base is not None:
            concept.check_base(base)
        return Imported(concept=concept, format=self.format.name, notes=self._notes() + notes)

    def check_names(self, *, tokens: Sequence[str] = (), categories: Sequence[str] = ()) -> None:
        """Check new names, ahead of loading a base. Raises OptionError or TokenError as `concept` does."""
        if tokens or categories:
            _with_categories(_with_tokens(self._assembled({}, self._rows, None), tokens), categories)

    @property
    def _rows(self) -> dict[str, Tensor]:
        """The row of each token, through all text encoders."""
        return {token: torch.cat(row) for token, row in self.parts.tokens.items()}

    def _changes(self, base: Backbone | None) -> dict[str, Dense | LowRank]:
        """Return the changes that the file stores, without what PEFT subtracts from the base."""
        if not self.parts.subtracted:
            return dict(self.parts.changes)
        if base is None:
            raise OptionError(
                f"{self.path} was initialized from the weights of its base model (PiSSA or OLoRA). Its change can only "
                "be computed with that model: name it with --model."
            )
        wrong = mismatches(base, {name: change.shape for name, change in self.parts.changes.items()})
        if wrong:
            raise BaseMismatchError(f"{self.path} does not fit {base.name!r}: {listed(wrong)}. Name the right base.")
        changes = dict(self.parts.changes)
        for name, part_of in self.parts.subtracted.items():
            changes[name] = subtracted(changes[name], part_of(base.parameter(name).detach().float().cpu()))
        return changes

    def _changes_of_full_weights(self, base: Backbone | None) -> tuple[dict[str, Dense], tuple[str, ...]]:
        """Return W - W0 of full weights, and a note when nothing shows whether they belong to the base."""
        if not self.parts.weights:
            return {}, ()
        if base is None:
            raise OptionError(
                f"{self.path} ({self.format.title}) stores full weights. Their change can only be computed with the "
                "model that they were trained from: name it with --model."
            )
        return changes_against(base, self.parts.weights, self.path, names_its_base=bool(self.fingerprint.norms))

    def _check_that_something_changes(self, changes: Mapping[str, Dense | LowRank]) -> None:
        if self.parts.tokens or any(_changes_something(change) for change in changes.values()):
            return
        left_out = f" It holds {listed(kinds_of(self.parts.left_out))}." if self.parts.left_out else ""
        raise ConceptFileError(
            f"{self.path} would change nothing: it has no token, and no key or value of cross-attention differs "
            f"from the base.{left_out} Check that it is the file you mean."
        )

    def _assembled(
        self, deltas: Mapping[str, Dense | LowRank], tokens: Mapping[str, Tensor], base: Backbone | None
    ) -> Concept:
        """Return the concept of these tensors and of what the file says about itself.

        A file of another program does not name its base. Its fingerprint is that of the base it is read with, or else
        unknown, and an unknown one fits every base that has all of its weights in the same shapes. Asking for the base
        of every LoRA would be a burden without use, because its change is the same without the base.
        """
        if self.parts.provenance:
            return self._assembled_by_provenance(deltas, tokens)
        widths = {tuple(len(row) for row in rows) for rows in self.parts.tokens.values()}
        if len(widths) > 1:
            raise ConceptFileError(f"The tokens of {self.path} have rows of different widths: {sorted(widths)}.")
        return Concept(
            deltas=deltas,
            tokens=tokens,
            subjects=self._subjects(),
            token_widths=widths.pop() if widths else base.token_widths if base else (),
            base=base.name if base else "",
            fingerprint=base.fingerprint if base else Fingerprint.unknown(),
            method=f"imported ({self.format.name})",
            record={"file": self.path.name},
        )

    def _subjects(self) -> tuple[SubjectRecord, ...]:
        """Return a subject for each word of a file of another program; a word may be several tokens."""
        further = self.parts.further
        follows = {token for tokens in further.values() for token in tokens}
        return tuple(
            SubjectRecord(category="", token=token, more_tokens=further.get(token, ()))
            for token in self.parts.tokens
            if token not in follows
        )

    def _assembled_by_provenance(self, deltas: Mapping[str, Dense | LowRank], tokens: Mapping[str, Tensor]) -> Concept:
        """Return the concept with the facts in the header that Moongate wrote, without tokens that are not there."""
        concept = Concept.from_json(self.parts.provenance, deltas=deltas, tokens=tokens, kept=self.parts.kept)
        missing = self._missing_tokens()
        subjects = [_without(subject, missing) for subject in concept.subjects]
        return dataclasses.replace(concept, subjects=tuple(subject for subject in subjects if subject.words))

    def _missing_tokens(self) -> list[str]:
        """Return the tokens that Moongate wrote in files of their own which are not there."""
        return [token for token in self.parts.provenance.get("tokens", ()) if token not in self.parts.tokens]

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.parts.left_out:
            kinds = listed(kinds_of(self.parts.left_out))
            notes.append(f"Not taken, because a concept changes keys and values of cross-attention: {kinds}.")
        missing = self._missing_tokens()
        if missing:
            notes.append(
                f"It was written together with the tokens {', '.join(missing)}, which are not there, so that prompts "
                "cannot use them. Give the folder that holds all files to read them too."
            )
        return (*notes, *self.parts.notes)


def _check_no_model(path: Path) -> None:
    """Raise ConceptFileError for a model, which a concept belongs to: a folder, a single file, or a name."""
    named = path.as_posix()
    if named == POCKET or is_model(path):
        raise _is_a_model(path)
    if MODEL_ID.fullmatch(named) and not path.suffix and not path.exists():
        raise ConceptFileError(
            f"There is no concept file {path}. Check the path. If it is a model of the hub and not a concept, draw "
            f"with it: moongate generate 'photo of a dog' --model {path}"
        )


def _is_a_model(path: Path) -> ConceptFileError:
    command = shlex.join(["moongate", "generate", "photo of a dog", "--model", str(path)])
    return ConceptFileError(f"{path} is a model, not a concept; draw with it: {command}")


def _unrecognized(path: Path, contents: Sequence[Content]) -> ConceptFileError:
    """Return the error for files of no known format: what they are, where that can be told."""
    nested = [value for content in contents for value in content.values.values() if isinstance(value, Mapping)]
    names = {str(key) for values in (*(content.values for content in contents), *nested) for key in values}
    if any(name.startswith(AUTOENCODER) for name in names):
        return _is_a_model(path)
    if any(name.startswith(PARTS_OF_MODELS) for name in names):
        return ConceptFileError(
            f"{path} is a part of a model, not a concept. Give the file that a trainer wrote; a model is named by "
            "--model, as its folder or as one file with all of its parts."
        )
    keys = listed([repr(key) for content in contents for key in content.values], at_most=4)
    return ConceptFileError(
        f"{path} is of no format that Moongate reads; it holds {keys or 'nothing'}. Known: {', '.join(FORMATS)}."
    )


def _parsed(content: Content, form: Format) -> Parts:
    """Return what a file holds; errors name the file, which may be one of several in a folder."""
    try:
        return form.parse(content)
    except ConceptFileError as error:
        if str(content.path) in str(error):
            raise
        raise ConceptFileError(f"{content.path} cannot be read. {error}") from error


def _format_of(content: Content) -> Format | None:
    """Return the first format that recognizes a file; a file has one format, whatever others its keys resemble."""
    return next((form for form in FORMATS.values() if form.recognizes(content)), None)


def _format_of_weights(formats: Iterable[Format]) -> Format:
    """Return the first format that keeps changes, or the first of all if none does."""
    return min(formats, key=lambda form: form.keeps_changes == "no")


def _without(subject: SubjectRecord, tokens: Sequence[str]) -> SubjectRecord:
    """Return the record of a subject without a token that is missing, and without the prompts that use it."""
    if subject.token is None or subject.token not in tokens:
        return subject
    prompts = tuple(prompt for prompt in subject.prompts if subject.token not in prompt)
    return dataclasses.replace(subject, token=None, prompts=prompts)


def _ignored(contents: Sequence[Content], recognized: Sequence[tuple[Content, Format]]) -> tuple[str, ...]:
    paths = {content.path for content, _ in recognized}
    return tuple(f"{content.path.name} was not read." for content in contents if content.path not in paths)


def _united(path: Path, parts: Sequence[Parts]) -> Parts:
    """Return what several files of `path` hold together, without their notes."""
    check_number(sum(len(part.tokens) for part in parts))
    _joined(path, [{**part.weights, **part.changes} for part in parts])  # one file's weight is another one's change
    provenances = [part.provenance for part in parts if part.provenance]
    if any(provenance != provenances[0] for provenance in provenances):
        raise ConceptFileError(
            f"{path} holds several concepts. Give the file of one of them; `moongate merge` unites concepts."
        )
    return Parts(
        weights=_joined(path, [part.weights for part in parts]),
        changes=_joined(path, [part.changes for part in parts]),
        tokens=_joined_tokens(path, [part.tokens for part in parts]),
        subtracted=_joined(path, [part.subtracted for part in parts]),
        kept=_joined(path, [part.kept for part in parts]),
        further={word: tokens for part in parts for word, tokens in part.further.items()},
        left_out=tuple(key for part in parts for key in part.left_out),
        provenance=provenances[0] if provenances else {},
    )


def _joined(path: Path, mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one mapping of several. Raises ConceptFileError when two files hold the same name."""
    joined: dict[str, Any] = {}
    for mapping in mappings:
        twice = sorted(set(mapping) & set(joined))
        if twice:
            raise _held_twice(path, twice)
        joined |= mapping
    return joined


def _held_twice(path: Path, names: Sequence[str]) -> ConceptFileError:
    return ConceptFileError(f"Two files of {path} both hold {listed(names)}. Give the file of one alone.")


def _joined_tokens(path: Path, mappings: Sequence[Mapping[str, tuple[Tensor, ...]]]) -> dict[str, tuple[Tensor, ...]]:
    """Return the tokens of several files, such as one for each text encoder of SDXL, whose first is the narrower."""
    joined: dict[str, tuple[Tensor, ...]] = {}
    for token, rows in (item for mapping in mappings for item in mapping.items()):
        earlier = joined.get(token, ())
        if {len(row) for row in earlier} & {len(row) for row in rows}:
            raise _held_twice(path, [token])
        joined[token] = tuple(sorted((*earlier, *rows), key=len)) if earlier else rows
    return joined


def _changes_something(change: Dense | LowRank) -> bool:
    return all(bool(tensor.any()) for tensor in change.tensors().values())


def _with_tokens(concept: Concept, names: Sequence[str]) -> Concept:
    """Return the concept with new names for its tokens, in order; none keeps the names.

    A word of several vectors takes one name, from which its further tokens are named; or each token takes its own.
    """
    if not names:
        return concept
    further = {subject.token: subject.more_tokens for subject in concept.subjects if subject.token}
    follows = {token for tokens in further.values() for token in tokens}
    words = [token for token in concept.tokens if token not in follows]
    if len(names) not in (len(words), len(concept.tokens)):
        raise OptionError(
            f"{len(names)} token names are given, but the file has {len(words)} tokens: "
            f"{', '.join(words) or 'none'}. Name each once, in this order."
        )
    odd = [name for name in names if name != bracketed(name)]
    if odd:
        raise TokenError(f"The token {odd[0]!r} is not one word in angle brackets. Write {bracketed(odd[0])!r}.")
    if len(names) == len(concept.tokens):
        return concept.renamed(dict(zip(concept.tokens, names, strict=True)))
    renamed: dict[str, str] = {}
    for word, name in zip(words, names, strict=True):
        tokens = (word, *further.get(word, ()))
        renamed |= dict(zip(tokens, names_of_vectors(name, len(tokens)), strict=True))
    return concept.renamed(renamed)


def _with_categories(concept: Concept, categories: Sequence[str]) -> Concept:
    """Return the concept with these categories for its subjects, in order; none keeps what the file says."""
    if not categories:
        return concept
    subjects = concept.subjects or tuple(SubjectRecord(category=category) for category in categories)
    if len(categories) != len(subjects):
        words = ", ".join(repr(subject.words) for subject in subjects)
        raise OptionError(f"{len(categories)} categories are given for {len(subjects)} subjects: {words}.")
    pairs = zip(subjects, categories, strict=True)
    named = tuple(dataclasses.replace(subject, category=category) for subject, category in pairs)
    return dataclasses.replace(concept, subjects=named)
