"""Captions of training pictures: templates by kind of subject, and the words that are put into them.

The module knows nothing of pictures and files.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from moongate.errors import OptionError
from moongate.texts import is_encodable

__all__ = [
    "PRESETS",
    "Named",
    "Preset",
    "check_category",
    "photo_of",
    "with_article",
    "with_words",
    "without_tokens",
]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How pictures of one kind are usually taught: the caption of a picture that has none, and the method."""

    caption: str
    """A template with `{}` for the words of the subject."""
    method: str | None = None
    """Name of the method in `moongate.training.method.METHODS`; None is the model's own, or custom-diffusion."""

    def describe(self, *subjects: str) -> str:
        """Return the caption with the words of one or several subjects in place of `{}`.

        Where the template has `a {}` or `an {}`, each subject gets "a" or "an". Several subjects are joined by "and".
        """
        first, *others = subjects or ("",)
        has_article = re.search(r"\ban? {}", self.caption, re.IGNORECASE)
        following = "".join(f" and {with_article(other) if has_article else other}" for other in others)
        return with_words(self.caption, "{}", first + following)


PRESETS: Mapping[str, Preset] = {
    "object": Preset(caption="photo of a {}"),
    "style": Preset(caption="painting in the style of {}"),
    "scene": Preset(caption="photo of a {}"),
    "face": Preset(caption="photo of a {}", method="custom-diffusion-faces"),
}
"""What users teach: the subjects and styles of the paper (Sec. 4), and faces, as its public code does."""


def check_category(category: str) -> None:
    """Raise OptionError for a category that is no word that a model knows: an empty one, or one with a token in it.

    Characters that UTF-8 cannot hold are refused too.
    """
    if not category.strip():
        raise OptionError("The category is empty. Say what the pictures show, such as 'teddy bear' or 'dog'.")
    if not is_encodable(category):
        raise OptionError(f"The category {category!r} has a character that UTF-8 cannot hold. Type it in UTF-8.")
    if token := re.search(r"<[^<>\s]+>", category):
        raise OptionError(
            f"The category {category!r} holds the token {token[0]!r}. Give only words that the model knows, such as "
            "'teddy bear' or 'dog', and the token apart from them."
        )


def photo_of(*subjects: str) -> str:
    """Return "photo of a bear", or "photo of a bear and an armchair"."""
    return PRESETS["object"].describe(*subjects)


class Named(Protocol):
    """A subject with its names in a prompt."""

    @property
    def category(self) -> str:
        """The word that the base model knows."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that stand for it, in order."""

    @property
    def words(self) -> str:
        """All of its words: "<bear> teddy bear"."""


def without_tokens(prompt: str, subjects: Iterable[Named]) -> str:
    """Return a prompt as a model that does not know the tokens can read it (paper, App. C).

    Tokens before their category are dropped, and a token without it becomes the category.

    Args:
        prompt: A prompt with tokens.
        subjects: The subjects whose tokens are not known.
    """
    for subject in subjects:
        if subject.tokens:
            category, (first, *others) = subject.category, subject.tokens
            for words in (subject.words, " ".join(subject.tokens), f"{first} {category}", first):
                prompt = with_words(prompt, f"(?i:{re.escape(words)})", category)  # as CLIP reads it
            for token in others:
                prompt = prompt.replace(token, "")
    return " ".join(prompt.split())


def with_words(text: str, pattern: str, words: str | Callable[[re.Match[str]], str], *, count: int = 0) -> str:
    """Return a text with other words where a pattern matches, and the article before them that fits: "a" or "an".

    Args:
        text: The text.
        pattern: A regular expression; its groups have names.
        words: The words, or a function that returns those for a match.
        count: Largest number of matches that are replaced; 0 is all.
    """

    def replaced(found: re.Match[str]) -> str:
        put = words if isinstance(words, str) else words(found)
        return f"{found['article']}{with_article(put)[1:]}" if found["article"] else put

    return re.sub(rf"(?:\b(?P<article>[Aa])n? )?{pattern}", replaced, text, count=count)


def with_article(words: str) -> str:
    """Return the words with "a" or "an" before them, by their first letter: "an armchair", "a <owl> owl"."""
    return f"{'an' if re.match('[aeiouAEIOU]', words) else 'a'} {words}"
