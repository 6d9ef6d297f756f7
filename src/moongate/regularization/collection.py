"""A searchable collection: captions as unit vectors in one LanceDB table, on a disk or in object storage.

The table knows which text encoder made it. Pictures stay where they are (a file, an address, bytes of a shard, a row of
Parquet) and the table says where; only pictures that the hub streams are stored. A copy of every picture would double a
large data set to use 200 of it.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moongate.data.pictures import read_picture
from moongate.errors import CollectionError, PictureError, first_line
from moongate.evaluation.networks.clip import Clip
from moongate.extras import library
from moongate.files import check_folder, exclusive
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Record, Skipped, begun
from moongate.texts import parse_json

__all__ = ["READ_AT_ONCE", "Collection", "Hit", "nearest"]

TABLE = "captions"
CAPTIONS_AT_ONCE = 4096
"""Records that are added at once. Each addition looks through all earlier ones, so that few are faster than many."""
PICTURES_AT_ONCE = 64
"""Records that are added at once if their pictures are embedded too, because pictures fill the memory."""
READ_AT_ONCE = 16
"""Pictures that are fetched in parallel."""
FIRST_HITS = 1000
"""Hits that a search asks for first; it asks for more when these are used up."""
VECTOR_INDEX_FROM = 100_000
"""Number of captions from which on a vector index is built. Fewer are compared exactly, within a second."""
PROBES, REFINED = 50, 10
"""Partitions of the vector index that a search looks into, and factor of the hits that are compared exactly."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A record and the cosine similarity of its caption (or picture) to the query."""

    record: Record
    similarity: float


def nearest(records: Iterable[Record], query: Float[Tensor, " features"], clip: Clip) -> Iterator[Hit]:
    """Yield all records of a small source without an index, the nearest to a unit vector first."""
    everything = list(records)
    if everything:
        similarities = clip.captions([record.caption for record in everything]) @ query
        for index in torch.argsort(similarities, descending=True, stable=True).tolist():
            yield Hit(record=everything[index], similarity=float(similarities[index]))


