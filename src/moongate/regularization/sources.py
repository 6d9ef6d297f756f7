"""Captioned pictures where users have them: folders, listings, WebDataset shards, Parquet, and the hub's data sets.

Records are read one after the other, so that any number of them fits into memory. A record says where its picture
lies rather than holding it, as one line of text:

    /data/0001.jpg                   a file
    https://host/0001.jpg            fetched when it is needed
    /data/shard.tar#1536+20480       bytes of a WebDataset shard, from an offset on
    /data/part.parquet#image:17      a row of a column
"""

import csv
import hashlib
import http.client
import json
import re
import string
import tarfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from moongate.data.pictures import caption_beside, find_pictures
from moongate.errors import CollectionError, MissingLibrary, PictureError
from moongate.extras import library

__all__ = ["Record", "Skipped", "read_bytes", "read_captions", "read_source"]

LISTINGS = ("metadata.jsonl", "metadata.csv")
CAPTION_KEYS = ("caption", "text", "caption_original")
PICTURE_KEYS = ("file_name", "url", "image", "jpg", "png", "webp")
LICENSE_KEYS = ("license", "licence")
TEXT_SUFFIXES = ("txt", "caption", "text")
TIMEOUT_S = 10
SLOWEST_S = 60
"""A picture that takes longer to arrive, however steadily, is given up."""
MAX_BYTES = 50_000_000
ROWS_AT_ONCE = 64
LISTED = 200
"""So many skipped records are remembered by name; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A caption, where its picture lies, and a key that two records share when they are the same picture."""

    caption: str
    picture: str
    key: str
    license: str = ""
    data: bytes | None = None
    """The picture itself where it cannot be found again by `picture`."""


