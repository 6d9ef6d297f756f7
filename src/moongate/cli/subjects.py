"""What `moongate train` is to teach: from repeated options, or from a file that describes each thing."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from moongate.errors import OptionError

__all__ = ["CHOICES", "Lesson", "lessons_from_file", "lessons_from_options"]

CHOICES = ("auto", "retrieved", "pool", "generated", "none")
"""What may stand for regularization pictures instead of a folder."""
EXAMPLES = {"pictures": "bear-photos", "category": "teddy bear", "token": "<bear>", "regularization": "generated"}
"""The keys of an entry in a file, with values they may have."""
NO_TOKEN = "none"
"""What stands for no token in a list of several; a token is written in angle brackets, so it cannot be one."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One thing to teach, and where its regularization pictures come from: a folder, one of `CHOICES`, or as usual."""

    pictures: tuple[Path, ...]
    category: str
    token: str | None = None
    regularization: str | None = None

    @property
    def words(self) -> str:
        """What calls the thing up in a prompt."""
        return f"{self.token} {self.category}" if self.token else self.category

    @property
    def file_name(self) -> str:
        """The token or category as part of a file name."""
        return re.sub(r"\W+", "-", self.token or self.category).strip("-")

    @property
    def folder_name(self) -> str:
        """The category as the name of a folder, in which its regularization pictures are kept."""
        return self.category.strip().replace(" ", "-")

    @classmethod
    def from_entry(cls, entry: Any, *, folder: Path, place: str) -> Self:
        """Read one entry of a file; relative paths start from `folder`. Raises OptionError naming the `place`."""
        if not isinstance(entry, dict):
            raise OptionError(f"{place} is {entry!r}. Write it as a mapping with the keys {', '.join(EXAMPLES)}.")
        if unknown := [key for key in entry if key not in EXAMPLES]:
            raise OptionError(f"{place} has the unknown key {unknown[0]!r}. Known: {', '.join(EXAMPLES)}.")

        def text(key: str, value: Any) -> str:
            if not isinstance(value, str):
                raise OptionError(f"{place} has {key}: {value!r}. Give text, such as {EXAMPLES[key]!r}.")
            return value

        pictures = entry.get("pictures")
        pictures = pictures if isinstance(pictures, list) else [pictures]
        token, source = entry.get("token"), entry.get("regularization")
        if source is not None and source not in CHOICES:
            source = str(folder / text("regularization", source))
        return cls(
            pictures=tuple(folder / text("pictures", each) for each in pictures),
            category=text("category", entry.get("category")),
            token=None if token in (None, NO_TOKEN) else text("token", token),
            regularization=source,
        )


def lessons_from_options(
    pictures: Sequence[Path], categories: Sequence[str], tokens: Sequence[str], regularization: Sequence[str]
) -> list[Lesson]:
    """Pair what was given on the command line, in order.

    With one category all pictures are of it; with several each has one folder. Tokens are as many as categories or
    none at all. Regularization pictures that are not as many are for all, and left to the caller. Raises OptionError
    when the numbers do not fit.
    """
    if not categories:
        raise OptionError(
            'Say what the pictures show, such as --category "teddy bear", or describe several things in a file '
            "(--concepts concepts.yaml)."
        )
    count = len(categories)
    folders = [tuple(pictures)] if count == 1 else [(path,) for path in pictures]
    if len(folders) != count:
        raise OptionError(
            f"{count} categories need {count} folders of pictures in the same order, but {len(folders)} were given. "
            "Give one folder for each --category."
        )
    if len(tokens) not in (0, count):
        raise OptionError(
            f"{count} --category need as many --token or none, but {len(tokens)} were given. Write --token none for "
            "a thing without one."
        )
    if len(regularization) not in (0, 1, count):
        raise OptionError(
            f"{count} --category need as many --regularization, or one for all, but {len(regularization)} were given."
        )
    named = [None if token == NO_TOKEN else token for token in tokens or [NO_TOKEN] * count]
    sources = regularization if len(regularization) == count else [None] * count
    return [
        Lesson(pictures=paths, category=category, token=token, regularization=source)
        for paths, category, token, source in zip(folders, categories, named, sources, strict=True)
    ]


def lessons_from_file(path: Path) -> list[Lesson]:
    """Read a list of things to teach from YAML or JSON. Paths in it are relative to its folder.

    Raises OptionError when the file is missing, cannot be parsed, or an entry is not as it should be.
    """
    if not path.is_file():
        raise OptionError(f"There is no file of concepts {path}. Check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"{path} cannot be read: {' '.join(str(error).split())}. Correct it there.") from error
    if not isinstance(entries, list) or not entries:
        raise OptionError(
            f"{path} holds no list of things to teach. Begin each with a dash: '- pictures: bear-photos', and below "
            "it 'category: teddy bear' and 'token: <bear>'."
        )
    return [
        Lesson.from_entry(entry, folder=path.parent, place=f"Entry {number} of {path}")
        for number, entry in enumerate(entries, 1)
    ]
