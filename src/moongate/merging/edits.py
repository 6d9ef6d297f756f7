"""Edits of the base by the algebra of the merge: words that are erased, and words that are protected.

An erased word gets the keys and values of other words in the same captions, so that the model draws these instead; a
protected word keeps the base's. Both are constraints of Eq. 4 that need no concept (Gandikota et al., Unified Concept
Editing, WACV 2024; Lu et al., MACE, CVPR 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.text import folded
from moongate.errors import OptionError, TokenError
from moongate.merging.constraints import CONTEXTS, SOFT_DIRECTIONS, Rows, single
from moongate.merging.features import (
    ANYWHERE,
    BESIDE,
    feature_width,
    filled,
    fits,
    fitting,
    pieces,
    stand_ins,
    word_features,
)
from moongate.texts import is_encodable

__all__ = ["ARROW", "Edit", "agreeing", "check_words", "edits_of", "features_of", "fitting_both", "rows_of"]

ARROW = "=>"
ERASING = 3.0
"""Weight of an erased word's values in further contexts, relative to those of a subject, because it must be gone in all
of them."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Words whose keys and values become those of other words, or stay the base's."""

    words: str
    becomes: str | None = None
    """The other words; None protects `words`."""

    @property
    def name(self) -> str:
        """What names the edit in a file and in a report: "snowman=>object", or the protected words."""
        return self.words if self.becomes is None else f"{self.words}{ARROW}{self.becomes}"

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the edit of a name."""
        words, _, becomes = name.partition(ARROW)
        return cls(words=words.strip(), becomes=becomes.strip() or None)


def edits_of(erase: Sequence[str], protect: Sequence[str]) -> tuple[Edit, ...]:
    """Read what to erase, each as "words=>other words", and which words to protect.

    Raises:
        OptionError: One cannot be read, or two contradict each other.
    """
    edits = []
    for text in (*erase, *protect):
        edit = Edit.named(text)
        is_erased = edit.becomes is not None
        if not edit.words or is_erased != (text in erase) or text.count(ARROW) > 1:
            raise OptionError(
                f"{text!r} cannot be read. Say what to erase and what to draw instead, such as "
                f'--erase "snowman{ARROW}object"; words to protect have no arrow.'
            )
        if folded(edit.words) == folded(edit.becomes or ""):
            raise OptionError(f"{text!r} would change nothing. Name other words to draw instead.")
        edits.append(edit)
    return agreeing(edits)


def agreeing(edits: Sequence[Edit], subjects: Sequence[str] = ()) -> tuple[Edit, ...]:
    """Return each edit once.

    Args:
        edits: The edits of one merge.
        subjects: The words of its subjects.

    Raises:
        OptionError: Two edits contradict each other, or one has the words of a subject.
    """
    found: dict[str, Edit] = {}
    for edit in edits:
        earlier = found.setdefault(folded(edit.words), edit)
        if folded(earlier.name) != folded(edit.name):
            raise OptionError(
                f"{earlier.name!r} and {edit.name!r} contradict each other: {edit.words!r} can only be erased once, "
                "and not while it is protected. Leave one out."
            )
        if folded(edit.words) in map(folded, subjects):
            raise OptionError(
                f"{edit.words!r} is a subject of the merge, so it cannot be erased or protected as well. Leave the "
                "concept or the edit out."
            )
    return tuple(found.values())


def check_words(backbone: Backbone, edits: Sequence[Edit]) -> None:
    """Check that the base can read all words. It has no keys and values for the token of a concept.

    Raises:
        TokenError: Words have a token, have no piece in the tokenizer, or do not fit into one caption.
    """
    for edit in edits:
        for words in (edit.words, edit.becomes or edit.words):
            ids = pieces(backbone, words) if is_encodable(words) else []
            if not ids or backbone.tokenizer.unk_token_id in ids:
                raise TokenError(
                    f"The tokenizer of {backbone.name!r} has no pieces for {words!r}, so the model cannot read it. "
                    "Choose other words."
                )
            if found := backbone.unknown_tokens(words):
                raise TokenError(
                    f"{words!r} cannot be erased, protected or drawn instead: the model itself does not know "
                    f"{found[0]!r}. Choose words that it knows."
                )
            if not fits(backbone, filled(CONTEXTS[0], words)):
                raise TokenError(
                    f"{words[:60]!r} is too long for the captions of {backbone.name!r}. Choose fewer words."
                )


def rows_of(backbone: Backbone, edit: Edit, layers: Sequence[str], *, contexts: int, elsewhere: float) -> Rows:
    """Return the rows of an edit: constraints in at most so many contexts, and soft rows for others.

    An erased word's pieces get the keys and values that the last piece of the other words has in the same caption, and
    the caption's end those of the other caption's end.

    Args:
        backbone: The base model.
        edit: The edit.
        layers: Names of the matrices that may change.
        contexts: Largest number of contexts in which the edit is exact.
        elsewhere: Weight of the edit in further contexts, as soft rows; 0 leaves them out.
    """
    captions = fitting_both(backbone, edit, CONTEXTS)[:contexts]
    features, wanted = features_of(backbone, edit, captions)
    change = wanted - features
    soft = features[:0]
    if elsewhere:
        weight = elsewhere if edit.becomes is None else ERASING * elsewhere
        further = [weight**0.5 * rows for rows in _elsewhere(backbone, edit)]
        soft, change = single(further[0]), torch.cat([change, further[1]])
    values = {layer: single(change @ backbone.parameter(layer).detach().cpu().double().T) for layer in layers}
    counts = (len(features) // len(captions),) * len(captions)
    rows = torch.cat([features, soft])
    return Rows(words=edit.name, features=rows, values=values, counts=counts, soft=len(soft))


def features_of(
    backbone: Backbone, edit: Edit, contexts: Sequence[str], *, with_end: bool = True
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """Return the features of an edit's words and of the ends in contexts, and the features whose values they get."""
    features = word_features(backbone, edit.words, [filled(context, edit.words) for context in contexts], with_end=True)
    features = features.unflatten(0, (len(contexts), -1))
    wanted = features
    if edit.becomes is not None:
        captions = [filled(context, edit.becomes) for context in contexts]
        others = word_features(backbone, edit.becomes, captions, with_end=True).unflatten(0, (len(contexts), -1))
        last = others[:, -2:-1].expand(-1, features.shape[1] - 1, -1)
        wanted = torch.cat([last, others[:, -1:]], dim=1)
    kept = slice(None if with_end else -1)
    return features[:, kept].flatten(0, 1), wanted[:, kept].flatten(0, 1)