class Collection:
    """An open collection; `open` and `index` return one."""

    def __init__(self, place: str, table: Any) -> None:
        self.place = place
        self._table = table
        try:
            facts = parse_json((table.schema.metadata or {})[b"moongate"])
            self.encoder_name = str(facts["encoder"])
            self.made_by_clip = bool(facts["clip"])
            """Whether a CLIP model made it, rather than the text encoder of a backbone."""
            self.has_pictures = bool(facts["pictures"])
            self._probe = [float(value) for value in facts["probe"]]
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise CollectionError(
                f"The table in {place} was not made by `moongate retrieve index`. Index its source into another folder."
            ) from error

    @classmethod
    def open(cls, place: str) -> Self:
        """Open a collection.

        Args:
            place: A folder, or an address in object storage such as `s3://bucket/path`.

        Raises:
            CollectionError: There is no collection, it is damaged, or it was not made here.
            MissingLibrary: LanceDB is not installed.
        """
        table = _table(place)
        if table is None:
            raise CollectionError(
                f"There is no collection in {place}. Make one with `moongate retrieve index SOURCE --out {place}`."
            )
        return cls(place, table)

    @classmethod
    def index(
        cls,
        records: Iterable[Record],
        clip: Clip,
        *,
        place: str,
        skipped: Skipped,
        with_pictures: bool = False,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Self:
        """Embed captions into a collection, which is created or continued.

        What it holds already is not embedded again, so that a stopped run continues. Two records of one picture count
        once. The table is asked for the keys of each batch: a set of all keys would grow with the source.

        Args:
            records: Captions and where their pictures are.
            clip: Embeds the captions, and for `with_pictures` the pictures.
            place: A folder, or an address in object storage.
            skipped: The records that the source could not use; pictures that cannot be read are added to it.
            with_pictures: Whether to embed the pictures too.
            on_progress: Called with the number of records read so far.

        Raises:
            CollectionError: The folder holds other files, another encoder made the collection, nothing could be
                indexed, or the disk is full.
            OptionError: Another process is indexing into the collection, or pictures cannot be embedded, because `clip`
                has no image tower.
        """
        cls.check_place(place)
        records = begun(records, skipped)
        with nullcontext() if "://" in place else exclusive(Path(place)):
            return cls._indexed(records, clip, place, skipped, with_pictures, on_progress)

    @staticmethod
    def check_place(place: str) -> None:
        """Check, before an encoder is loaded, that a folder is free for a collection or holds one.

        Raises:
            CollectionError: It holds other files, such as photos, among which the collection's own would be lost.
            OptionError: It is a file, or it cannot be written.
            MissingLibrary: LanceDB is not installed.
        """
        library("lancedb")
        if "://" in place:
            return
        folder, others = Path(place), list[str]()
        if folder.is_dir() and not (folder / f"{TABLE}.lance").exists():
            others = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        if others:
            raise CollectionError(
                f"{place} holds other files, such as {others[0]}, and a collection needs a folder of its own. Choose "
                "another --out."
            )
        check_folder(folder)

    @classmethod
    def _indexed(
        cls,
        records: Iterable[Record],
        clip: Clip,
        place: str,
        skipped: Skipped,
        with_pictures: bool,
        on_progress: Callable[[int], None],
    ) -> Self:
        collection = cls._opened(place, clip, with_pictures)
        read = 0
        try:
            for batch in _batches(records, PICTURES_AT_ONCE if collection.has_pictures else CAPTIONS_AT_ONCE):
                collection._add(batch, clip, skipped)
                read += len(batch)
                on_progress(read)
            collection._finish()
        except (RuntimeError, OSError) as error:  # as LanceDB reports a full disk
            raise CollectionError(
                f"{place} could not be written after {read} captions: {first_line(error)} Free some space if the disk "
                "is full, and run the same command again: what is written stays."
            ) from error
        return collection

    def __len__(self) -> int:
        return self._table.count_rows()

    def check(self, clip: Clip) -> None:
        """Raise CollectionError unless the text encoder of `clip` made the collection."""
        if not clip.agrees(self._probe):
            version = "another version of " if clip.name == self.encoder_name else ""
            raise CollectionError(
                f"The collection {self.place} was made with {version}the text encoder {self.encoder_name!r}, not with "
                f"{clip.name!r}, so that their features cannot be compared. Search it with its own encoder, or "
                "index its source again into another folder."
            )

    def check_pictures(self) -> None:
        """Raise CollectionError unless the pictures were indexed too."""
        if not self.has_pictures:
            raise CollectionError(f"The collection {self.place} has no features of pictures. Index with --pictures.")

    def search(
        self, query: Float[Tensor, " features"], *, by: Literal["captions", "pictures"] = "captions"
    ) -> Iterator[Hit]:
        """Yield hits, the nearest to a unit vector first; more are looked up as they are used.

        Args:
            query: A vector of `Clip.captions` or `Clip.pictures`.
            by: What of the records is compared with it.

        Raises:
            CollectionError: The pictures were not indexed, or the collection is damaged.
        """
        column = {"captions": "vector", "pictures": "picture_vector"}[by]
        if by == "pictures":
            self.check_pictures()
        columns = ["caption", "picture", "key", "license", "_distance"]
        total, limit = len(self), FIRST_HITS
        yielded: set[str] = set()
        while len(yielded) < total:
            search = self._table.search(query.numpy(), vector_column_name=column).distance_type("cosine")
            search = search.nprobes(PROBES).refine_factor(REFINED).select(columns).limit(limit)
            with _damage_explained(self.place):
                rows = search.to_arrow().to_pylist()
            for row in rows:
                if row["key"] not in yielded:
                    yielded.add(row["key"])
                    similarity = 1 - row.pop("_distance")
                    yield Hit(record=Record(**row), similarity=similarity)
            if len(rows) < limit:  # all rows, of which two may have one key
                return
            limit *= 8

    def read(self, record: Record) -> bytes:
        """Return the bytes of a record's picture.

        Raises:
            PictureError: It cannot be read.
            CollectionError: It is in the collection, which is damaged.
        """
        if not record.picture.startswith("hub:"):
            return read_bytes(record.picture)
        with _damage_explained(self.place):
            rows = self._table.search().where(f"key = '{record.key}'").select(["data"]).limit(1).to_arrow()
        return rows["data"][0].as_py()

    @classmethod
    def _opened(cls, place: str, clip: Clip, with_pictures: bool) -> Self:
        """Open or create the collection that `clip` indexes into."""
        if with_pictures:
            clip.check_pictures()
        table = _table(place)
        if table is None:
            return cls._new(place, clip, with_pictures)
        collection = cls(place, table)
        collection.check(clip)
        if with_pictures and not collection.has_pictures:
            raise CollectionError(f"The collection {place} was created without pictures. Index into another folder.")
        return collection

    @classmethod
    def _new(cls, place: str, clip: Clip, with_pictures: bool) -> Self:
        arrow = library("pyarrow")
        probe = clip.probe
        vector = arrow.list_(arrow.float32(), len(probe))
        columns = [("key", arrow.string()), ("caption", arrow.string()), ("picture", arrow.string())]
        columns += [("license", arrow.string()), ("data", arrow.large_binary()), ("vector", vector)]
        columns += [("picture_vector", vector)] if with_pictures else []
        facts = {"encoder": clip.name, "clip": not clip.is_backbone, "probe": probe, "pictures": with_pictures}
        schema = arrow.schema(columns, metadata={"moongate": json.dumps(facts)})
        return cls(place, _connected(place).create_table(TABLE, schema=schema))

    def _add(self, batch: list[Record], clip: Clip, skipped: Skipped) -> None:
        """Embed and store the records of a batch that the table does not have."""
        new = {record.key: record for record in batch}
        keys = ", ".join(f"'{key}'" for key in new)
        known = self._table.search().where(f"key IN ({keys})").select(["key"]).limit(10 * len(new)).to_arrow()
        rows = Counter(known["key"].to_pylist())
        if doubled := [key for key, count in rows.items() if count > 1]:  # by two runs at once, of an earlier version
            self._table.delete(f"key IN ({', '.join(map(repr, doubled))})")
        for key in set(rows) - set(doubled):
            del new[key]
        columns: dict[str, Any] = {}
        if self.has_pictures:
            with ThreadPoolExecutor(READ_AT_ONCE) as readers:
                read = dict(zip(new, readers.map(_picture, new.values()), strict=True))
            for error in (result for result in read.values() if isinstance(result, PictureError)):
                skipped.add(str(error), "pictures that cannot be read")
            pictures = {key: picture for key, picture in read.items() if not isinstance(picture, PictureError)}
            new = {key: new[key] for key in pictures}
            if new:
                columns["picture_vector"] = list(clip.pictures(list(pictures.values())).numpy())
        if new:
            columns["vector"] = list(clip.captions([record.caption for record in new.values()]).numpy())
            for name in ("key", "caption", "picture", "license", "data"):
                columns[name] = [getattr(record, name) for record in new.values()]
            self._table.add(library("pyarrow").table(columns, schema=self._table.schema))

    def _finish(self) -> None:
        """Compact the table, build vector indices if it is large, and remove what only earlier versions need.

        LanceDB would keep those for a week: several times the size of the table after a few additions.
        """
        self._table.optimize()
        if len(self) >= VECTOR_INDEX_FROM:
            config = library("lancedb.index").IvfPq(distance_type="cosine")
            for column in ("vector", "picture_vector") if self.has_pictures else ("vector",):
                self._table.create_index(column, config=config, replace=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of readers of earlier versions: `_connected` makes none
            self._table.optimize(cleanup_older_than=timedelta(0))


def _table(place: str) -> Any | None:
    """Return the table of a collection; None if there is none. Raises CollectionError if it is damaged."""
    library("lancedb")
    if "://" not in place and not (Path(place) / f"{TABLE}.lance").is_dir():  # LanceDB would create the folder
        return None
    with _damage_explained(place):
        try:
            return _connected(place).open_table(TABLE)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise


@contextmanager
def _damage_explained(place: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:  # as LanceDB reports what is missing or damaged
        raise CollectionError(
            f"The collection in {place} cannot be read: {first_line(error)} Index its source again into another folder."
        ) from error


def _connected(place: str) -> Any:
    """Return the database in a place. Its tables are read in their latest version: earlier ones may be gone."""
    return library("lancedb").connect(place, read_consistency_interval=timedelta(0))


def _picture(record: Record) -> UInt8[np.ndarray, "height width 3"] | PictureError:
    try:
        return read_picture(record.data or read_bytes(record.picture), name=record.picture)
    except PictureError as error:
        return error


def _batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
