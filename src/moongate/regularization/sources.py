"""Captioned pictures where users have them: folders, listings, WebDataset shards, Parquet, and the hub's data sets.

Records are read one after the other, so that any number of them fits into memory. A record does not hold its picture.
One line of text says where the picture is, and `reading.read_bytes` reads it.
"""

import io
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from moongate.data.caption_files import CAPTION_KEYS, PICTURE_KEYS, CaptionFiles, first_text, listing_rows
from moongate.data.folders import SUFFIXES
from moongate.errors import CollectionError, MissingLibrary, PictureError
from moongate.extras import library
from moongate.files import digest, leads_out, read_regular
from moongate.limits import MAX_CAPTION_CHARACTERS, MAX_DOWNLOAD_BYTES, MAX_LINE_CHARACTERS, MAX_MEMBERS
from moongate.regularization.reading import check_row_group
from moongate.texts import is_encodable, parse_json

__all__ = ["Record", "Skipped", "begun", "read_captions", "read_source"]

_T = TypeVar("_T")

LICENSE_KEYS = ("license", "licence")
UNREADABLE = (OSError, ValueError, OverflowError, TypeError, LookupError, AttributeError, RuntimeError)
"""What reading a damaged shard or Parquet file raises, in addition to errors of tarfile and of Arrow."""
TEXT_SUFFIXES = ("txt", "caption", "text")
NAMES_KEPT = 200
"""Number of skipped records that are remembered by name; the others are only counted."""
NAMES_SHOWN = 20
"""Number of skipped records that a note lists by name."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A caption and where its picture is."""

    caption: str
    picture: str
    """Where the picture is; see `reading.read_bytes`."""
    key: str
    """Digest of the bytes or of the address: two records of one picture have the same key."""
    license: str = ""
    data: bytes | None = None
    """The picture itself, if it cannot be found again by `picture`."""


