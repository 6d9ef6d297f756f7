"""Captions of training pictures: templates by kind of subject, and the article that fits a word.

The module knows nothing of pictures and files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["PRESETS", "Named", "Preset", "photo_of", "with_article", "without_tokens"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How pictures of one kind are usually taught: the caption of a picture that has none, and the method."""

    caption: str
    """A template with `{}` for the words of the subject."""
    method: str | None = None
    """Name of the method in `moongate.training.method.METHODS`; None is the model's own, or custom-diffusion."""

    def describe(self, *subjects: str) -> str:
        """Return the caption with the words of one or several subjects in place of `{}`.

        Where the template has `a {}`, each subject gets "a" or "an". Several subjects are joined by "and".
        """
        has_article, template = " a {}" in self.caption, self.caption.replace(" a {}", " {}")
        words = [with_article(subject) if has_article else subject for subject in subjects]
        return template.replace("{}", " and ".join(words))


PRESETS: Mapping[str, Preset] = {
    "object": Preset(caption="photo of a {}"),
    "style": Preset(caption="painting in the style of {}"),
    "scene": Preset(caption="photo of a {}"),
    "face": Preset(caption="photo of a {}", method="custom-diffusion-faces"),
}
"""What users teach (paper, Sec. 4 and App. D)."""


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

    Tokens before their category are dropped, and tokens alone become the category.

    Args:
        prompt: A prompt with tokens.
        subjects: The subjects whose tokens are not known.
    """
    for subject in subjects:
        if subject.tokens:
            prompt = prompt.replace(subject.words, subject.category)
            prompt = prompt.replace(" ".join(subject.tokens), subject.category)
            prompt = prompt.replace(f"{subject.tokens[0]} {subject.category}", subject.category)
            for token in subject.tokens:
                prompt = prompt.replace(token, subject.category if token == subject.tokens[0] else "")
    return " ".join(prompt.split())


def with_article(words: str) -> str:
    """Return the words with "a" or "an" before them, by their first letter: "an armchair", "a <owl> owl"."""
    return f"{'an' if re.match('[aeiouAEIOU]', words) else 'a'} {words}"
