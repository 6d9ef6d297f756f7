"""What is drawn to judge a concept: our own sets of prompts, and a reader of CustomConcept101.

The sets follow the protocol of that benchmark in our own words: twenty prompts for a thing, twelve for a pair, in four
kinds: another background, a further thing inserted, a style, a property. `{}` (or `{0}` and `{1}`) stands for the
words of the thing, before which stands no article unless the prompt gives one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moongate.errors import OptionError

__all__ = ["PROMPT_SETS", "BenchmarkConcept", "custom_concept_101", "filled", "read_prompts", "without_tokens"]

PROMPT_SETS: Mapping[str, Mapping[str, Sequence[str]]] = json.loads(
    Path(__file__).with_name("prompts.json").read_text(encoding="utf-8")
)
"""Prompts by set and kind; those of `pocket` and `pocket-pair` keep to words that pocket knows."""
PLACE = re.compile(r"\{(\d?)\}")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConcept:
    """A thing of CustomConcept101, or several in one picture: where its pictures are and what is drawn of it."""

    categories: tuple[str, ...]
    tokens: tuple[str, ...]
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]


def read_prompts(choice: str) -> list[str]:
    """Return the prompts of a set by name, or of a file with one in each line."""
    if choice in PROMPT_SETS:
        return [prompt for prompts in PROMPT_SETS[choice].values() for prompt in prompts]
    if not Path(choice).is_file():
        raise OptionError(f"{choice!r} is neither a set of prompts ({', '.join(PROMPT_SETS)}) nor a file. Name one.")
    prompts = _lines(Path(choice))
    if not prompts:
        raise OptionError(f"The file {choice} holds no prompt. Write one in each line, with {{}} for the thing.")
    return prompts


def filled(prompt: str, words: Sequence[str]) -> str:
    """Return the prompt with its places filled: `{}` by the first words, `{1}` by the second.

    Raises OptionError when it asks for more than there are.
    """

    def fill(place: re.Match[str]) -> str:
        index = int(place[1] or 0)
        if index >= len(words):
            raise OptionError(
                f"The prompt {prompt!r} has a place for thing {index + 1}, but only {len(words)} "
                f"{'is' if len(words) == 1 else 'are'} given. Choose another set of prompts, or give more concepts."
            )
        return words[index]

    return PLACE.sub(fill, prompt)


def without_tokens(prompt: str, categories: Mapping[str, str]) -> str:
    """Return a prompt as a network without the new tokens can read it: their categories alone (paper, App. C).

    `categories` has them by token. A token beside its category is dropped; one alone becomes its category.
    """
    for token, category in categories.items():
        prompt = prompt.replace(f"{token} {category}", category).replace(token, category)
    return prompt


def custom_concept_101(folder: str | Path, *, listing: str = "dataset.json") -> list[BenchmarkConcept]:
    """Read the original benchmark: `dataset.json`, or the pairs of `dataset_multiconcept.json`, and `prompts/`.

    Paths inside are relative to `folder`. Pictures are not looked at: they are distributed apart. Raises OptionError
    when a file is missing or is of another kind.
    """
    folder = Path(folder)
    if not (folder / listing).is_file():
        raise OptionError(f"{folder} holds no {listing}. Give the folder customconcept101 of the original repository.")
    try:
        entries = json.loads((folder / listing).read_text(encoding="utf-8"))
        return [_concept(folder, entry if isinstance(entry, list) else [entry]) for entry in entries]
    except OptionError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise OptionError(f"{folder / listing} is not as the benchmark lays it out ({error!r}).") from error


def _concept(folder: Path, entry: Sequence[Mapping[str, str]]) -> BenchmarkConcept:
    """Read one thing, or a list of several that ends with the name of their prompts."""
    things = [part for part in entry if "class_prompt" in part]
    name = entry[-1]["prompt_filename_compose"] if len(things) > 1 else things[0]["prompt_filename"]
    path = folder / name
    if not path.is_file():
        raise OptionError(f"The file of prompts {path} is missing. Copy it from the original repository.")
    tokens = [re.search(r"<[^<>\s]+>", thing.get("instance_prompt", "")) for thing in things]
    return BenchmarkConcept(
        categories=tuple(thing["class_prompt"] for thing in things),
        tokens=tuple(found[0] if found else f"<new{index + 1}>" for index, found in enumerate(tokens)),
        pictures=tuple(folder / thing["instance_data_dir"] for thing in things),
        prompts=tuple(_mended(prompt) if len(things) > 1 else prompt for prompt in _lines(path)),
    )


def _mended(prompt: str) -> str:
    """Return the prompt of a pair with its second place: one of the benchmark's names the first thing twice."""
    head, place, tail = prompt.rpartition("{0}")
    return f"{head}{{1}}{tail}" if place and "{0}" in head and "{1}" not in prompt else prompt


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
