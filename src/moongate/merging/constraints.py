"""What a merge keeps: C and V of Eq. 4, the features of each subject's words and their values (paper, Sec. 3.2).

The paper keeps the words of a concept in its training captions. Here a subject keeps its words and the end of the
caption exactly in one context, or in up to eight, and as soft rows in fifty more, because a causal text encoder gives
the same words other features after other text. Where the number of contexts is left open, contexts are left out until
all constraints together take at most half of the features' free directions.

A merged concept records its contexts and stores its rows: the features and the wanted change of their values. So a
subject can be added to a merge, or taken out of it, without the files of the others, and also where the constraints
contradict one another and the merge is a compromise.

The module knows nothing of how the problem is solved.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.text import folded
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.errors import OptionError, TokenError, listed, shortened
from moongate.merging.features import (
    BESIDE,
    ELSEWHERE,
    feature_width,
    filled,
    fitting,
    leading,
    pieces,
    stand_ins,
    word_features,
)
from moongate.provenance import names_of_edits

__all__ = [
    "CONTEXTS",
    "SOFT_DIRECTIONS",
    "Constraints",
    "KeptSubject",
    "Rows",
    "check_mergeable",
    "kept_subjects",
    "single",
    "stored_rows",
    "value_change",
    "with_unique_tokens",
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
"""Share of the free directions of the features that all constraints together may take."""
SOFT_DIRECTIONS = 24
"""Largest number of soft rows of a subject or an edit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What a merge keeps for one subject, or for one edit of the base: features and the change of their values."""

    words: str
    """The words of the subject, or the name of the edit."""
    features: Float[Tensor, "rows width"]
    """Rows of C and, behind them, the soft rows, scaled by the root of their weight; float64."""
    values: Mapping[str, Float[Tensor, "rows _"]]
    """(V - W0 C^T)^T by name of the matrix: the wanted change of each row's keys or values, float64."""
    counts: tuple[int, ...]
    """Number of constraints in each context."""
    soft: int = 0
    """Number of soft rows."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def exact(self) -> int:
        """Number of constraints."""
        return len(self) - self.soft

    def first(self, contexts: int) -> Self:
        """Return the rows without those of later contexts."""
        kept = [*range(sum(self.counts[:contexts])), *range(self.exact, len(self))]
        values = {layer: rows[kept] for layer, rows in self.values.items()}
        return replace(self, features=self.features[kept], values=values, counts=self.counts[:contexts])


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptSubject:
    """A subject, the concept whose values it keeps, and the contexts in which it keeps them."""

    record: SubjectRecord
    concept: Concept
    contexts: tuple[str, ...] = ()
    """Captions with `{}` for the subject's words; empty until they are chosen."""
    rows: Rows | None = None
    """What an earlier merge kept of it, if the file says so."""

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
    blocks: tuple[Rows, ...]
    """One for each subject, then one for each edit of the base."""
    values: Mapping[str, Float[Tensor, "rows _"]]
    """The values of all blocks by name of the matrix."""

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        subjects: Sequence[KeptSubject],
        edits: Sequence[Rows] = (),
        *,
        layers: Sequence[str],
        elsewhere: float = 0.0,
    ) -> "Constraints":
        """Return the constraints that keep each subject's words and the captions' ends in its contexts.

        Args:
            backbone: The base model with the tokens of all subjects in use.
            subjects: The subjects with their contexts.
            edits: The rows of edits of the base.
            layers: Names of the matrices that may change.
            elsewhere: Weight of each subject's values in further contexts, as soft rows; 0 leaves them out.
        """
        blocks = [kept.rows or _rows_of(backbone, kept, subjects, layers, elsewhere) for kept in subjects]
        blocks += edits
        values = {}
        for layer in layers:
            out = backbone.parameter(layer).shape[0]
            nothing = [block.features.new_zeros(len(block), out) for block in blocks]
            pairs = zip(blocks, nothing, strict=True)
            values[layer] = torch.cat([block.values.get(layer, zeros) for block, zeros in pairs])
        return cls(subjects=tuple(subjects), blocks=tuple(blocks), values=values)

    @property
    def rows(self) -> Float[Tensor, "rows width"]:
        """C and the soft rows, of all blocks."""
        return torch.cat([block.features for block in self.blocks])

    @property
    def weights(self) -> Float[Tensor, " rows"]:
        """The weight of each row: infinite for a constraint, 1 for a soft row, which is scaled already."""
        parts = [[torch.inf] * block.exact + [1.0] * block.soft for block in self.blocks]
        return torch.tensor([weight for part in parts for weight in part], dtype=torch.float64)

    def slice_of(self, index: int) -> slice:
        """Return which rows belong to the constraints of a block."""
        begin = sum(len(block) for block in self.blocks[:index])
        return slice(begin, begin + self.blocks[index].exact)

    @property
    def stored(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The tensors and the JSON from which a later merge takes the same rows (`stored_rows`)."""
        tensors = {"features": self.rows, **self.values}
        facts = [{"words": block.words, "counts": list(block.counts), "soft": block.soft} for block in self.blocks]
        return {name: tensor.float() for name, tensor in tensors.items()}, facts


def stored_rows(concept: Concept) -> list[Rows]:
    """Return the rows that an earlier merge stored in its concept: of each subject, then of each edit; none if none.

    Raises:
        OptionError: The tensors and the record do not fit together.
    """
    if not concept.kept:
        return []
    try:
        widths = {layer: change.shape[0] for layer, change in concept.deltas.items()}
        widths["features"] = min(change.shape[1] for change in concept.deltas.values())
        if any(rows.shape[1:] != (widths[name],) for name, rows in concept.kept.items()):
            raise ValueError("rows of another width")
        blocks, begin = [], 0
        for facts in concept.record["rows"]:
            counts, soft = tuple(map(int, facts["counts"])), int(facts["soft"])
            if not counts or min(counts) < 1 or soft < 0:
                raise ValueError("numbers of rows that no merge has")
            end = begin + sum(counts) + soft
            tensors = {name: rows[begin:end].double() for name, rows in concept.kept.items()}
            if any(len(rows) != end - begin for rows in tensors.values()):
                raise ValueError("another number of rows")
            features = tensors.pop("features")
            words = str(facts["words"])
            blocks.append(Rows(words=words, features=features, values=tensors, counts=counts, soft=soft))
            begin = end
        if len(blocks) < len(concept.subjects):
            raise ValueError("too few blocks")
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise OptionError(
            f"A merged concept holds rows that do not fit its record ({error}). Merge its parts again."
        ) from error
    return blocks


def single(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Round to float32, as rows are stored, so that a later merge that reads them gives the same bits."""
    return rows.float().double()


def _rows_of(
    backbone: Backbone, kept: KeptSubject, subjects: Sequence[KeptSubject], layers: Sequence[str], elsewhere: float
) -> Rows:
    others = [other.words for other in subjects]
    captions = [filled(context, kept.words) for context in kept.contexts]
    per_context = [word_features(backbone, kept.words, [caption], others=others, with_end=True) for caption in captions]
    soft = per_context[0][:0]
    if elsewhere and kept.concept.method != "merge":  # a merge is its concepts' only in the contexts that it kept
        soft = single(elsewhere**0.5 * _features_elsewhere(backbone, kept.words))
    features = torch.cat([*per_context, soft])
    values = {
        layer: single(kept.own_value_change(layer, features, out=backbone.parameter(layer).shape[0]))
        for layer in layers
    }
    counts = tuple(map(len, per_context))
    return Rows(words=kept.words, features=features, values=values, counts=counts, soft=len(soft))


def _features_elsewhere(backbone: Backbone, words: str) -> Float[Tensor, "rows width"]:
    """Return few rows for a subject's words in many contexts: the principal directions of their features.

    Each is as long as the features are in this direction, as a root mean square over the contexts. So the squares of
    all rows together are those of one caption of each kind.
    """
    alone, beside = (fitting(backbone, words, contexts) for contexts in (ELSEWHERE, BESIDE))
    rows = []
    with backbone.tokens(stand_ins(backbone)):
        for contexts, with_end in ((alone, True), (beside, False)):
            captions = [filled(context, words) for context in contexts]
            if captions:
                rows.append(word_features(backbone, words, captions, with_end=with_end) / len(captions) ** 0.5)
    return leading(torch.cat(rows), SOFT_DIRECTIONS) if rows else torch.zeros(0, feature_width(backbone)).double()


# --- which subjects -----------------------------------------------------------------------------------------------


def check_mergeable(backbone: Backbone, concept: Concept) -> None:
    """Check that a concept can be merged in closed form.

    Raises:
        BaseMismatchError: The concept is for another base.
        OptionError: The concept names no subject, changes no weights, or changes more than keys and values of text; or
            it has lost what an earlier merge kept of its edits.
    """
    concept.check_base(backbone)
    edits = names_of_edits(concept.record, len(concept.subjects))
    if edits and not concept.kept:
        raise OptionError(
            f"A merged concept edits words of the base ({listed(edits)}). This cannot be kept after compression, after "
            "further training or at another strength. Merge the original file."
        )
    if concept.kept and not concept.subjects:  # edits of the base alone
        return
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

    Tokens that differ only in upper and lower case are one word to the text encoder, so that one is renamed.

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
    backbone: Backbone,
    concepts: Sequence[Concept],
    *,
    contexts: int | None = None,
    without: Sequence[str] = (),
    edits: Sequence[str] = (),
    room: int,
) -> tuple[list[KeptSubject], list[Rows], int]:
    """Return the subjects of all concepts with the contexts in which each keeps its values, and the concepts' edits.

    Args:
        backbone: The base model.
        concepts: Concepts with different tokens.
        contexts: Contexts of each subject; as many as fit when None. A subject that was merged before has at most the
            contexts it was merged with.
        without: Subjects to leave out, by token or by words, and edits by name.
        edits: Words of further edits, which take room too.
        room: Number of directions of the features that constraints may fill together.

    Returns:
        The subjects, the rows of edits that were merged before, and the number of contexts.

    Raises:
        OptionError: Nothing has one of the names in `without`, or nothing remains.
        TokenError: The words of a subject are longer than a caption.
    """
    subjects, earlier = _remaining(*_parts_of(concepts), without, more=len(edits))
    taken = sum(block.counts[0] for block in earlier if block.counts)
    in_one_context = sum(_constraints_in_context(backbone, kept.record) for kept in subjects) + taken
    in_one_context += sum(len(pieces(backbone, words)) + 1 for words in edits)
    count = contexts or max(1, min(len(CONTEXTS), int(CAPACITY_SHARE * room // max(1, in_one_context))))
    chosen = [
        replace(
            kept,
            contexts=(kept.contexts or _contexts_of(backbone, kept.record))[:count],
            rows=kept.rows and kept.rows.first(count),
        )
        for kept in subjects
    ]
    return chosen, [block.first(count) for block in earlier], count


def _parts_of(concepts: Sequence[Concept]) -> tuple[list[KeptSubject], list[Rows]]:
    """Return the subjects of concepts, with contexts and rows if they were merged before, and earlier edits."""
    subjects, edits = [], dict[str, Rows]()
    for concept in concepts:
        contexts = concept.record.get("contexts") or [()] * len(concept.subjects)
        blocks = stored_rows(concept)
        for block in blocks[len(concept.subjects) :]:
            edits.setdefault(folded(block.words), block)  # two concepts may have the same
        for index, (record, earlier) in enumerate(zip(concept.subjects, contexts, strict=True)):
            rows = replace(blocks[index], words=record.words) if blocks else None
            subjects.append(KeptSubject(record=record, concept=concept, contexts=tuple(earlier), rows=rows))
    return subjects, [*edits.values()]


def _remaining(
    subjects: Sequence[KeptSubject], edits: Sequence[Rows], without: Sequence[str], *, more: int
) -> tuple[list[KeptSubject], list[Rows]]:
    names = {name for kept in subjects for name in (kept.record.token, kept.words)} | {edit.words for edit in edits}
    if unknown := set(without) - names:
        known = ", ".join(map(repr, [*(kept.words for kept in subjects), *(edit.words for edit in edits)]))
        raise OptionError(f"There is no subject {min(unknown)!r} to leave out. Subjects: {known or 'none'}.")
    remaining = [kept for kept in subjects if not {kept.record.token, kept.words} & set(without)]
    further = [edit for edit in edits if edit.words not in without]
    if not (remaining or further or more):
        raise OptionError("Every subject is left out. Keep at least one.")
    return remaining, further


def _constraints_in_context(backbone: Backbone, record: SubjectRecord) -> int:
    """Return how many features one context constrains: the tokens, the pieces of the category, and the end."""
    in_category = len(backbone.tokenizer(record.category).input_ids)  # with start and end: the start counts for a token
    return in_category + len(record.more_tokens)


def _contexts_of(backbone: Backbone, record: SubjectRecord) -> tuple[str, ...]:
    """Return the possible contexts of a subject: its first training caption, the usual ones, its other captions.

    A training caption is a context if it names the subject once and holds no other token. All fit into the text
    encoder. Raises TokenError if no usual one does.
    """
    length = backbone.tokenizer.model_max_length
    taken = {one: len(backbone.tokenizer(filled(one, record.category)).input_ids) for one in CONTEXTS}
    usual = [one for one, pieces_in in taken.items() if pieces_in + len(record.tokens) <= length]
    if not usual:
        raise TokenError(
            f"{shortened(record.words)!r} takes {taken['{}'] + len(record.tokens)} places with start and end, but the "
            f"captions of {backbone.name!r} have {length}. Give the subject fewer tokens, or a shorter category."
        )
    own = []
    for caption in record.prompts:
        around = re.split(rf"(?<!\w){re.escape(record.words)}(?!\w)", caption)
        fits = len(backbone.tokenizer.tokenize(caption)) + 2 <= length  # with start and end
        if len(around) == 2 and fits and not re.search("[<>{}]", "".join(around)):
            own.append("{}".join(around))
    return tuple(dict.fromkeys([*own[:1], *usual, *own[1:]]))