@dataclass(kw_only=True)
class Skipped:
    """Records that could not be used."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of records by reason."""
    names: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the first ones."""

    def add(self, name: str, reason: str) -> None:
        """Note that `name` was skipped."""
        self.counts[reason] += 1
        if len(self.names) < NAMES_KEPT:
            self.names.append((name, reason))

    @property
    def with_example(self) -> str:
        """The number for each reason, and the first one by name."""
        return f"{self}, such as {self.names[0][0]}"

    @property
    def notes(self) -> list[str]:
        """Lines for people: the number for each reason, and the first ones by name. Empty if nothing was skipped."""
        if not self.counts:
            return []
        lines = [f"Skipped: {self}.", *(f"  {name}" for name, _ in self.names[:NAMES_SHOWN])]
        rest = self.counts.total() - NAMES_SHOWN
        return [*lines, f"  and {rest} more"] if rest > 0 else lines

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())


def begun(records: Iterable[_T], skipped: Skipped) -> Iterator[_T]:
    """Return the records, or captions, of a source of which the first is read now, before a model is loaded for them.

    Args:
        records: What `read_source` or `read_captions` returns.
        skipped: What they have skipped.

    Raises:
        CollectionError: There is none, or the source cannot be read.
    """
    rest = iter(records)
    for first in rest:
        return chain([first], rest)
    reason = skipped.with_example if skipped.counts else "it is empty"
    raise CollectionError(f"Nothing of the source can be used: {reason}. Check the source.")


def read_source(source: str, skipped: Skipped) -> Iterator[Record]:
    """Yield the records of a source, one after the other.

    Args:
        source: A folder that has, in itself or in folders below, `.tar` shards, `.parquet` files, or pictures with
            captions as `data.caption_files` reads them; a `metadata.jsonl` or `metadata.csv` (file_name or url,
            caption, license) may also list addresses. Or one such file; or the id of a data set of the hub.
        skipped: Gets the records that cannot be used.

    Raises:
        CollectionError: The source does not exist or is of another kind.
        MissingLibrary: The source needs a library that is not installed.
    """
    path = Path(source)
    if path.is_dir():
        yield from _read_folder(path, skipped)
    elif path.is_file():
        yield from _read_file(path, skipped)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not path.suffix:
        yield from _read_hub(source, skipped)
    else:
        raise CollectionError(f"There is no file or folder {source}. Check the path.")


def read_captions(source: str, skipped: Skipped) -> Iterator[str]:
    """Yield the captions of a source without the pictures, or the lines of a text file in UTF-8."""
    if source.endswith(".txt") and Path(source).is_file():
        try:
            with Path(source).open(encoding="utf-8-sig") as lines:
                while line := lines.readline(MAX_LINE_CHARACTERS):
                    if caption := line.strip()[:MAX_CAPTION_CHARACTERS]:
                        yield caption
        except UnicodeDecodeError as error:
            raise CollectionError(f"{source} is not text in UTF-8 ({error.reason}). Save it as UTF-8.") from error
    else:
        yield from (record.caption for record in read_source(source, skipped))


def _read_folder(folder: Path, skipped: Skipped) -> Iterator[Record]:
    files = CaptionFiles()
    if not files.contents(folder).listings:
        for suffix in ("*.tar", "*.parquet"):
            if packed := sorted(path for path in folder.rglob(suffix) if path.is_file() and not leads_out(path)):
                return _read_files(packed, skipped)
    return _read_pictures(folder, files, skipped)


def _read_files(files: Sequence[Path], skipped: Skipped) -> Iterator[Record]:
    for file in files:
        try:
            yield from _read_file(file, skipped)
        except CollectionError as error:
            skipped.add(str(error), "files without captions or pictures")


def _read_file(file: Path, skipped: Skipped) -> Iterator[Record]:
    if file.suffix == ".tar":
        return _read_shard(file, skipped)
    if file.suffix == ".parquet":
        return _read_parquet(file, skipped)
    if file.suffix.lower() in (".jsonl", ".csv"):
        return _read_one_listing(file, skipped)
    raise CollectionError(
        f"{file} holds no captioned pictures that can be read. Give a folder, a .jsonl or .csv listing, a .tar shard, "
        "or a .parquet file."
    )


def _read_pictures(folder: Path, files: CaptionFiles, skipped: Skipped) -> Iterator[Record]:
    """Read the pictures of a folder and the folders below, with the captions beside them, and what listings list."""
    empty = True
    seen: set[Path] = set()
    below = sorted(path for path in folder.rglob("*") if path.is_dir() and not leads_out(path))
    for inside in (folder, *below):
        here = files.contents(inside)
        empty = empty and not (here.photos or here.listings)
        for listing in here.listings:
            yield from _read_listing(listing, files, skipped, seen)
        for text in files.orphans(inside):
            skipped.add(str(text), "captions without a picture")
        for path in here.outside:
            skipped.add(str(path), "links that lead out of their folder")
        for path in here.companions:
            skipped.add(str(path), "control pictures of other trainers")
        for path in here.unread:
            skipped.add(str(path), "files of unknown kind")
        for path in here.photos:
            if path.absolute() not in seen:
                yield from _read_picture(path, files, skipped)
    if empty:
        raise CollectionError(
            f"The folder {folder} has no pictures, and no metadata.jsonl, metadata.csv, .tar or .parquet. Check it."
        )
    files.warn_of_conflicts()


def _read_one_listing(file: Path, skipped: Skipped) -> Iterator[Record]:
    files = CaptionFiles()
    yield from _read_listing(file, files, skipped, set())
    files.warn_of_conflicts()


def _read_listing(file: Path, files: CaptionFiles, skipped: Skipped, seen: set[Path]) -> Iterator[Record]:
    """Read the rows of a listing, and add the files that they name to `seen`; those of an earlier listing are known."""
    earlier = frozenset(seen)
    try:
        for line, row in listing_rows(file, errors="replace"):
            if row is None:
                reason = "JSON objects" if file.suffix.lower() == ".jsonl" else "rows of the table's columns"
                skipped.add(f"{file}, line {line}", f"lines that are not {reason}")
                continue
            name, caption, license = (first_text(row, keys) for keys in (PICTURE_KEYS, CAPTION_KEYS, LICENSE_KEYS))
            if not name and row:
                skipped.add(caption or f"a row of {file}", "rows without file_name or url")
            elif re.match(r"https?://", name):
                yield from _checked(caption, name, license, None, skipped)
            elif name:
                path = files.picture(name, file.parent)
                if path is None:
                    skipped.add(name, "captions without a picture")
                elif path.absolute() not in earlier:
                    seen.add(path.absolute())
                    yield from _read_picture(path, files, skipped, rows=((file.name, caption),), license=license)
    except (PictureError, OSError) as error:
        skipped.add(str(error), "broken listings, read up to the error")


def _read_picture(
    path: Path,
    files: CaptionFiles,
    skipped: Skipped,
    *,
    rows: Sequence[tuple[str, str]] = (),
    license: str = "",
) -> Iterator[Record]:
    """Read a picture with the caption beside it, or else that of its rows in listings."""
    try:
        data = read_regular(path, at_most=MAX_DOWNLOAD_BYTES)
        yield from _checked(files.caption(path, rows), str(path.absolute()), license, data, skipped)
    except (OSError, ValueError) as error:
        skipped.add(f"{path} ({error})", "pictures or captions that cannot be read")


def _read_shard(file: Path, skipped: Skipped) -> Iterator[Record]:
    """Read a WebDataset shard: consecutive files whose names agree up to the first dot are one record."""
    parts: dict[str, tuple[int, bytes]] = {}
    name = ""
    try:
        with _Bounded(file) as content, tarfile.open(fileobj=content, mode="r:") as shard:
            for number, member in enumerate(shard):
                shard.members = []  # type: ignore[attr-defined]  # otherwise all of them stay in memory
                if number == MAX_MEMBERS or shard.offset < member.offset_data:
                    raise tarfile.ReadError("it has too many members, or one that ends before it begins")
                if not member.isfile() or member.issparse() or not 0 <= member.size <= MAX_DOWNLOAD_BYTES:
                    if not member.isdir():
                        skipped.add(f"{file}: {member.name}", "members that are no plain files or too large")
                    continue
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{key}"
                if key != name:
                    yield from _shard_record(file, name, parts, skipped)
                    name, parts = key, {}
                part = shard.extractfile(member)
                parts[suffix.lower()] = (member.offset_data, part.read() if part else b"")
            _check_end(file, shard.offset)
    except (tarfile.TarError, RecursionError, *UNREADABLE, struct.error) as error:
        skipped.add(f"{file} ({error})", "broken shards, read up to the error")
    yield from _shard_record(file, name, parts, skipped)


class _Bounded(io.FileIO):
    """A file that is read in parts of a known size: the header of a member may ask for any number of bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_DOWNLOAD_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


