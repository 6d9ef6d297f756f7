"""The subjects that `moongate train` teaches: from repeated options, or from a file that lists them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from moongate.cli.options import at_home
from moongate.errors import OptionError, warn

__all__ = ["SubjectOptions", "listing_of", "subjects_from_file", "subjects_from_options"]

DIFFUSERS = ("instance_data_dir", "class_data_dir", "instance_prompt", "class_prompt", "category", "token")
"""The keys of an entry in the concepts_list.json of diffusers' scripts; the last two are ours and may be added."""
EXAMPLES = {"pictures": "bear-photos", "category": "teddy bear", "token": "<bear>", "regularization": "generated"}
"""The keys of an entry in a file, with examples of their values."""
NO_TOKEN = "none"
"""Means no token in a list of several. It cannot be a token, because tokens have angle brackets."""


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """One subject to teach.

    `regularization` is a folder or one of `moongate.regularization.CHOICES`; None leaves it to the option for all.
    """

    pictures: tuple[Path, ...]
    category: str
    token: str | None = None
    regularization: str | None = None
    caption: str | None = None
    """Caption of pictures without one; None leaves it to the preset."""
    class_caption: str | None = None
    """Caption of regularization pictures without one, and prompt of generated ones; None leaves it to the preset."""

    @property
    def file_name(self) -> str:
        """The token or category as part of a file name."""
        from moongate.files import file_name  # loads asyncio, which --help does not need

        return file_name(self.token or self.category)

    @property
    def folder_name(self) -> str:
        """The category as the name of a folder, in which its regularization pictures are kept."""
        from moongate.files import file_name

        return file_name(self.category)

    @classmethod
    def from_entry(cls, entry: Any, *, folder: Path, place: str) -> Self:
        """Read one entry of a file.

        Args:
            entry: The entry as parsed from YAML or JSON.
            folder: Folder to which relative paths belong.
            place: The entry's name in error messages.

        Raises:
            OptionError: The entry is not a mapping, has an unknown key, or a value that is not text.
        """
        if not isinstance(entry, dict):
            raise OptionError(f"{place} is {entry!r}. Write it as a mapping with the keys {', '.join(EXAMPLES)}.")
        is_diffusers = bool(set(DIFFUSERS[:4]) & set(entry))
        known = DIFFUSERS if is_diffusers else EXAMPLES
        if unknown := [key for key in entry if key not in known]:
            raise OptionError(f"{place} has the unknown key {unknown[0]!r}. Known: {', '.join(known)}.")

        def text(key: str, value: Any) -> str:
            example = EXAMPLES.get(key, "photo of a <rex> dog" if key.endswith("prompt") else "dog-photos")
            if value is None:
                raise OptionError(f"{place} has no {key}. Add it, such as '{key}: {example}'.")
            if not (isinstance(value, str) and value.strip()):
                raise OptionError(f"{place} has {key}: {value!r}. Give text, such as {example!r}.")
            return value

        if is_diffusers:
            values = {key: text(key, value) for key, value in entry.items() if value is not None}
            text("instance_data_dir", values.get("instance_data_dir"))
            text("instance_prompt", values.get("instance_prompt"))
            return cls._from_diffusers(values, folder=folder, place=place)
        pictures = entry.get("pictures")
        pictures = pictures if isinstance(pictures, list) else [pictures]
        token, source = entry.get("token"), entry.get("regularization")
        if source is not None and not _is_choice(source):
            source = str(folder / at_home(text("regularization", source)))
        return cls(
            pictures=tuple(folder / at_home(text("pictures", path)) for path in pictures),
            category=text("category", entry.get("category")),
            token=None if token in (None, NO_TOKEN) else text("token", token),
            regularization=source,
        )

    @classmethod
    def _from_diffusers(cls, entry: Mapping[str, str], *, folder: Path, place: str) -> Self:
        """Read an entry of diffusers' concepts_list.json. Its prompts are captions as they are."""
        from moongate.files import exists

        prompt, class_prompt = entry["instance_prompt"], entry.get("class_prompt")
        written = re.search(r"<[^<>\s]+>", prompt)
        token = entry.get("token") or (written[0] if written else None)
        category = entry.get("category") or _category(prompt, class_prompt, token)
        if category is None:
            raise OptionError(
                f"{place} does not say what its pictures show: no words of its class_prompt {class_prompt!r} are in "
                f'the instance_prompt {prompt!r}. Add them, such as "category": "dog".'
            )
        if token is None:
            warn(
                f"{place} has no token in angle brackets in its instance_prompt {prompt!r}, so that its words are "
                "taught and no new one. Write one, such as '<rex>', for a new word."
            )
        regularization = None
        if "class_data_dir" in entry:
            pictures = _place(entry["class_data_dir"], folder)
            regularization = (
                str(pictures) if exists(pictures) and pictures.is_dir() and any(pictures.iterdir()) else "generated"
            )
            if regularization == "generated":
                warn(f"{place}: the class_data_dir {pictures} holds nothing, so regularization pictures are generated.")
        return cls(
            pictures=(_place(entry["instance_data_dir"], folder),),
            category=category,
            token=token,
            regularization=regularization,
            caption=prompt,
            class_caption=class_prompt,
        )


