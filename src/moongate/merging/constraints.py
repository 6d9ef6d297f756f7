"""What a merge keeps: C and V of Eq. 4, the features of each subject's words and their values (paper, Sec. 3.3).

The paper keeps the words of a concept in its training captions. Here a subject keeps its words and the end of the
caption in up to eight contexts, because a causal text encoder gives the same words other features after other text.
Contexts are left out until all constraints together take at most half of the features' width.

A merged concept records its contexts, and its values there are exact. So a subject can be added to a merge, or taken
out of it, without the files of the others. Storing the prescribed values in the file would double its size and add no
information.

The module knows nothing of how the problem is solved.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.text import folded
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.data import with_article
from moongate.errors import OptionError, TokenError
from moongate.merging.neutral import encoded

__all__ = [
    "CONTEXTS",
    "Constraints",
    "KeptSubject",
    "check_mergeable",
    "filled",
    "kept_subjects",
    "value_change",
    "with_unique_tokens",
    "word_features",
]

CONTEXTS = (
    "photo of a {}",
    "{}",
    "a {} on the beach",
    "painting of a {}",
    "photo of a {} and a tree",
    "a {} in a room",
    "close up photo of a {}",
    "photo of a tree and a {}",
)
"""Captions in which a subject keeps its values, the most useful first."""
CAPACITY_SHARE = 0.5
"""Share of the features' width that all constraints together may take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptSubject:
    """A subject, the concept whose values it keeps, and the contexts in which it keeps them."""

    record: SubjectRecord
    concept: Concept
    contexts: tuple[str, ...] = ()
    """Captions with `{}` for the subject's words; empty until they are chosen."""

    @property
    def words(self) -> str:
        """The words that stand for the subject in a prompt, such as "<bear> teddy bear"."""
        return self.record.words

    def own_value_change(
        self, layer: str, features: Float[Tensor, "features width"], *, out: int
    ) -> Float[Tensor, "features {out}"]:
        """Return how the subject's own concept changes the keys or values of some features, c (W_n - W0)^T.

        Args:
            layer: Full name of the matrix.
            features: Text features, float64.
            out: Width of the matrix's output; the change is zero where the concept does not change the matrix.
        """
        change = self.concept.deltas.get(layer)
        return features.new_zeros(len(features), out) if change is None else value_change(change, features)


def value_change(change: Dense | LowRank, features: Float[Tensor, "features width"]) -> Float[Tensor, "features out"]:
    """Return c (W - W0)^T for features c, in float64, without multiplying low-rank factors out."""
    if isinstance(change, LowRank):
        return features @ change.down.double().T @ change.up.double().T
    return features @ change.full().double().T


@dataclass(frozen=True, kw_only=True, eq=False)
class Constraints:
    """The constraints of Eq. 4 for all layers; the tokens of all subjects must be in use while they are made."""

    subjects: tuple[KeptSubject, ...]
    features: tuple[Float[Tensor, "_ width"], ...]
    """Rows of C, float64, one tensor for each subject."""
    values: Mapping[str, Float[Tensor, "constraints _"]]
    """(V - W0 C^T)^T by name of the matrix: the change of each row's keys or values."""

    @classmethod
    def of(cls, backbone: Backbone, subjects: Sequence[KeptSubject]) -> "Constraints":
        """Return the constraints that keep each subject's words and the captions' ends in its contexts."""
        features = [
            word_features(
                backbone, kept, subjects, [filled(context, kept.words) for context in kept.contexts], with_end=True
            )
            for kept in subjects
        ]
        values = {}
        for layer in sorted({layer for kept in subjects for layer in kept.concept.deltas}):
            out = backbone.parameter(layer).shape[0]
            pairs = zip(subjects, features, strict=True)
            values[layer] = torch.cat([kept.own_value_change(layer, rows, out=out) for kept, rows in pairs])
        return cls(subjects=tuple(subjects), features=tuple(features), values=values)

    @property
    def rows(self) -> Float[Tensor, "constraints width"]:
        """C: the rows of all subjects."""
        return torch.cat(self.features)

    def slice_of(self, index: int) -> slice:
        """Return which rows of C belong to a subject."""
        begin = sum(len(rows) for rows in self.features[:index])
        return slice(begin, begin + len(self.features[index]))


