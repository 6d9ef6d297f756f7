"""Align the tokens of two prompts: which word of the source gives its attention to which word of the target.

Pure functions of words and of positions among a text encoder's features (`Backbone.words`). Prompt-to-prompt (Hertz et
al. 2022, Sec. 3.2) needs them for its three edits: a replaced word takes the attention of the word in its place, an
added word keeps its own, and a reweighted word is found by what it says. The module knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.errors import OptionError

__all__ = ["Alignment", "Word", "align", "positions_of", "spelled"]

Word = tuple[str, list[int]]
"""A word and the positions of its pieces; a new token such as `<bear>` is a word of one piece."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """How the attention to the source's tokens becomes attention to the target's."""

    mapping: Float[Tensor, "source target"]
    """Share of a source token's attention that a target token takes. A column of zeros belongs to a token that keeps
    its own attention."""
    own: Float[Tensor, " target"]
    """1 for each target token that keeps its own attention, else 0."""


def align(source: Sequence[Word], target: Sequence[Word], *, length: int) -> Alignment:
    """Align two prompts word by word.

    Words that both prompts have in the same order are aligned piece by piece. Where words of the target stand in the
    place of others of the source, each replaces one of them, counted from the last, because the last word of an English
    noun phrase says what it is: in "red dog" instead of "cat", "dog" replaces "cat" and "red" is added. A word of n
    pieces gives its whole attention to the m pieces of the word that replaces it: piece by piece if n = m, else spread
    evenly. Words of the target without a counterpart are added, and keep their own attention. The start token, and all
    that follows the last word (the end token and the padding), are aligned in order.

    Args:
        source: Words of the source prompt.
        target: Words of the target prompt.
        length: Number of tokens that the text encoder reads, padding included.

    Raises:
        OptionError: The prompts have no word in common.
    """
    words = spelled(source), spelled(target)
    mapping = torch.zeros(length, length)
    has_common_word = False
    for kind, *edges in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        pieces = [positions for _, positions in source[edges[0] : edges[1]]]
        others = [positions for _, positions in target[edges[2] : edges[3]]]
        has_common_word = has_common_word or kind == "equal"
        for these, those in zip(reversed(pieces), reversed(others), strict=False):
            _hand_over(mapping, these, those)
    if not has_common_word:
        raise OptionError(
            f"The prompts {' '.join(words[0])!r} and {' '.join(words[1])!r} have no word in common, so nothing of the "
            "source's layout can be kept. Change only some of the words, or draw the second prompt with "
            "`moongate generate`."
        )
    mapping[0, 0] = 1
    for this, that in zip(*(range(_end(prompt), length) for prompt in (source, target)), strict=False):
        mapping[this, that] = 1
    return Alignment(mapping=mapping, own=(mapping.sum(0) == 0).float())


def positions_of(words: Sequence[Word], wanted: Sequence[str]) -> list[int]:
    """Return the positions of each occurrence of some consecutive words.

    Args:
        words: The words of a prompt.
        wanted: One or more words as the tokenizer spells them, such as `["teddy", "bear"]`.

    Returns:
        The positions in order; empty if the words do not occur.
    """
    names, count = [word for word, _ in words], len(wanted)
    found: list[int] = []
    for first in range(len(words) - count + 1):
        if count and names[first : first + count] == list(wanted):
            found += _joined([positions for _, positions in words[first : first + count]])
    return sorted(set(found))


def spelled(words: Sequence[Word]) -> list[str]:
    """Return the words alone, without their positions."""
    return [word for word, _ in words]


def _hand_over(mapping: Float[Tensor, "source target"], these: Sequence[int], those: Sequence[int]) -> None:
    """Let the tokens `those` take the whole attention of the tokens `these`."""
    if len(these) == len(those):
        for this, that in zip(these, those, strict=True):
            mapping[this, that] = 1
        return
    for this in these:
        mapping[this, list(those)] = 1 / len(those)


def _end(words: Sequence[Word]) -> int:
    """Return the position after the last word."""
    return 1 + max((position for _, positions in words for position in positions), default=0)


def _joined(positions: Sequence[Sequence[int]]) -> list[int]:
    return [position for word in positions for position in word]
