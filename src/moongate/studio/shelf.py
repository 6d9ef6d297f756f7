"""The concepts of the studio as cards, and what can be done with their files: rename, delete, restore.

A concept goes together with its run folder. Deleted ones lie in a folder of the trash with a note of where they came
from; the note is written first, so that nothing is lost if the program is stopped in between.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from moongate.errors import MoongateError, OptionError
from moongate.files import file_name, free_path, is_held, write_atomically
from moongate.run_page import Album
from moongate.studio.pictures import holds_words, pictures
from moongate.studio.places import CONCEPT, Places
from moongate.summary import Summary, read_summary
from moongate.texts import parse_json, read_text

__all__ = ["Card", "Deleted", "cards", "delete", "deleted", "free_name", "rename", "restore", "run_of"]

NOTE = "deleted.json"
OTHER_FORMAT = "This file is not one of Moongate's own, or it is damaged. Import it to use it."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the studio shows of a concept file."""

    file: Path
    is_own: bool
    """Whether it lies in the studio's folder and may be changed."""
    bytes: int
    changed: float
    """Time in seconds since 1970."""
    words: tuple[str, ...] = ()
    """The words of each subject in prompts, such as "<bear> teddy bear"."""
    model: str = ""
    method: str = ""
    hash: str = ""
    steps: int | None = None
    thumbnail: Path | None = None
    problem: str = ""
    """Why the file cannot be used; empty if it can."""

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.stem

    @property
    def title(self) -> str:
        """The words of all subjects, or the file's name where there are none."""
        return ", ".join(self.words) or self.name

    def matches(self, query: str) -> bool:
        """Return whether all words of a search occur in what the card shows."""
        return holds_words((self.name, *self.words, self.model, self.method, self.hash), query)


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """A concept in the trash."""

    folder: Path
    origin: Path
    """Where its file was."""
    time: float


def cards(places: Places) -> list[Card]:
    """Return a card for each concept file, the newest first."""
    drawn = _newest_by_concept(places)
    found = []
    for file in places.concept_files():
        with contextlib.suppress(OSError):  # it has just been moved
            found.append(_card(places, file, drawn))
    return found


def free_name(places: Places, name: str) -> Path:
    """Return the file of a new concept of this name.

    Raises:
        OptionError: The name is empty or taken.
    """
    return _checked_free(_named(places.concepts, name))


def run_of(file: Path) -> Path:
    """Return the run folder of a concept file, which may not exist."""
    return file.with_suffix(".run")


def rename(places: Places, file: Path, name: str) -> Path:
    """Rename a concept file with its run folder, and return its new path.

    Raises:
        OptionError: The name is empty or taken, or the concept is still being trained or not in the studio's folder.
    """
    file = _own(places, file)
    new = _named(file.parent, name)
    if new == file:
        return file
    _checked_free(new)
    os.link(file, new)  # unlike a renaming, it never replaces a file that another process has just written
    file.unlink()
    if run_of(file).exists():
        run_of(file).rename(run_of(new))
    return new


def delete(places: Places, file: Path) -> Deleted:
    """Move a concept file with its run folder to the trash.

    Raises:
        OptionError: The concept is still being trained, or it is not in the studio's folder.
    """
    file = _own(places, file)
    folder, now = free_path(places.trash / file.stem), time.time()
    note = {"origin": file.relative_to(places.root).as_posix(), "time": now}
    write_atomically(folder / NOTE, json.dumps(note).encode())
    for path in (run_of(file), file):
        if path.exists():
            path.rename(folder / path.name)
    return Deleted(folder=folder, origin=file, time=now)


