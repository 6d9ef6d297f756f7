"""Rarely used tokens of a vocabulary, whose rows initialize new tokens (paper, App. D)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from moongate.backbone import Backbone

__all__ = ["OCCURRENCES", "RareToken", "latest", "suggest"]

OCCURRENCES = (5, 10)
"""Least and largest number of occurrences of a rare token; the paper counted in 200,000 captions."""
WORD_END = "</w>"
"""How the vocabulary marks a piece that ends a word."""


@dataclass(frozen=True, kw_only=True)
class RareToken:
    """A token and how often it occurs."""

    id: int
    text: str
    """The word that it spells."""
    count: int
    """Number of occurrences in the captions."""


def suggest(
    backbone: Backbone, captions: Iterable[str], *, occurrences: tuple[int, int] = OCCURRENCES
) -> list[RareToken]:
    """Return the rare tokens of a model by counting in captions, the rarest first.

    Only alphabetic words that are not part of another token count.

    Args:
        backbone: The model with the vocabulary.
        captions: Captions like those that it was trained on, and many of them.
        occurrences: Least and largest number of occurrences.
    """
    counts = Counter(token for caption in captions for token in backbone.tokenizer(caption, truncation=True).input_ids)
    low, high = occurrences
    tokens = [
        RareToken(id=token, text=text, count=counts[token])
        for token, text in _whole_words(backbone).items()
        if low <= counts[token] <= high
    ]
    return sorted(tokens, key=lambda token: (token.count, token.id))


def latest(backbone: Backbone) -> list[int]:
    """Return the ids of alphabetic words that are not part of another token, beginning with those learned last.

    Byte-pair pieces are learned in the order of their frequency, so that the vocabulary itself shows what is rare
    without any captions. (Among a thousand captions, what occurs five to ten times is an ordinary word.)
    """
    return sorted(_whole_words(backbone), reverse=True)


def _whole_words(backbone: Backbone) -> dict[int, str]:
    """Return the tokens that are alphabetic words and are not part of another token's spelling, by id."""
    vocabulary = backbone.tokenizer.get_vocab()
    spelled = {token: piece.removesuffix(WORD_END) for piece, token in vocabulary.items()}
    times = Counter(spelled.values())
    words = {text for text, count in times.items() if count == 1 and text.isascii() and text.isalpha()}
    for text in spelled.values():
        parts = (text[start:end] for start in range(len(text)) for end in range(start + 1, len(text) + 1))
        words.difference_update(part for part in parts if part != text)
    return {
        token: spelled[token]
        for piece, token in vocabulary.items()
        if piece.endswith(WORD_END) and spelled[token] in words
    }