def _check_end(file: Path, offset: int) -> None:
    """Raise ReadError unless a shard ends at `offset`: tarfile takes a broken header for the end of the file."""
    with file.open("rb") as content:
        content.seek(offset)
        if content.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {offset}")


def _shard_record(file: Path, name: str, parts: Mapping[str, tuple[int, bytes]], skipped: Skipped) -> Iterator[Record]:
    if not parts:
        return
    try:
        facts = parse_json(parts["json"][1]) if "json" in parts else {}
    except ValueError:
        facts = {}
    facts = facts if isinstance(facts, dict) else {}
    text = next(
        (parts[suffix][1].decode("utf-8-sig", errors="replace") for suffix in TEXT_SUFFIXES if suffix in parts), ""
    )
    caption = text or first_text(facts, CAPTION_KEYS)
    picture = next((parts[suffix] for suffix in parts if f".{suffix}" in SUFFIXES), None)
    if picture is None:
        skipped.add(f"{file}: {name.lstrip('/')}", "captions without a picture")
        return
    offset, content = picture
    where = f"{file.absolute()}#{offset}+{len(content)}"
    yield from _checked(caption, where, first_text(facts, LICENSE_KEYS), content, skipped)


def _read_parquet(file: Path, skipped: Skipped) -> Iterator[Record]:
    parquet, errors = library("pyarrow.parquet"), library("pyarrow").lib.ArrowException
    try:
        table = parquet.ParquetFile(file)
    except (errors, *UNREADABLE) as error:
        skipped.add(f"{file} ({error})", "broken Parquet files")
        return
    by_lower = {name.lower(): name for name in table.schema_arrow.names}
    pictures, captions, licenses = (
        [by_lower[key] for key in keys if key in by_lower] for keys in (PICTURE_KEYS, CAPTION_KEYS, LICENSE_KEYS)
    )
    if not (captions and pictures):
        raise CollectionError(
            f"{file} has the columns {', '.join(by_lower.values())}. It needs a caption (caption or text) and a "
            "picture (url or image)."
        )
    try:
        for index, row in _parquet_rows(file, table, [*pictures, *captions[:1], *licenses[:1]], skipped):
            if row is None:
                skipped.add(f"{file}, row {index + 1}", "rows with values that cannot be read")
                continue
            column, value = _first_picture((name, _unpacked(row[name])) for name in pictures)
            if not value:
                skipped.add(f"{file}, row {index + 1}", "captions without a picture")
                continue
            where = f"{file.absolute()}#{column}:{index}"
            picture, data = (value, None) if isinstance(value, str) else (where, value)
            caption, license = (first_text(row, keys) for keys in (CAPTION_KEYS, LICENSE_KEYS))
            yield from _checked(caption, picture, license, data, skipped)
    except (errors, *UNREADABLE) as error:
        skipped.add(f"{file} ({error})", "broken Parquet files")