def fitting_both(backbone: Backbone, edit: Edit, contexts: Sequence[str]) -> list[str]:
    """Return the contexts that both the words and those in their place fit into."""
    fit = fitting(backbone, edit.words, contexts)
    return fit if edit.becomes is None else [one for one in fitting(backbone, edit.becomes, contexts) if one in fit]


def _elsewhere(backbone: Backbone, edit: Edit) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """Return few rows for an edit in many contexts: features, and the change of features whose values they get.

    With the features F = U S V^T in all contexts and the wanted changes D, the rows are S V^T and U^T D. Up to the
    directions that are left out, the squared error of any matrix on these rows differs only by a constant from its mean
    over the contexts.
    """
    parts = []
    with backbone.tokens(stand_ins(backbone)):
        for contexts, with_end in ((ANYWHERE, True), (BESIDE, False)):
            if fit := fitting_both(backbone, edit, contexts):
                features, wanted = features_of(backbone, edit, fit, with_end=with_end)
                parts.append(torch.stack([features, wanted - features]) / len(fit) ** 0.5)
    if not parts:
        nothing = torch.zeros(0, feature_width(backbone)).double()
        return nothing, nothing
    features, change = torch.cat(parts, dim=1)
    left, values, right = torch.linalg.svd(features, full_matrices=False)
    leading = slice(SOFT_DIRECTIONS)
    return (values[:, None] * right)[leading], (left.T @ change)[leading]
