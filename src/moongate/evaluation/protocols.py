"""Published benchmarks: which prompts and which target pictures they prescribe for a concept.

The files of a benchmark are read from a folder that the user has; none of them comes with Moongate.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moongate.errors import OptionError, listed
from moongate.evaluation.prompts import PLACE, prompt_lines
from moongate.files import exists
from moongate.texts import parse_json, read_text

__all__ = ["PROTOCOLS", "Protocol", "check_protocol", "read_protocol"]

PROTOCOLS = ("customconcept101",)
LISTINGS = ("dataset.json", "dataset_multiconcept.json")
"""Files of CustomConcept101 that list single subjects, and pairs."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a benchmark prescribes for a concept."""

    prompts: tuple[str, ...]
    """Prompts with `{}` (or `{0}` and `{1}`) for the subjects of the concept, in its order."""
    pictures: tuple[Path, ...] = ()
    """Folder of the training pictures of each subject, which the benchmark compares with. Empty when several entries of
    the benchmark fit. Pictures are distributed separately, so that a folder may be missing."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One subject of CustomConcept101, or two in one picture."""

    name: str
    categories: tuple[str, ...]
    pictures: tuple[Path, ...]
    prompts: Path


def check_protocol(choice: str) -> None:
    """Check that a choice names a benchmark and a folder, before a concept is read. Raises OptionError."""
    _split(choice)


def read_protocol(choice: str, categories: Sequence[str]) -> Protocol:
    """Return what a benchmark prescribes for a concept of these categories.

    CustomConcept101 (Kumari et al. 2023) has twenty prompts for each category and twelve for each pair, and target
    pictures of 101 subjects. Several of its subjects share a category and its prompts.

    Args:
        choice: `customconcept101:FOLDER`, where FOLDER is `customconcept101/` of the original repository. A name after
            the folder, as in `customconcept101:FOLDER#pet_cat5` or `#pet_cat5+pet_dog3`, chooses one entry.
        categories: The category of each subject of the concept, one or two.

    Raises:
        OptionError: The benchmark is unknown, has no entry for the categories, or lacks a file.
    """
    folder, wanted = _split(choice)
    if len(categories) not in (1, 2):
        raise OptionError(f"CustomConcept101 has prompts for one subject or two, not for {len(categories)}.")
    entries = _entries(Path(folder), LISTINGS[len(categories) - 1])
    fitting = [entry for entry in entries if sorted(entry.categories) == sorted(categories)]
    if not fitting:
        known = sorted({" and ".join(entry.categories) for entry in entries})
        raise OptionError(f"{folder} has no entry for {' and '.join(categories)}. It has: {listed(known)}.")
    names = [entry.name for entry in fitting]
    if wanted:
        fitting = [entry for entry in fitting if entry.name == wanted]
    if len({entry.prompts for entry in fitting}) != 1:
        problem = f"no entry {wanted!r}" if wanted else "several sets of prompts"
        raise OptionError(
            f"{folder} has {problem} for {' and '.join(categories)}. Choose an entry, such as "
            f"{PROTOCOLS[0]}:{folder}#{names[0]}. Known: {listed(names)}."
        )
    return _in_order(fitting, categories)


def _split(choice: str) -> tuple[str, str]:
    """Return the folder of a benchmark and the name of the entry that is wanted, or ""."""
    name, _, place = choice.partition(":")
    if name not in PROTOCOLS or not place:
        raise OptionError(f"Unknown protocol {choice!r}. Write {PROTOCOLS[0]}:FOLDER with the folder of its files.")
    folder, _, wanted = place.partition("#")
    if not exists(Path(folder)):
        raise OptionError(f"There is no folder {folder} of {name}. Check the path.")
    return folder, wanted


def _in_order(entries: Sequence[_Entry], categories: Sequence[str]) -> Protocol:
    """Return the prompts of entries that share them, and the pictures of a single entry, in the concept's order."""
    entry = entries[0]
    if not entry.prompts.is_file():
        raise OptionError(f"The file of prompts {entry.prompts} is missing. Copy it from the original repository.")
    prompts = prompt_lines(entry.prompts)
    if len(categories) == 2:
        prompts = [_completed(prompt) for prompt in prompts]
    pictures = entry.pictures if len(entries) == 1 else ()
    if list(entry.categories) != list(categories):
        prompts = [PLACE.sub(lambda place: "{0}" if place[1] == "1" else "{1}", prompt) for prompt in prompts]
        pictures = pictures[::-1]
    return Protocol(prompts=tuple(prompts), pictures=pictures)


def _entries(folder: Path, listing: str) -> list[_Entry]:
    """Read a listing of CustomConcept101. Raises OptionError when it is missing or has another layout."""
    file = folder / listing
    if not file.is_file():
        raise OptionError(f"{folder} holds no {listing}. Give the folder customconcept101 of the original repository.")
    try:
        rows = parse_json(read_text(file))
        return [_entry(folder, row if isinstance(row, list) else [row]) for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise OptionError(f"{file} does not have the layout of CustomConcept101 ({error!r}).") from error


def _entry(folder: Path, row: Sequence[Any]) -> _Entry:
    """Read one subject, or a list of two subjects that ends with the name of their prompts."""
    subjects = [part for part in row if "class_prompt" in part]
    pictures = tuple(folder / subject["instance_data_dir"] for subject in subjects)
    return _Entry(
        name="+".join(path.name for path in pictures),
        categories=tuple(str(subject["class_prompt"]) for subject in subjects),
        pictures=pictures,
        prompts=folder / (row[-1]["prompt_filename_compose"] if len(subjects) > 1 else subjects[0]["prompt_filename"]),
    )


def _completed(prompt: str) -> str:
    """Return the prompt of a pair with both places: one prompt of the benchmark names the first subject twice."""
    head, place, tail = prompt.rpartition("{0}")
    return f"{head}{{1}}{tail}" if place and "{0}" in head and not re.search(r"\{1\}", prompt) else prompt
