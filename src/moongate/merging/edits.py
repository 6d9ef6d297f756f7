"""Edits of the base by the algebra of the merge: words that are erased, and words that are guarded.

An erased word gets the keys and values of other words in the same captions, so that the model draws these instead; a
guarded word keeps the base's. Both are constraints of Eq. 4 that need no concept (Gandikota et al., Unified Concept
Editing, WACV 2024; Lu et al., MACE, CVPR 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.errors import OptionError, TokenError
from moongate.merging.constraints import CONTEXTS, Rows, single
from moongate.merging.features import filled, fitting, pieces, word_features

__all__ = ["ARROW", "Edit", "check_words", "edits_of", "features_of", "rows_of"]

ARROW = "=>"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Words whose keys and values become those of other words, or stay the base's."""

    words: str
    becomes: str | None = None
    """The other words; None guards `words`."""

    @property
    def name(self) -> str:
        """What names the edit in a file and in a report: "snowman=>object", or the guarded words."""
        return self.words if self.becomes is None else f"{self.words}{ARROW}{self.becomes}"

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the edit of a name."""
        words, _, becomes = name.partition(ARROW)
        return cls(words=words.strip(), becomes=becomes.strip() or None)


def edits_of(erase: Sequence[str], protect: Sequence[str]) -> tuple[Edit, ...]:
    """Read what to erase, each as "words=>other words", and which words to guard.

    Raises:
        OptionError: One cannot be read, or two contradict each other.
    """
    edits: dict[str, Edit] = {}
    for text in (*erase, *protect):
        edit = Edit.named(text)
        is_erased = edit.becomes is not None
        if not edit.words or is_erased != (text in erase) or text.count(ARROW) > 1:
            raise OptionError(
                f"{text!r} cannot be read. Say what to erase and what to draw instead, such as "
                f'--erase "snowman{ARROW}object"; words to protect are words alone.'
            )
        if edit.words == edit.becomes:
            raise OptionError(f"{text!r} would change nothing. Name other words to draw instead.")
        earlier = edits.setdefault(edit.words.lower(), edit)
        if earlier != edit:
            raise OptionError(
                f"{earlier.name!r} and {edit.name!r} contradict each other: {edit.words!r} can only be erased once, "
                "and not while it is protected. Leave one out."
            )
    return tuple(edits.values())


def check_words(backbone: Backbone, edits: Sequence[Edit], subjects: Sequence[str]) -> None:
    """Check that the model can read all words, and that no edit takes a subject's words.

    Args:
        backbone: The base model.
        edits: The edits.
        subjects: The words of all subjects of the merge.

    Raises:
        TokenError: Words have no piece in the tokenizer, or do not fit into one caption.
        OptionError: An edit has the words of a subject.
    """
    for edit in edits:
        for words in (edit.words, edit.becomes or edit.words):
            found = pieces(backbone, words)
            if not found or backbone.tokenizer.unk_token_id in found:
                raise TokenError(
                    f"The tokenizer of {backbone.name!r} has no pieces for {words!r}, so the model cannot read it. "
                    "Choose other words."
                )
            if not fitting(backbone, words, CONTEXTS[:1]) and words not in CONTEXTS[0]:
                raise TokenError(
                    f"{words[:60]!r} is too long for the captions of {backbone.name!r}. Choose fewer words."
                )
        if edit.words in subjects:
            raise OptionError(
                f"{edit.words!r} is a subject of the merge, so it cannot be erased or protected as well. Leave the "
                "concept or the edit out."
            )


def rows_of(backbone: Backbone, edit: Edit, layers: Sequence[str], *, contexts: int) -> Rows:
    """Return the rows of an edit in at most so many contexts.

    An erased word's pieces get the keys and values that the last piece of the other words has in the same caption, and
    the caption's end those of the other caption's end.
    """
    captions = fitting(backbone, edit.words, CONTEXTS)
    if edit.becomes is not None:
        captions = [context for context in captions if context in fitting(backbone, edit.becomes, CONTEXTS)]
    found, moved = [], []
    for context in captions[:contexts]:
        features, wanted = features_of(backbone, edit, context)
        found.append(features)
        moved.append(wanted - features)
    features, change = torch.cat(found), torch.cat(moved)
    values = {layer: single(change @ backbone.parameter(layer).detach().cpu().double().T) for layer in layers}
    return Rows(words=edit.name, features=features, values=values, counts=tuple(map(len, found)))


def features_of(
    backbone: Backbone, edit: Edit, context: str
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """Return the features of an edit's words and of the end in a context, and the features whose values they get."""
    features = word_features(backbone, edit.words, [filled(context, edit.words)], with_end=True)
    if edit.becomes is None:
        return features, features
    others = word_features(backbone, edit.becomes, [filled(context, edit.becomes)], with_end=True)
    return features, torch.cat([others[-2:-1].expand(len(features) - 1, -1), others[-1:]])