@dataclass(kw_only=True)
class Skipped:
    """What could not be used: how many for each reason, and the first ones by name."""

    counts: Counter[str] = field(default_factory=Counter)
    names: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Note that `name` was skipped."""
        self.counts[reason] += 1
        if len(self.names) < LISTED:
            self.names.append((name, reason))

    @property
    def with_example(self) -> str:
        """How many were skipped for each reason, and the first one by name."""
        return f"{self}, such as {self.names[0][0]}"

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())


def read_source(source: str, skipped: Skipped) -> Iterator[Record]:
    """Yield the records of a source; what cannot be used goes into `skipped`.

    A folder holds `metadata.jsonl` or `metadata.csv` (file_name or url, caption, license), or, in it or in folders
    below, `.tar` shards, `.parquet` files, or pictures with a `.txt` beside each; one such file may be given alone.
    Anything else is taken for the id of a data set of the hub. Raises CollectionError when there is nothing of the
    kind.
    """
    path = Path(source)
    if path.is_dir():
        yield from _read_folder(path, skipped)
    elif path.is_file():
        yield from _read_file(path, skipped)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not path.suffix:
        yield from _read_hub(source, skipped)
    else:
        raise CollectionError(f"There is no collection {source}. Check the path.")


def read_captions(source: str, skipped: Skipped) -> Iterator[str]:
    """Yield the captions of a source alone, or the lines of a text file."""
    if source.endswith(".txt") and Path(source).is_file():
        with Path(source).open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())
    else:
        yield from (record.caption for record in read_source(source, skipped))


def read_bytes(picture: str) -> bytes:
    """Return the bytes of the picture that a record points to.

    Raises PictureError when the file is gone, or the address is none or does not answer within ten seconds.
    """
    try:
        if re.match(r"https?://", picture):
            return _fetched(picture)
        if found := re.fullmatch(r"(.*\.tar)#(\d+)\+(\d+)", picture):
            with Path(found[1]).open("rb") as shard:
                shard.seek(int(found[2]))
                return shard.read(int(found[3]))
        if found := re.fullmatch(r"(.*\.parquet)#(.+):(\d+)", picture):
            return _parquet_row(Path(found[1]), found[2], int(found[3]))
        return Path(picture).read_bytes()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise PictureError(f"{picture} cannot be read ({error}).") from error


def _fetched(url: str) -> bytes:
    address = urllib.parse.quote(url, safe=string.punctuation)  # listings hold spaces and letters with accents
    request = urllib.request.Request(address, headers={"User-Agent": "moongate"})
    content, last = bytearray(), time.monotonic() + SLOWEST_S
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        while part := answer.read1(1 << 16):
            content += part
            if len(content) > MAX_BYTES or time.monotonic() > last:
                raise PictureError(f"{url} has more than {MAX_BYTES // 10**6} MB or takes more than {SLOWEST_S} s.")
    return bytes(content)


def _read_folder(folder: Path, skipped: Skipped) -> Iterator[Record]:
    for name in LISTINGS:
        if (folder / name).is_file():
            return _read_file(folder / name, skipped)
    for suffix in ("*.tar", "*.parquet"):
        if files := sorted(folder.rglob(suffix)):
            return _read_files(files, skipped)
    return _read_beside(folder, skipped)


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
    if file.suffix in (".jsonl", ".csv"):
        return _read_listing(file, skipped)
    raise CollectionError(
        f"{file} is no collection. Give a folder, a .jsonl or .csv listing, a .tar shard, or a .parquet file."
    )


def _read_beside(folder: Path, skipped: Skipped) -> Iterator[Record]:
    empty = True
    for inside in (folder, *sorted(path for path in folder.rglob("*") if path.is_dir())):
        paths = find_pictures(inside, strict=False)
        empty = empty and not paths
        captioned = {path.stem for path in paths}
        for text in sorted(inside.glob("*.txt")):
            if text.stem not in captioned:
                skipped.add(str(text), "captions without a picture")
        for path in paths:
            try:
                yield from _checked(caption_beside(path), str(path.absolute()), "", path.read_bytes(), skipped)
            except (OSError, PictureError) as error:
                skipped.add(f"{path} ({error})", "pictures or captions that cannot be read")
    if empty:
        raise CollectionError(
            f"The folder {folder} holds no pictures, and no metadata.jsonl, metadata.csv, .tar or .parquet either."
        )


def _read_listing(file: Path, skipped: Skipped) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = _csv_rows(lines, file, skipped) if file.suffix == ".csv" else _json_rows(lines, file, skipped)
        for row in rows:
            name, caption, license = (_first(row, keys) for keys in (PICTURE_KEYS, CAPTION_KEYS, LICENSE_KEYS))
            if not name:
                skipped.add(caption or f"a row of {file}", "rows without file_name or url")
            elif re.match(r"https?://", name):
                yield from _checked(caption, name, license, None, skipped)
            else:
                path = (file.parent / name).absolute()
                try:
                    content = path.read_bytes()
                except (OSError, ValueError):  # no file, a folder, or no name that a file can have
                    skipped.add(name, "captions without a picture")
                    continue
                yield from _checked(caption, str(path), license, content, skipped)


def _csv_rows(lines: Iterator[str], file: Path, skipped: Skipped) -> Iterator[Mapping[str, Any]]:
    try:
        yield from csv.DictReader(lines)
    except csv.Error as error:
        skipped.add(f"{file} ({error})", "broken listings, read up to where they break")


def _json_rows(lines: Iterator[str], file: Path, skipped: Skipped) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            skipped.add(f"{file}, line {number}", "lines that are no JSON")
        elif row:
            yield row


def _read_shard(file: Path, skipped: Skipped) -> Iterator[Record]:
    """Read a WebDataset shard: files that share a name up to its first dot are one record and lie together."""
    parts: dict[str, tuple[int, bytes]] = {}
    name = ""
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                shard.members = []  # type: ignore[attr-defined]  # else it would remember all of them
                if not member.isfile():
                    continue
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{key}"
                if key != name:
                    yield from _shard_record(file, name, parts, skipped)
                    name, parts = key, {}
                content = shard.extractfile(member)
                parts[suffix.lower()] = (member.offset_data, content.read() if content else b"")
            _check_end(file, shard.offset)
    except (tarfile.TarError, OSError) as error:
        skipped.add(f"{file} ({error})", "broken shards, read up to where they break")
    yield from _shard_record(file, name, parts, skipped)


def _check_end(file: Path, offset: int) -> None:
    """Raise ReadError unless a shard ends at `offset`: tarfile takes a broken header for the end."""
    with file.open("rb") as content:
        content.seek(offset)
        if content.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {offset}")


def _shard_record(file: Path, name: str, parts: Mapping[str, tuple[int, bytes]], skipped: Skipped) -> Iterator[Record]:
    if not parts:
        return
    try:
        facts = json.loads(parts["json"][1]) if "json" in parts else {}
    except ValueError:
        facts = {}
    text = next((parts[suffix][1].decode(errors="replace") for suffix in TEXT_SUFFIXES if suffix in parts), "")
    caption = text or _first(facts, CAPTION_KEYS)
    picture = next((parts[s] for s in parts if f".{s}" in Image.registered_extensions()), None)
    if picture is None:
        skipped.add(f"{file}: {name.lstrip('/')}", "captions without a picture")
        return
    place = f"{file.absolute()}#{picture[0]}+{len(picture[1])}"
    yield from _checked(caption, place, _first(facts, LICENSE_KEYS), picture[1], skipped)


def _read_parquet(file: Path, skipped: Skipped) -> Iterator[Record]:
    parquet, errors = library("pyarrow.parquet"), library("pyarrow").lib.ArrowException
    try:
        table = parquet.ParquetFile(file)
    except (errors, OSError) as error:
        skipped.add(f"{file} ({error})", "broken Parquet files")
        return
    by_lower = {name.lower(): name for name in table.schema_arrow.names}
    columns = {
        kind: next((by_lower[key] for key in keys if key in by_lower), None)
        for kind, keys in (("caption", CAPTION_KEYS), ("picture", PICTURE_KEYS), ("license", LICENSE_KEYS))
    }
    if not (columns["caption"] and columns["picture"]):
        raise CollectionError(
            f"{file} has the columns {', '.join(by_lower.values())}. A caption (caption or text) and a picture (url or "
            "image) are needed."
        )
    wanted = [name for name in columns.values() if name]
    batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted)
    number = 0
    try:
        for row in (row for batch in batches for row in batch.to_pylist()):
            values = {kind: row.get(name) if name else None for kind, name in columns.items()}
            picture, data = _parquet_picture(file, columns["picture"], number, values["picture"])
            number += 1
            if not picture:
                skipped.add(f"{file}, row {number}", "captions without a picture")
                continue
            yield from _checked(_text(values["caption"]), picture, _text(values["license"]), data, skipped)
    except (errors, OSError) as error:
        skipped.add(f"{file} ({error})", "broken Parquet files")


def _parquet_picture(file: Path, column: str | None, row: int, value: Any) -> tuple[str, bytes | None]:
    if isinstance(value, dict):  # as the hub stores pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return f"{file.absolute()}#{column}:{row}", value
    return (value, None) if isinstance(value, str) and re.match(r"https?://", value) else ("", None)


def _parquet_row(file: Path, column: str, row: int) -> bytes:
    table = library("pyarrow.parquet").ParquetFile(file)
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if row < count:
            value = table.read_row_group(group, columns=[column])[column][row].as_py()
            return value["bytes"] if isinstance(value, dict) else value
        row -= count
    raise ValueError(f"it has {row} rows too few")


def _read_hub(name: str, skipped: Skipped) -> Iterator[Record]:
    try:
        datasets = library("datasets")
    except MissingLibrary as error:
        raise MissingLibrary(
            f"There is no folder {name}, so that it is taken for a data set of the hub. {error}"
        ) from error
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        for column in PICTURE_KEYS:
            if isinstance((rows.features or {}).get(column), datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        for number, row in enumerate(rows):
            value = next((row[key] for key in PICTURE_KEYS if row.get(key)), None)
            place, data = f"hub:{name}#{number}", None
            if isinstance(value, dict):
                data = value.get("bytes") or _opened(value.get("path"))
            elif isinstance(value, str):
                place = value
            if data is None and place.startswith("hub:"):
                skipped.add(place, "captions without a picture")
                continue
            for record in _checked(_first(row, CAPTION_KEYS), place, _first(row, LICENSE_KEYS), data, skipped):
                yield Record(**{**vars(record), "data": data})
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise CollectionError(
            f"There is no folder {name}, and no data set of the hub of that name can be read "
            f"({type(error).__name__}). Check the path, or the connection to the hub."
        ) from error


def _opened(path: str | None) -> bytes | None:
    """Return the bytes of a file of the hub, or of one inside an archive there, as data sets of pictures name them."""
    try:
        with library("fsspec").open(path or "", "rb") as file:
            content: bytes = file.read()
            return content
    except (OSError, ValueError):
        return None


def _checked(caption: str, picture: str, license: str, data: bytes | None, skipped: Skipped) -> Iterator[Record]:
    """Yield the record unless its caption or picture is empty; its key is that of the bytes, where there are some."""
    caption = " ".join(caption.split())
    if not caption:
        skipped.add(picture, "pictures without a caption")
    elif data == b"":
        skipped.add(picture, "empty pictures")
    else:
        key = hashlib.sha256(picture.encode() if data is None else data).hexdigest()[:24]
        yield Record(caption=caption, picture=picture, key=key, license=license)


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Return the first of the keys that has a value, whatever its case, as text."""
    lower = {str(key).lower(): value for key, value in row.items()}
    return next((_text(lower[key]) for key in keys if lower.get(key)), "")


def _text(value: Any) -> str:
    """Return a value as text, and the first one where several captions are given."""
    if isinstance(value, list):
        value = next(iter(value), None)
    return "" if value is None else str(value)
