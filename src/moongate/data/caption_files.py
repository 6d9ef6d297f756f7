"""Captions next to pictures: text files, and rows of a folder's listing. The only reader for all of them.

The caption of `photo.jpg` is the text of `photo.txt`, else of `photo.caption`, else its row in `metadata.jsonl` or
`metadata.csv` of its folder (or of the folder above, where the row names both). Names may begin with `./`, have
backslashes, or differ in upper and lower case. Where two of these differ, the first counts and a `MoongateWarning` has
both texts; captions that fit no picture are reported too.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from moongate.data.folders import CAPTION_SUFFIXES, LISTINGS, Contents, contents, fits
from moongate.errors import PictureError, listed, warn
from moongate.limits import MAX_CAPTION_CHARACTERS, MAX_COLUMNS, MAX_LINE_CHARACTERS
from moongate.texts import parse_json, read_text

__all__ = ["CAPTION_KEYS", "PICTURE_KEYS", "CaptionFiles", "first_text", "listing_rows", "read_captions"]

CAPTION_KEYS = ("caption", "text", "prompt", "caption_original")
"""Keys or columns of a listing that hold a caption, by precedence: Moongate and kohya, the hub, DiffSynth, LAION."""
PICTURE_KEYS = ("file_name", "url", "image", "jpg", "png", "webp", "filename", "file", "path", "image_path")
"""Keys or columns of a listing that say where the picture is."""
TABLE_SUFFIX = ".csv"


class CaptionFiles:
    """The caption files of folders; what a folder holds is looked up once."""

    def __init__(self) -> None:
        self._known: dict[Path, Contents] = {}
        self._texts: dict[Path, dict[str, list[Path]]] = {}
        self._stems: dict[Path, set[str]] = {}
        self.conflicts: list[str] = []
        """For each picture with captions that differ: both, and where they are from."""

    def contents(self, folder: Path) -> Contents:
        """Return what lies in a folder."""
        if folder not in self._known:
            self._known[folder] = contents(folder)
            self._stems[folder] = {path.stem for path in self._known[folder].photos}
            texts = self._texts[folder] = {}
            for path in self._known[folder].captions:
                texts.setdefault(path.stem.casefold(), []).append(path)
        return self._known[folder]

    def caption(self, photo: Path, rows: Iterable[tuple[str, str]] = ()) -> str:
        """Return the caption of a photo on one line, or an empty string; note a conflict if two captions differ.

        Args:
            photo: The file.
            rows: The photo's captions in listings, each after the name of its listing.

        Raises:
            PictureError: A text is not in UTF-8, or a caption has more than `MAX_CAPTION_CHARACTERS`.
        """
        texts = [(path.name, _text_of(path)) for path in self._text_files(photo)]
        captions = [(source, " ".join(text.split())) for source, text in (*texts, *rows)]
        captions = [(source, text) for source, text in captions if text]
        for source, text in captions:
            if len(text) > MAX_CAPTION_CHARACTERS:
                raise PictureError(
                    f"The caption of {photo} in {source} has {len(text)} characters; at most {MAX_CAPTION_CHARACTERS} "
                    "are read. Shorten it."
                )
            if text != captions[0][1]:
                first = f"{captions[0][1]!r} in {captions[0][0]}"
                self.conflicts.append(f"{photo.name} has {first}, which counts, and {text!r} in {source}")
        return captions[0][1] if captions else ""

    def orphans(self, folder: Path) -> list[Path]:
        """Return the text files of a folder that fit no photo in it."""
        here = self.contents(folder)
        stems = {photo.stem.casefold() for photo in here.photos}
        return [path for path in here.captions if path.stem.casefold() not in stems]

    def picture(self, name: str, folder: Path) -> Path | None:
        """Return the file that a row of a listing in `folder` names, or None.

        A folder in the name that does not exist (anymore) is left out, so that a listing still fits after its pictures
        were moved.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for path in (folder / name, folder.joinpath(*parts)):
            if parts and _is_file(path):
                return path
        return self.picture_called(name, folder)

    def picture_called(self, name: str, folder: Path) -> Path | None:
        """Return the only picture of a folder whose name ends a path, or None; see `picture`."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        place = folder
        for part in parts[:-1]:
            place = next((path for path in self.contents(place).subfolders if _same(path.name, part)), folder)
            if place == folder:
                break
        photos = self.contents(place).photos if parts else ()
        same = [photo for photo in photos if _same(photo.name, parts[-1])]
        return same[0] if len(same) == 1 else None

    def warn_of_conflicts(self) -> None:
        """Warn of the pictures whose captions differ."""
        if self.conflicts:
            warn(f"Captions differ: {listed(self.conflicts)}. Remove the wrong one.")

    def _text_files(self, photo: Path) -> list[Path]:
        """Return the text files of a photo by precedence."""
        self.contents(photo.parent)
        texts = self._texts[photo.parent].get(photo.stem.casefold(), [])
        own = [path for path in texts if fits(path.stem, photo.stem, self._stems[photo.parent])]
        return sorted(own, key=lambda path: (CAPTION_SUFFIXES.index(path.suffix.lower()), path.stem != photo.stem))


def read_captions(photos: Sequence[Path], folders: Sequence[Contents] = ()) -> list[str]:
    """Return the caption of each photo on one line; an empty string for a photo without one.

    Warns of captions that differ, and of those in `folders` that fit no picture.

    Args:
        photos: The files.
        folders: The folders that were read as a whole; elsewhere there may be files that are not meant.

    Raises:
        PictureError: A text is not in UTF-8, or a listing cannot be read.
    """
    files = CaptionFiles()
    rows: dict[Path, list[tuple[str, str]]] = {}
    lost: list[str] = []
    whole = [folder.folder for folder in folders]
    own = list(dict.fromkeys([*whole, *(photo.parent for photo in photos)]))
    places = [_place(photo) for photo in photos]
    for folder in own:
        for listing in files.contents(folder).listings:
            unknown = _add_rows(listing, files, rows, frozenset(places))
            lost += unknown if folder in whole else []
    for folder in dict.fromkeys(place.parent for place in own):
        if folder not in own:
            _add_rows_from_above(folder, files, rows)
    for folder in whole:
        lost += [path.name for path in files.orphans(folder)]
    captions = [files.caption(photo, rows.get(place, ())) for photo, place in zip(photos, places, strict=True)]
    files.warn_of_conflicts()
    if lost:
        warn(f"Captions that fit no picture: {listed(lost)}. Name each like its picture, or remove it.")
    return captions


def _add_rows(
    listing: Path, files: CaptionFiles, rows: dict[Path, list[tuple[str, str]]], photos: frozenset[Path]
) -> list[str]:
    """Add the captions of a listing to `rows` by picture, and return a phrase for each row that fits none.

    After a folder was copied, absolute names still lead to the earlier one: those mean the photo of the same name here.
    """
    lost, keys, has_captions = [], set(), False
    for line, row in listing_rows(listing):
        name, caption = (first_text(row or {}, kind) for kind in (PICTURE_KEYS, CAPTION_KEYS))
        if row is None or not name or (not caption and _first(row, CAPTION_KEYS) not in (None, [None], [""])):
            raise PictureError(f"Line {line} of {listing} cannot be read. {_remedy(listing)}")
        keys |= {str(key) for key in row}
        has_captions = has_captions or bool(caption)
        picture = files.picture(name, listing.parent)
        if picture and _place(picture) not in photos and Path(name).is_absolute():
            picture = files.picture_called(name, listing.parent) or picture
        if picture is None:
            lost.append(f"{name!r} in {listing.name}")
        else:
            rows.setdefault(_place(picture), []).append((listing.name, caption))
    if keys and not has_captions:
        warn(f"{listing} has no captions; its keys are {', '.join(sorted(keys))}. {_remedy(listing)}")
    return lost


def _add_rows_from_above(folder: Path, files: CaptionFiles, rows: dict[Path, list[tuple[str, str]]]) -> None:
    """Add the captions that listings in a folder above give; of its other rows nothing is demanded."""
    for listing in (folder / name for name in LISTINGS):
        if listing.is_file():
            for _, row in listing_rows(listing, errors="replace"):
                picture = files.picture(first_text(row or {}, PICTURE_KEYS), folder)
                if picture is not None:
                    rows.setdefault(_place(picture), []).append((str(listing), first_text(row or {}, CAPTION_KEYS)))


def listing_rows(listing: Path, *, errors: str = "strict") -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yield the number of each line of a `.jsonl` or `.csv` listing and its row; None for one that is not a row.

    Args:
        listing: The file.
        errors: What becomes of bytes that are not UTF-8: "strict" raises, "replace" replaces them.

    Raises:
        PictureError: The file is not in UTF-8, is broken as a table, or has a line of more than `MAX_LINE_CHARACTERS`.
    """
    try:
        with listing.open(encoding="utf-8-sig", errors=errors, newline="") as lines:
            if listing.suffix.lower() == TABLE_SUFFIX:
                yield from _table_rows(_lines(lines, listing), listing)
            else:
                yield from _json_rows(_lines(lines, listing))
    except UnicodeDecodeError as error:
        raise PictureError(f"The listing {listing} is not in UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise PictureError(f"The listing {listing} is broken ({error}). {_remedy(listing)}") from error


def first_text(row: Mapping[Any, Any], keys: Sequence[str]) -> str:
    """Return the value of the first key that has one, as text; of a list the first entry. Case does not count.

    Empty for what is neither text nor a number, such as captions by language.
    """
    return _as_text(_first(row, keys))


def _as_text(value: Any) -> str:
    value = next(iter(value), None) if isinstance(value, list) else value
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _first(row: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    """Return the value of the first key that has one; None if there is none, or only what stands for nothing (NaN)."""
    lower = {str(key).strip().lower(): value for key, value in row.items()}
    return next((lower[key] for key in keys if lower.get(key) and lower[key] == lower[key]), None)


def _lines(file: TextIO, listing: Path) -> Iterator[str]:
    """Yield the lines of a listing. Raises PictureError for one that is too long, of which no more is read."""
    while line := file.readline(MAX_LINE_CHARACTERS + 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise PictureError(
                f"The listing {listing} has a line of more than {MAX_LINE_CHARACTERS} characters. {_remedy(listing)}"
            )
        yield line


def _table_rows(lines: Iterator[str], listing: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yield the rows of a table; a quotation mark that is never closed would hide all rows behind it in one value."""
    read: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    table = csv.DictReader(remembered())
    columns = [column.strip().lower() for column in table.fieldnames or ()]
    if len(columns) > MAX_COLUMNS:
        raise PictureError(f"The listing {listing} has more than {MAX_COLUMNS} columns. {_remedy(listing)}")
    if twice := [column for column in (*PICTURE_KEYS, *CAPTION_KEYS) if columns.count(column) > 1]:
        raise PictureError(f"The listing {listing} has the column {twice[0]} twice. {_remedy(listing)}")
    read.clear()
    for row in table:
        if sum(line.count('"') for line in read) % 2:
            _check_closed(read)
        read.clear()
        yield table.line_num, None if _has_more_values(row) else row


def _check_closed(lines: Sequence[str]) -> None:
    """Raise csv.Error if a value in the lines of a row begins with a quotation mark and has none at its end."""
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise csv.Error("a quotation mark is not closed") from error


def _has_more_values(row: Mapping[Any, Any]) -> bool:
    """Return whether a row of a table has more values than there are columns: of its caption a part would be lost."""
    return any(value.strip() for value in row.get(None, ()))


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        yield number, row if isinstance(row, dict) else None


def _text_of(path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise PictureError(f"The caption {path} cannot be read: {error}. Save it as a short text in UTF-8.") from error


def _remedy(listing: Path) -> str:
    if listing.suffix.lower() == TABLE_SUFFIX:
        return (
            "Name its columns file_name,caption in the first line, with commas between them, and put a caption that "
            "has commas in quotation marks."
        )
    return 'Write {"file_name": "0.png", "caption": "a dog"}.'


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _place(path: Path) -> Path:
    """Return the absolute path without `..`, by which a photo and a row of a listing are compared."""
    return Path(os.path.normpath(path.absolute()))


def _same(name: str, other: str) -> bool:
    return name.casefold() == other.casefold()
