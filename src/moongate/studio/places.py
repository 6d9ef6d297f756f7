"""The folders of the studio, and the guard that no file outside of them is read or written."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from moongate.errors import OptionError
from moongate.files import check_folder, is_file

__all__ = ["CONCEPT", "Places", "PICTURES"]

CONCEPT = ".safetensors"
"""Ending of concept files."""
PICTURES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
"""Endings of files that a browser may show, with their types; all others it may only download."""
DEPTH = 3
"""Run folders are looked for this many folders deep."""
FOLDERS = ("concepts", "photos", "gallery", "studies", "trash", "commands", "previews", "exports")


@dataclass(frozen=True, kw_only=True)
class Places:
    """The folder in which the studio works, and others whose trainings and concepts it shows."""

    root: Path
    watched: tuple[Path, ...] = ()

    @classmethod
    def open(cls, root: Path, watched: tuple[Path, ...] = ()) -> Self:
        """Create what is missing of the folder.

        Raises:
            OptionError: The folder cannot be written, or one to watch does not exist.
        """
        if missing := [folder for folder in watched if not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK))]:
            raise OptionError(f"There is no folder {missing[0]} that you may read, to watch it. Check the path.")
        check_folder(root)
        for name in FOLDERS:
            check_folder(root / name)
        places = cls(root=root.resolve(), watched=tuple(folder.resolve() for folder in watched))
        for name in FOLDERS:
            (places.root / name).mkdir(parents=True, exist_ok=True)
        return places

    @property
    def concepts(self) -> Path:
        """Concepts and their run folders; `moongate fleet --out` writes here."""
        return self.root / "concepts"

    @property
    def fleet(self) -> Path:
        """The folder of the fleet's jobs (`moongate.fleet.Queue`)."""
        return self.concepts / "jobs"

    @property
    def photos(self) -> Path:
        """A folder of photos with captions and masks for each subject that is taught here."""
        return self.root / "photos"

    @property
    def gallery(self) -> Path:
        """Pictures that were drawn."""
        return self.root / "gallery"

    @property
    def studies(self) -> Path:
        """Comparisons for people to judge, and their answers."""
        return self.root / "studies"

    @property
    def trash(self) -> Path:
        """What was deleted."""
        return self.root / "trash"

    @property
    def commands(self) -> Path:
        """What commands have been started, and what they printed."""
        return self.root / "commands"

    @property
    def previews(self) -> Path:
        """Pictures that can be made again, such as photos as a model sees them."""
        return self.root / "previews"

    @property
    def exports(self) -> Path:
        """Concepts in other programs' formats."""
        return self.root / "exports"

    @property
    def chosen(self) -> tuple[Path, ...]:
        """All folders that may be read."""
        return (self.root, *self.watched)

    def inside(self, path: str | os.PathLike[str], *, to_write: bool = False) -> Path:
        """Return a path with all links followed, if it is in a chosen folder. Relative paths begin at the root.

        Args:
            path: The path, perhaps from a browser.
            to_write: Whether something will be written there: only below the root.

        Raises:
            OptionError: The path leads out of the folders.
        """
        try:
            found = Path(os.path.realpath(self.root / path))
        except ValueError as error:  # a null character
            raise OptionError(f"{str(path)!r} is not a path.") from error
        allowed = (self.root,) if to_write else self.chosen
        if not any(found.is_relative_to(folder) for folder in allowed):
            named = " or ".join(map(str, allowed))
            raise OptionError(f"{path} is not in {named}. Start the studio with --folder or --watch for other places.")
        return found

    def holds(self, path: Path) -> bool:
        """Return whether a path is in a chosen folder when all links are followed."""
        with contextlib.suppress(OptionError):
            return bool(self.inside(path))
        return False

    def address(self, path: Path) -> str:
        """Return the address at which a browser gets a file; it changes when the file does.

        Raises:
            OptionError: The file leads out of the folders.
        """
        found = self.inside(path)
        number, folder = next((n, each) for n, each in enumerate(self.chosen) if found.is_relative_to(each))
        version = found.stat().st_mtime_ns if found.exists() else 0
        return f"/files/{number}/{quote(found.relative_to(folder).as_posix())}?{version:x}"

    def located(self, number: int, path: str) -> Path:
        """Return the file of an address, without its beginning and version.

        Raises:
            OptionError: There is no such file.
        """
        if not 0 <= number < len(self.chosen):
            raise OptionError(f"There is no folder {number}.")
        found = self.inside(self.chosen[number] / path)
        if not is_file(found) or any(part.startswith(".") for part in found.relative_to(self.chosen[number]).parts):
            raise OptionError(f"There is no file {path}.")
        return found

    def runs(self) -> list[Path]:
        """Return all run folders, those that changed last first."""
        return sorted(set(self._found("config.json")), key=lambda run: -_changed(run / "log.jsonl"))

    def concept_files(self) -> list[Path]:
        """Return the concept files that lie in the chosen folders or in `concepts`, the newest first."""
        folders = dict.fromkeys((self.concepts, *self.chosen))
        files = [file for folder in folders for file in folder.glob(f"*{CONCEPT}") if not file.name.startswith(".")]
        return sorted(files, key=lambda file: -_changed(file))

    def _found(self, name: str) -> Iterator[Path]:
        unseen = (self.trash, self.gallery, self.studies, self.photos, self.commands, self.previews, self.exports)
        for folder in self.chosen:
            for depth in range(DEPTH):
                for file in folder.glob("*/" * depth + name):
                    is_hidden = any(place in file.parents for place in unseen)
                    if not is_hidden and (file.parent / "log.jsonl").exists():
                        yield file.parent


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # it has just been moved
        return 0