def deleted(places: Places) -> list[Deleted]:
    """Return the concepts in the trash, those deleted last first."""
    found = []
    for note in places.trash.glob(f"*/{NOTE}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, MoongateError):
            facts = parse_json(read_text(note))
            origin = places.inside(facts["origin"], to_write=True)
            found.append(Deleted(folder=note.parent, origin=origin, time=float(facts["time"])))
    return sorted(found, key=lambda each: -each.time)


def restore(places: Places, folder: Path) -> Path:
    """Move a concept out of the trash to where it was, under a free name, and return its path.

    Raises:
        OptionError: The folder is not one of the trash, or holds no concept.
    """
    one = next((each for each in deleted(places) if each.folder == folder), None)
    if one is None:
        raise OptionError(f"{folder.name} is not in the trash anymore.")
    new, number = one.origin, 2
    while new.exists() or run_of(new).exists():
        new, number = one.origin.with_name(f"{one.origin.stem}-{number}{CONCEPT}"), number + 1
    new.parent.mkdir(parents=True, exist_ok=True)
    for path, target in ((folder / one.origin.name, new), (folder / run_of(one.origin).name, run_of(new))):
        if path.exists():
            path.rename(target)
    (folder / NOTE).unlink()
    with contextlib.suppress(OSError):  # something else was put into it
        folder.rmdir()
    return new


def _named(folder: Path, name: str) -> Path:
    """Return the concept file of a name that somebody has typed. Raises OptionError for an empty one."""
    if not name.strip():
        raise OptionError("The name is empty. Give the concept a name, such as bear.")
    return folder / f"{file_name(name)}{CONCEPT}"


def _checked_free(file: Path) -> Path:
    """Return the file. Raises OptionError if it or its run folder is there."""
    if file.exists() or run_of(file).exists():
        raise OptionError(f"There is already a concept or a training called {file.stem!r}. Choose another name.")
    return file


def _own(places: Places, file: Path) -> Path:
    """Return the path of a concept file that may be changed."""
    found = places.inside(file, to_write=True)
    if found.suffix != CONCEPT or not found.is_file() or found.is_relative_to(places.trash):
        raise OptionError(f"{found.name} is not a concept file, or it has been moved.")
    if is_held(run_of(found)):
        raise OptionError(f"{found.stem} is being trained. Wait until it has finished, or cancel the training.")
    return found


def _card(places: Places, file: Path, drawn: Mapping[str, Path]) -> Card:
    status = file.stat()
    summary = _summary(file, status.st_mtime_ns, status.st_size)
    is_own = file.is_relative_to(places.root)
    if summary is None:
        size, changed = status.st_size, status.st_mtime
        return Card(file=file, is_own=is_own, bytes=size, changed=changed, problem=OTHER_FORMAT)
    facts = summary.facts
    steps = facts["record"].get("steps")
    return Card(
        file=file,
        is_own=is_own,
        bytes=status.st_size,
        changed=status.st_mtime,
        words=tuple(_words(subject) for subject in facts["subjects"]),
        model=str(facts["base"]),
        method=str(facts["method"]),
        hash=summary.hash,
        steps=steps if isinstance(steps, int) else None,
        thumbnail=drawn.get(summary.hash) or _of_run(run_of(file)),
    )


@lru_cache(maxsize=4096)
def _summary(file: Path, _changed_ns: int, _bytes: int) -> Summary | None:
    try:
        return read_summary(file)
    except MoongateError:
        return None


def _words(subject: Mapping[str, object]) -> str:
    return " ".join(str(part) for part in (subject.get("token"), subject.get("category")) if part)


def _newest_by_concept(places: Places) -> dict[str, Path]:
    """Return the newest picture that was drawn with each concept alone, by the concept's hash."""
    newest: dict[str, Path] = {}
    for picture in pictures(places):
        if len(picture.concepts) == 1:
            newest.setdefault(picture.concepts[0].hash, picture.file)
    return newest


def _of_run(folder: Path) -> Path | None:
    """Return the picture of a run that shows best what was taught: its last one, or else a photo."""
    try:
        drawn = [each for part in ("taught", "validation", "comparison") for each in _album(folder, part)]
    except (OSError, ValueError, TypeError):
        return None
    best: Iterable[Path] = (folder / "pictures" / each for each in reversed(drawn))
    return next((file for file in best if file.is_file()), None)


def _album(folder: Path, part: str) -> list[str]:
    found = sorted(Album(folder).drawn(part), key=lambda each: (each.step, -each.place, -each.seed))  # type: ignore[arg-type]
    return [each.file for each in found if part == "taught" or each.step]
