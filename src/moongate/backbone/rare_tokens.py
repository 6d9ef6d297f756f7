"""Which tokens new words may begin as: the rarely used ones of a vocabulary (paper, App. D)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from moongate.backbone import Backbone

__all__ = ["OCCURRENCES", "RareToken", "latest", "suggest"]

OCCURRENCES = (5, 10)
"""How often a rare token occurs; the paper counted over 200,000 captions."""
WORD_END = "</w>"


@dataclass(frozen=True, kw_only=True)
class RareToken:
    """A token, what it spells, and how often the captions hold it."""

    id: int
    text: str
    count: int


def suggest(
    backbone: Backbone, captions: Iterable[str], *, occurrences: tuple[int, int] = OCCURRENCES
) -> list[RareToken]:
    """Return the alphabetic tokens, not part of another, which captions hold `occurrences` times; rarest first."""
    counts = Counter(token for caption in captions for token in backbone.tokenizer(caption, truncation=True).input_ids)
    low, high = occurrences
    found = [
        RareToken(id=token, text=text, count=counts[token])
        for token, text in _whole_words(backbone).items()
        if low <= counts[token] <= high
    ]
    return sorted(found, key=lambda token: (token.count, token.id))


def latest(backbone: Backbone) -> list[int]:
    """Return the ids of alphabetic words that are not part of another token, those learned last first.

    Byte-pair pieces are learned in the order of their frequency, so that the vocabulary itself tells what is rare where
    there are no captions to count.
    """
    return sorted(_whole_words(backbone), reverse=True)


def _whole_words(backbone: Backbone) -> dict[int, str]:
    """Return the tokens that are alphabetic words and occur in no other token's spelling, by id."""
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
