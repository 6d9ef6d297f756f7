"""A study: pictures that several methods drew of the same prompts, to be compared two at a time (paper, Sec. 4.3).

A study is a folder: `study.json`, and in `pictures/` copies of the pictures without what their files said of
themselves, under names that do not tell the method. A trial shows two pictures of one prompt and asks one of the
paper's two questions. Order and sides follow from the study and the name of the rater, so that a rater who comes back
goes on where the answers end, and no state is stored.
"""

import dataclasses
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Self, get_args

from moongate.errors import OptionError
from moongate.files import digest
from moongate.limits import MAX_PAIRS
from moongate.texts import parse_json, read_text

__all__ = ["FILE", "PICTURES", "QUESTIONS", "Item", "Question", "Study", "Target", "Trial", "check_rater"]

FILE, PICTURES = "study.json", "pictures"
FORMAT, VERSION = "moongate-study", 1
Question = Literal["text", "image"]
QUESTIONS: Mapping[Question, str] = {
    "text": "Which image is more consistent with the text?",
    "image": "Which image better represents the objects as shown in target images?",
}
"""The questions of the paper (Sec. 4.3). A rater answers all trials of the first, and then those of the second."""
RATER_CHARACTERS = 60
JOINERS = "\u200c\u200d"
"""Invisible characters that names in Persian and pictures of several persons are written with."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A subject with some of its photos, which the second question shows."""

    words: str
    """What prompts call it, without its token."""
    photos: tuple[str, ...]
    """Names of files in `pictures/`."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """The pictures of one prompt and seed."""

    prompt: str
    """As raters read it: without tokens."""
    targets: tuple[int, ...]
    """Indices of the subjects that it names; without any, the second question is not asked."""
    pictures: Mapping[str, str]
    """Name of a file in `pictures/` by the method that drew it; two or more."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One question about two pictures."""

    question: Question
    item: int
    """Index of the item."""
    left: str
    """The method of the picture on the left."""
    right: str

    @property
    def key(self) -> tuple[str, int, frozenset[str]]:
        """What stays the same when the sides are changed."""
        return self.question, self.item, frozenset((self.left, self.right))


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared."""

    methods: tuple[str, ...]
    targets: tuple[Target, ...]
    items: tuple[Item, ...]
    seed: int = 0
    """Of it and the rater follow order and sides."""

    def __post_init__(self) -> None:
        if len(self.methods) < 2 or len(set(self.methods)) < len(self.methods):
            raise OptionError(f"A study compares two or more methods, each of its own name; these are {self.methods}.")
        if not self.items:
            raise OptionError("The study has no pictures to compare.")
        pairs = sum(math.comb(len(item.pictures), 2) for item in self.items)
        if pairs > MAX_PAIRS:
            raise OptionError(
                f"The study has {pairs} pairs of pictures to compare; at most {MAX_PAIRS} are taken. Give fewer "
                "methods, prompts or seeds."
            )

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the study in a folder.

        Raises:
            OptionError: There is none, or its file is damaged.
        """
        path = folder / FILE
        try:
            facts = parse_json(read_text(path))
            if facts.get("format") != FORMAT or facts["version"] > VERSION:
                raise ValueError(f"it says format {facts.get('format')!r} and version {facts.get('version')!r}")
            return cls(
                methods=tuple(map(_text, facts["methods"])),
                targets=tuple(_target(target) for target in facts["targets"]),
                items=tuple(_item(item, facts) for item in facts["items"]),
                seed=int(facts["seed"]),
            )
        except OSError as error:
            raise OptionError(f"{folder} holds no study ({path.name}: {error.strerror}). Check the path.") from error
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(f"{path} is not a study that can be read: {error}. Make it again.") from error

    @cached_property
    def id(self) -> str:
        """What identifies the study in files of answers; copies of one study have the same."""
        return digest(json.dumps(self.to_json(), sort_keys=True))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that are asked; the second needs photos."""
        return get_args(Question) if any(item.targets for item in self.items) else ("text",)

    def trials(self, rater: str) -> list[Trial]:
        """Return all trials of a rater: question by question, each in an order and with sides of the rater's own."""

        def drawn(*parts: object) -> str:
            return digest(json.dumps([self.id, self.seed, rater, *parts]), length=16)

        found = []
        for question in self.questions:
            pairs = self.pairs(question)
            for item, first, second in sorted(pairs, key=lambda pair: drawn("order", question, *pair)):
                is_turned = int(drawn("side", question, item, first, second), 16) % 2
                left, right = (second, first) if is_turned else (first, second)
                found.append(Trial(question=question, item=item, left=left, right=right))
        return found

    @cached_property
    def keys(self) -> frozenset[tuple[str, int, frozenset[str]]]:
        """The keys of all trials, which are the same for every rater."""
        return frozenset(
            Trial(question=question, item=item, left=first, right=second).key
            for question in self.questions
            for item, first, second in self.pairs(question)
        )

    def pairs(self, question: Question) -> list[tuple[int, str, str]]:
        """Return the index of each item about which a question is asked, with each two of its methods."""
        return [
            (number, first, second)
            for number, item in enumerate(self.items)
            if question == "text" or item.targets
            for first, second in combinations([method for method in self.methods if method in item.pictures], 2)
        ]


def check_rater(name: str) -> str:
    """Return the name of a rater without spaces around it, and without invisible marks other than `JOINERS`.

    Raises:
        OptionError: It is empty, too long, or has control characters.
    """
    kept = (character for character in name if character in JOINERS or unicodedata.category(character) != "Cf")
    name = " ".join("".join(kept).split())
    if not name.strip(JOINERS) or len(name) > RATER_CHARACTERS:
        raise OptionError(f"The rater's name {name!r:.80} must have 1 to {RATER_CHARACTERS} characters. Give another.")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise OptionError(f"The rater's name {name!r:.80} has control characters. Leave them out.")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r:.80} is not text")
    return value


def _file(value: Any) -> str:
    """Return the name of a picture, which leads nowhere else."""
    if not re.fullmatch(r"[0-9a-f]{16}\.png", _text(value)):
        raise ValueError(f"{value!r:.80} is not a name of a picture")
    return str(value)


def _target(facts: Any) -> Target:
    return Target(words=_text(facts["words"]), photos=tuple(map(_file, facts["photos"])))


def _item(facts: Any, study: Any) -> Item:
    pictures = {_text(method): _file(file) for method, file in facts["pictures"].items()}
    targets = tuple(int(index) for index in facts["targets"])
    if len(pictures) < 2 or not set(pictures) <= set(study["methods"]):
        raise ValueError(f"the pictures of {facts['prompt']!r:.80} are of the methods {', '.join(pictures)}")
    if any(not 0 <= index < len(study["targets"]) for index in targets):
        raise ValueError(f"{facts['prompt']!r:.80} names a subject that is not listed")
    return Item(prompt=_text(facts["prompt"]), targets=targets, pictures=pictures)