def _place(path: str, folder: Path) -> Path:
    """Return where a path of diffusers' file leads: relative to the file or, as there, to the working directory."""
    from moongate.files import exists

    readings = [base / at_home(name) for name in (path, path.replace("\\", "/")) for base in (folder, Path())]
    return next((reading for reading in readings if exists(reading)), folder / path)


def _category(prompt: str, class_prompt: str | None, token: str | None) -> str | None:
    """Return the words of a class prompt that the instance prompt has too, or those after the token; None if none."""
    source = class_prompt or (prompt.partition(token)[2] if token else "")
    source = re.sub(r"^(an? )?(photo|picture|image|painting|drawing)s? of ", "", source.strip(), flags=re.IGNORECASE)
    source = re.sub(r"^(an?|the|my) ", "", source.strip(), flags=re.IGNORECASE)
    words = re.split(r"[,.;:]| (?:on|in|at|with|by|near|under) ", source)[0].split()
    for count in range(len(words), 0, -1):
        if re.search(rf"(?<!\w){re.escape(' '.join(words[:count]))}(?!\w)", prompt, re.IGNORECASE):
            return " ".join(words[:count])
    return None


def _is_choice(regularization: Any) -> bool:
    from moongate.regularization import CHOICES

    return regularization in CHOICES


def subjects_from_options(
    pictures: Sequence[Path], categories: Sequence[str], tokens: Sequence[str], regularization: Sequence[str]
) -> list[SubjectOptions]:
    """Combine the values of repeated options, in their order.

    Args:
        pictures: A folder or files of one category; for several categories one folder each.
        categories: One for each subject.
        tokens: One for each category, or none at all.
        regularization: One for each category. A single one for several is left to the caller.

    Raises:
        OptionError: The numbers do not fit.
    """
    if not categories:
        raise OptionError(
            'Say what the pictures show, such as --category "teddy bear", or list several subjects in a file '
            "(--concepts concepts.yaml)."
        )
    count = len(categories)
    folders = [tuple(pictures)] if count == 1 else [(path,) for path in pictures]
    if len(folders) != count:
        raise OptionError(
            f"--category is given {_times(count)}, but a folder {_times(len(folders))}. Give one folder of pictures "
            "for each category, in the same order."
        )
    if len(tokens) not in (0, count):
        raise OptionError(
            f"--category is given {_times(count)} and --token {_times(len(tokens))}. Give a token for each category, "
            "or none at all; --token none stands for a subject without one."
        )
    if len(regularization) not in (0, 1, count):
        raise OptionError(
            f"--category is given {_times(count)} and --regularization {_times(len(regularization))}. Give one for "
            "each category, or one for all."
        )
    if "" in tokens:
        raise OptionError("A --token is empty. Leave it out to teach the category's own words.")
    if count == 1 and sum(path.is_dir() for path in pictures) > 1:
        raise OptionError(
            f"{len(pictures)} folders and one --category were given, which would teach all pictures as one "
            f"{categories[0]}. Give a --category for each folder, or put the pictures of one subject into one folder."
        )
    named = [None if token == NO_TOKEN else token for token in tokens or [NO_TOKEN] * count]
    sources = regularization if len(regularization) == count else [None] * count
    return [
        SubjectOptions(pictures=paths, category=category, token=token, regularization=source)
        for paths, category, token, source in zip(folders, categories, named, sources, strict=True)
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def subjects_from_file(path: Path) -> list[SubjectOptions]:
    """Read a list of subjects from a YAML or JSON file, or from the concepts_list.json of diffusers' scripts.

    Paths in it are relative to its folder.

    Raises:
        OptionError: The file is missing or cannot be parsed, or an entry is wrong.
    """
    form = ": '- pictures: bear-photos', and below it 'category: teddy bear' and 'token: <bear>'"
    entries = listing_of(path, "subjects", form=form)
    return [
        SubjectOptions.from_entry(entry, folder=path.parent, place=f"Entry {number} of {path}")
        for number, entry in enumerate(entries, 1)
    ]


def listing_of(file: Path, what: str, *, form: str) -> list[Any]:
    """Return the entries of a YAML or JSON file that a user writes.

    Args:
        file: The file.
        what: What it lists, such as "jobs".
        form: How an entry begins, for the message that there is none.

    Raises:
        OptionError: The file is missing, cannot be parsed, or holds no list.
    """
    from moongate.texts import read_listing

    if not file.is_file():
        raise OptionError(f"There is no file of {what} {file}. Check the path.")
    try:
        entries = read_listing(file)
    except ValueError as error:
        raise OptionError(f"{file} cannot be read: {' '.join(str(error).split())}. Correct it there.") from error
    if not isinstance(entries, list) or not entries:
        raise OptionError(f"{file} holds no list of {what}. Begin each with a dash{form}.")
    return entries