def _parquet_rows(
    file: Path, table: Any, columns: Sequence[str], skipped: Skipped
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield rows by number; None for one whose values Python cannot hold, such as a date in the year 20,000.

    One row is unpacked at a time, because a text that is stored once may be the value of all of them.
    """
    first = 0
    for group in range(table.metadata.num_row_groups):
        try:
            check_row_group(table.metadata, group, columns)
        except ValueError as error:
            skipped.add(f"{file} ({error})", "row groups that are too large")
        else:
            for number, batch in enumerate(table.iter_batches(batch_size=1, row_groups=[group], columns=columns)):
                try:
                    yield first + number, {name: batch.column(name)[0].as_py() for name in columns}
                except (library("pyarrow").lib.ArrowException, *UNREADABLE):
                    yield first + number, None
        first += table.metadata.row_group(group).num_rows


def _unpacked(value: Any) -> Any:
    """Return the bytes or the path of a picture that is stored as the hub stores it, and any other value as it is."""
    return (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value


def _first_picture(values: Iterable[tuple[str, Any]]) -> tuple[str, str | bytes]:
    """Return the first column with bytes or an address, and that value; empty ones if there is none.

    A file name or path is passed over: the file is not here, or it is another one, of this machine.
    """
    for column, value in values:
        if (isinstance(value, bytes) and value) or (isinstance(value, str) and re.match(r"https?://", value)):
            return column, value
    return "", ""


def _read_hub(name: str, skipped: Skipped) -> Iterator[Record]:
    """Stream the training split of a data set of the hub; pictures are kept as the bytes they are stored in."""
    try:
        datasets = library("datasets")
    except MissingLibrary as error:
        raise MissingLibrary(f"There is no folder {name}, so it is read as a data set of the hub. {error}") from error
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        for column in PICTURE_KEYS:
            if isinstance((rows.features or {}).get(column), datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        for index, row in enumerate(rows):
            _, value = _first_picture((key, _downloaded(row.get(key))) for key in PICTURE_KEYS)
            where, data = (value, None) if isinstance(value, str) else (f"hub:{name}#{index}", value)
            if not value:
                skipped.add(f"hub:{name}#{index}", "captions without a picture")
                continue
            for record in _checked(first_text(row, CAPTION_KEYS), where, first_text(row, LICENSE_KEYS), data, skipped):
                yield Record(**{**vars(record), "data": data})
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise CollectionError(
            f"There is no folder {name}, and no data set of the hub of that name can be read "
            f"({type(error).__name__}). Check the path, or the connection to the hub."
        ) from error


def _downloaded(value: Any) -> Any:
    """Return the bytes of a picture that is stored as the hub stores it, and any other value as it is."""
    return (value.get("bytes") or _opened(value.get("path"))) if isinstance(value, dict) else value


def _opened(path: str | None) -> bytes | None:
    """Return the bytes of a file of the hub, or of a file in an archive there; None when it cannot be read."""
    try:
        with library("fsspec").open(path or "", "rb") as file:
            content: bytes = file.read(MAX_DOWNLOAD_BYTES + 1)
            return content if len(content) <= MAX_DOWNLOAD_BYTES else None
    except (OSError, ValueError):
        return None


def _checked(caption: str, picture: str, license: str, data: bytes | None, skipped: Skipped) -> Iterator[Record]:
    """Yield the record unless its caption or picture is empty, or one of its texts cannot be used."""
    if len(caption) > MAX_CAPTION_CHARACTERS or len(picture) > MAX_CAPTION_CHARACTERS:
        skipped.add(picture[:80], f"captions of more than {MAX_CAPTION_CHARACTERS} characters")
        return
    if not is_encodable(f"{caption}{picture}{license}"):
        skipped.add(repr(picture), "texts that UTF-8 cannot hold")
        return
    caption = " ".join(caption.split())
    if not caption:
        skipped.add(picture, "pictures without a caption")
    elif data == b"":
        skipped.add(picture, "empty pictures")
    else:
        key = digest(picture if data is None else data, length=24)
        yield Record(caption=caption, picture=picture, key=key, license=license)
