"""The prompts of an evaluation: our own sets, or a file.

The sets follow the protocol of CustomConcept101 in our own words: twenty prompts for one subject and twelve for two, of
four kinds: another background, a further object, a style, a property. `{}` (or `{0}` and `{1}`) stands for the words of
the subject, without an article unless the prompt has one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data.captions import with_words
from moongate.errors import OptionError
from moongate.files import is_file, remedy
from moongate.texts import read_lines
from moongate.training.method import METHODS

__all__ = ["PLACE", "PROMPT_SETS", "default_prompts", "filled", "prompt_lines", "read_prompts", "subject_words"]

PROMPT_SETS: Mapping[str, Mapping[str, Sequence[str]]] = json.loads(
    Path(__file__).with_name("prompts.json").read_text(encoding="utf-8")
)
"""Prompts by set and kind. Those of `pocket` and `pocket-pair` use words of pocket's corpus, but for
"pencil sketch"."""
DEFAULT_SETS = ("object", "pair")
"""Sets for one subject and for two, for a model whose `moongate.json` names none."""
PLACE = re.compile(r"\{(?P<index>\d?)\}")
"""The place of a subject in a prompt, with its index; an empty index is 0."""


def read_prompts(choice: str) -> list[str]:
    """Return the prompts of a set by name, or of a UTF-8 file with one prompt in each line.

    Raises:
        OptionError: There is no such set or file, or the file has no prompt.
    """
    if choice in PROMPT_SETS:
        return [prompt for prompts in PROMPT_SETS[choice].values() for prompt in prompts]
    if not is_file(Path(choice)):
        raise OptionError(f"{choice!r} is neither a set of prompts ({', '.join(PROMPT_SETS)}) nor a file. Name one.")
    prompts = prompt_lines(Path(choice))
    if not prompts:
        raise OptionError(f"The file {choice} holds no prompt. Write one in each line, with {{}} for the subject.")
    return prompts


def default_prompts(backbone: Backbone, subjects: int) -> list[str]:
    """Return the prompts that suit a model and the number of subjects of a concept.

    Raises:
        OptionError: There is no subject, or the model's `moongate.json` names an unknown set.
    """
    if subjects < 1:
        raise OptionError(
            "Without a concept there is no default set of prompts. Name a file of prompts without {} for a subject."
        )
    single, pair = backbone.settings.prompt_sets or DEFAULT_SETS
    return read_prompts(single if subjects == 1 else pair)


def filled(prompt: str, words: Sequence[str]) -> str:
    """Return the prompt with the words of subjects in its places: `{}` gets the first, `{1}` the second.

    Raises:
        OptionError: The prompt has places for more subjects.
    """

    def fill(place: re.Match[str]) -> str:
        index = int(place["index"] or 0)
        if not words:
            raise OptionError(
                f"The prompt {prompt!r} has a place for a subject, {{{place['index']}}}, but there is no concept. Name "
                "one, or write prompts without such places into a file."
            )
        if index >= len(words):
            raise OptionError(
                f"The prompt {prompt!r} has a place for subject {index + 1}, but only {len(words)} "
                f"{'is' if len(words) == 1 else 'are'} given. Choose another set of prompts, or give more concepts."
            )
        return words[index]

    return with_words(prompt, PLACE.pattern, fill)


def subject_words(concept: Concept) -> list[str]:
    """Return the words of each subject in a prompt as the concept's method words them: with or without the category."""
    method = METHODS.get(concept.method)
    if method is None:
        return [subject.words for subject in concept.subjects]
    return [method.worded(part.words, token=part.token, category=part.category) for part in concept.subjects]


def prompt_lines(file: Path) -> list[str]:
    """Return the lines of a file that hold text. Raises OptionError when it cannot be read."""
    try:
        return read_lines(file)
    except OSError as error:
        raise OptionError(f"{file} cannot be read: {error.strerror or error}. {remedy(error)}") from error
    except ValueError as error:
        raise OptionError(f"{file} cannot be read: {error}. Save it as UTF-8, with a prompt in each line.") from error