# --- which subjects -----------------------------------------------------------------------------------------------


def check_mergeable(backbone: Backbone, concept: Concept) -> None:
    """Check that a concept can be merged in closed form.

    Raises:
        BaseMismatchError: The concept is for another base.
        OptionError: The concept names no subject, changes no weights, or changes more than keys and values of text.
    """
    concept.check_base(backbone)
    if not concept.subjects or not all(subject.words for subject in concept.subjects):
        raise OptionError(
            f"A concept ({concept.method}) names no subject whose words could be kept. Give it its category with "
            "`moongate convert FILE --to moongate --category WORD`."
        )
    words = concept.subjects[0].words
    other = sorted(set(concept.deltas) - set(backbone.weights("cross-attention-kv")))
    if other:
        raise OptionError(
            f"The concept of {words!r} also changes {other[0]!r}, which reads no text; only keys and values can be "
            "merged in closed form. Train it with --method custom-diffusion, train jointly, or add the changes up "
            "(`moongate generate --together add`)."
        )
    if not concept.deltas:
        raise OptionError(
            f"The concept of {words!r} changes no weights, so there is nothing to merge. Leave it out, and give it to "
            "`moongate generate --together add` in addition to the merged concept."
        )


def with_unique_tokens(concepts: Sequence[Concept]) -> tuple[list[Concept], list[tuple[str, str]]]:
    """Rename each token that an earlier concept uses: `<new1>` becomes the first free one of `<new2>`, `<new3>`, ...

    Tokens that differ in upper and lower case alone are one word to the text encoder, so that one is renamed.

    Returns:
        The concepts, and the renamed tokens as pairs (old, new).
    """
    used: set[str] = set()
    taken = {folded(token) for concept in concepts for token in concept.tokens}
    result: list[Concept] = []
    renamed: list[tuple[str, str]] = []
    for concept in concepts:
        changes = {}
        for token in concept.tokens:
            name, number = token, 2
            while folded(name) in used or (name != token and folded(name) in taken):
                name = f"{token.rstrip('>').rstrip('0123456789')}{number}" + (">" if token.endswith(">") else "")
                number += 1
            used.add(folded(name))
            taken.add(folded(name))
            if name != token:
                changes[token] = name
        result.append(concept.renamed(changes) if changes else concept)
        renamed += changes.items()
    return result, renamed


def kept_subjects(
    backbone: Backbone, concepts: Sequence[Concept], *, contexts: int | None = None, without: Sequence[str] = ()
) -> list[KeptSubject]:
    """Return the subjects of all concepts with the contexts in which each keeps its values.

    Args:
        backbone: The base model.
        concepts: Concepts with different tokens.
        contexts: Contexts of each subject that was not merged before; as many as fit when None. A subject that was
            merged before keeps the contexts it was merged with.
        without: Subjects to leave out, by token or by words.

    Raises:
        OptionError: No subject has one of the names in `without`, or no subject remains.
    """
    subjects = _remaining([kept for concept in concepts for kept in _subjects_of(concept)], without)
    count = contexts or _contexts_that_fit(backbone, subjects)
    return [
        kept if kept.contexts else replace(kept, contexts=_contexts_of(backbone, kept.record)[:count])
        for kept in subjects
    ]


def _subjects_of(concept: Concept) -> list[KeptSubject]:
    """Return a concept's subjects, with contexts if it was merged before."""
    contexts = concept.record.get("contexts") or [()] * len(concept.subjects)
    pairs = zip(concept.subjects, contexts, strict=True)
    return [KeptSubject(record=record, concept=concept, contexts=tuple(earlier)) for record, earlier in pairs]


def _remaining(subjects: Sequence[KeptSubject], without: Sequence[str]) -> list[KeptSubject]:
    unknown = set(without) - {name for kept in subjects for name in (kept.record.token, kept.words)}
    if unknown:
        known = ", ".join(repr(kept.words) for kept in subjects)
        raise OptionError(f"There is no subject {min(unknown)!r} to leave out. Subjects: {known}.")
    remaining = [kept for kept in subjects if not {kept.record.token, kept.words} & set(without)]
    if not remaining:
        raise OptionError("Every subject is left out. Keep at least one.")
    return remaining


def _contexts_that_fit(backbone: Backbone, subjects: Sequence[KeptSubject]) -> int:
    """Return how many contexts each new subject can have within `CAPACITY_SHARE` of the features' width, at least 1."""
    width = next(iter(backbone.weights("cross-attention-kv").values())).shape[1]
    earlier = sum(_constraints_in_context(backbone, kept) * len(kept.contexts) for kept in subjects)
    in_one_context = sum(_constraints_in_context(backbone, kept) for kept in subjects if not kept.contexts)
    fitting = int((CAPACITY_SHARE * width - earlier) // in_one_context) if in_one_context else 0
    return max(1, min(len(CONTEXTS), fitting))


def _constraints_in_context(backbone: Backbone, kept: KeptSubject) -> int:
    """Return how many features one context constrains: the tokens, the pieces of the category, and the end."""
    pieces = len(backbone.tokenizer(kept.record.category).input_ids)  # with start and end: the start counts for a token
    return pieces + len(kept.record.more_tokens)


def _contexts_of(backbone: Backbone, record: SubjectRecord) -> tuple[str, ...]:
    """Return the possible contexts of a subject: its first training caption, the usual ones, its other captions.

    A training caption is a context if it names the subject once, holds no other token, and fits into the text encoder.
    """
    own = []
    for caption in record.prompts:
        around = re.split(rf"(?<!\w){re.escape(record.words)}(?!\w)", caption)
        length = len(backbone.tokenizer.tokenize(caption)) + 2  # with start and end
        fits = length <= backbone.tokenizer.model_max_length
        if len(around) == 2 and fits and not re.search("[<>{}]", "".join(around)):
            own.append("{}".join(around))
    return tuple(dict.fromkeys([*own[:1], *CONTEXTS, *own[1:]]))


# --- their features -----------------------------------------------------------------------------------------------


def filled(context: str, *subjects: str) -> str:
    """Return a context with the words of subjects in place of `{}`; `a {}` becomes "an armchair" where it should."""
    remaining = iter(subjects)

    def fill(place: re.Match[str]) -> str:
        words = next(remaining)
        return with_article(words) if place[1] else words

    return re.sub(r"(\ba )?{}", fill, context)


def word_features(
    backbone: Backbone, kept: KeptSubject, subjects: Sequence[KeptSubject], captions: Sequence[str], *, with_end: bool
) -> Float[Tensor, "features width"]:
    """Return the features of a subject's words in captions.

    Args:
        backbone: The base model with the tokens of all subjects in use.
        kept: The subject.
        subjects: All subjects. Where the words of one are part of the longer words of another ("bear" in
            "<one> bear"), they do not count.
        captions: Captions that name the subject.
        with_end: Whether to add the feature of each caption's end token, which sums the caption up.

    Returns:
        Features in float64, caption by caption.

    Raises:
        TokenError: A caption does not name the subject within the length that the model reads.
    """
    pieces = _pieces(backbone, kept)
    longer = [other for other in (_pieces(backbone, other) for other in subjects) if len(other) > len(pieces)]
    rows = []
    read = [caption for batch in encoded(backbone, captions) for caption in zip(*batch, strict=True)]
    for caption, (features, ids, end) in zip(captions, read, strict=True):
        until_end = ids[: int(end)].tolist()
        of_others = {position for other in longer for position in _occurrences(until_end, other)}
        positions = [position for position in _occurrences(until_end, pieces) if position not in of_others]
        if not positions:
            raise TokenError(
                f"{kept.words!r} does not occur in {caption!r} after it is cut to the {len(ids)} tokens that the "
                "model reads. Shorten the caption."
            )
        rows.append(features[[*positions, int(end)] if with_end else positions])
    return torch.cat(rows)


def _pieces(backbone: Backbone, kept: KeptSubject) -> list[int]:
    """Return the token ids of a subject's words, without start and end."""
    return list(backbone.tokenizer(kept.words).input_ids[1:-1])


def _occurrences(ids: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the positions of everything in `ids` that belongs to an occurrence of `wanted`."""
    starts = [start for start in range(len(ids)) if list(ids[start : start + len(wanted)]) == list(wanted)]
    return [start + offset for start in starts for offset in range(len(wanted))]
