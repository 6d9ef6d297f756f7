"""A searchable collection: captions as unit vectors in one LanceDB table, on a disk or in object storage.

The table remembers which text encoder made it. Pictures stay where they are; the table says where that is.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float

from moongate.data.pictures import read_picture
from moongate.errors import CollectionError, PictureError
from moongate.evaluation.networks.embedding import Encoder
from moongate.extras import library
from moongate.regularization.sources import Record, Skipped, read_bytes

__all__ = ["READ_AT_ONCE", "Collection", "Hit", "nearest"]

TABLE = "captions"
ADDED_AT_ONCE = 1024
PICTURES_AT_ONCE = 64
"""How many are added at once where pictures are embedded too, which fill the memory."""
READ_AT_ONCE = 16
"""Pictures that are fetched side by side."""
FIRST_ASKED_FOR = 1000
VECTOR_INDEX_FROM = 100_000
"""From so many captions on a vector index is built; fewer are compared one by one, exactly, within a second."""
PROBES, REFINED = 50, 10
"""Partitions that a search of the vector index looks into, and how many times the hits are compared exactly."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A record and the similarity of its caption (or picture) to the query, the cosine of their features."""

    record: Record
    similarity: float


def nearest(records: Iterable[Record], query: Float[np.ndarray, " width"], encoder: Encoder) -> Iterator[Hit]:
    """Yield all records of a small source, the nearest first, without an index."""
    everything = list(records)
    if everything:
        similarities = encoder.captions([record.caption for record in everything]) @ query
        for index in np.argsort(-similarities, kind="stable"):
            yield Hit(record=everything[index], similarity=float(similarities[index]))


class Collection:
    """An open collection."""

    def __init__(self, place: str, table: Any) -> None:
        self.place = place
        self._table = table
        facts = json.loads((table.schema.metadata or {}).get(b"moongate", b"{}"))
        if not facts:
            raise CollectionError(f"The table in {place} was not made by `moongate retrieve index`. Index its source.")
        self.encoder_name: str = facts["encoder"]
        self.made_by_clip: bool = facts["clip"]
        """Whether a CLIP model made it, rather than a backbone's own text encoder."""
        self.has_pictures: bool = facts["pictures"]
        self._probe: list[float] = facts["probe"]

    @classmethod
    def open(cls, place: str) -> Self:
        """Open a collection: a folder or an address such as s3://bucket/path. Raises CollectionError."""
        lancedb = library("lancedb")
        try:
            if "://" not in place and not Path(place).is_dir():  # LanceDB would make it
                raise FileNotFoundError(place)
            return cls(place, lancedb.connect(place).open_table(TABLE))
        except (ValueError, OSError) as error:
            raise CollectionError(
                f"There is no collection in {place}. Make one with `moongate retrieve index SOURCE --out {place}`."
            ) from error

    @classmethod
    def index(
        cls,
        records: Iterable[Record],
        encoder: Encoder,
        *,
        place: str,
        skipped: Skipped,
        with_pictures: bool = False,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Self:
        """Embed captions into the collection at `place`, beginning or continuing it; `on_progress` gets records read.

        What it holds already is not embedded again, so that a stopped run continues; the same picture twice counts
        once. `with_pictures` embeds the pictures too, for which the encoder must be a CLIP model. Raises
        CollectionError when another encoder made it, or when nothing could be indexed.
        """
        rest = iter(records)
        first = next(rest, None)
        if first is None:
            reason = skipped.with_example if skipped.counts else "it is empty"
            raise CollectionError(f"Nothing of the source could be indexed: {reason}.")
        collection = cls._begun(place, encoder, with_pictures)
        read = 0
        for batch in _batches(chain([first], rest), PICTURES_AT_ONCE if collection.has_pictures else ADDED_AT_ONCE):
            collection._add(batch, encoder, skipped)
            read += len(batch)
            on_progress(read)
        collection._finish()
        return collection

    def __len__(self) -> int:
        return self._table.count_rows()

    def check(self, encoder: Encoder) -> None:
        """Raise CollectionError unless `encoder` made the collection."""
        if not encoder.agrees(self._probe):
            version = "another version of " if encoder.name == self.encoder_name else ""
            raise CollectionError(
                f"The collection {self.place} was made with {version}the text encoder {self.encoder_name!r}, not with "
                f"{encoder.name!r}, so that their features cannot be compared. Search it with its own encoder, or "
                "index its source again into another folder."
            )

    def search(
        self, query: Float[np.ndarray, " width"], *, by: Literal["captions", "pictures"] = "captions"
    ) -> Iterator[Hit]:
        """Yield hits, the nearest first; more are looked up as they are asked for."""
        column = {"captions": "vector", "pictures": "picture_vector"}[by]
        if by == "pictures" and not self.has_pictures:
            raise CollectionError(f"The collection {self.place} has no features of pictures. Index with --pictures.")
        wanted = ["caption", "picture", "key", "license", "_distance"]
        total, asked = len(self), FIRST_ASKED_FOR
        yielded: set[str] = set()
        while len(yielded) < total:
            search = self._table.search(query.astype(np.float32), vector_column_name=column).distance_type("cosine")
            found = search.nprobes(PROBES).refine_factor(REFINED).select(wanted).limit(asked).to_arrow().to_pylist()
            for row in found:
                if row["key"] not in yielded:
                    yielded.add(row["key"])
                    similarity = 1 - row.pop("_distance")
                    yield Hit(record=Record(**row), similarity=similarity)
            if len(found) < min(asked, total):
                return
            asked *= 8

    def read(self, record: Record) -> bytes:
        """Return the bytes of a record's picture. Raises PictureError when it cannot be had."""
        if not record.picture.startswith("hub:"):
            return read_bytes(record.picture)
        rows = self._table.search().where(f"key = '{record.key}'").select(["data"]).limit(1).to_arrow()
        return rows["data"][0].as_py()

    @classmethod
    def _begun(cls, place: str, encoder: Encoder, with_pictures: bool) -> Self:
        if with_pictures:
            encoder.check_pictures()
        try:
            collection = cls.open(place)
        except CollectionError:
            return cls._new(place, encoder, with_pictures)
        collection.check(encoder)
        if with_pictures and not collection.has_pictures:
            raise CollectionError(f"The collection {place} was begun without pictures. Index into another folder.")
        return collection

    @classmethod
    def _new(cls, place: str, encoder: Encoder, with_pictures: bool) -> Self:
        arrow = library("pyarrow")
        probe = encoder.probe
        vector = arrow.list_(arrow.float32(), len(probe))
        columns = [("key", arrow.string()), ("caption", arrow.string()), ("picture", arrow.string())]
        columns += [("license", arrow.string()), ("data", arrow.large_binary()), ("vector", vector)]
        columns += [("picture_vector", vector)] if with_pictures else []
        facts = {"encoder": encoder.name, "clip": encoder.clip is not None, "probe": probe, "pictures": with_pictures}
        schema = arrow.schema(columns, metadata={"moongate": json.dumps(facts)})
        return cls(place, library("lancedb").connect(place).create_table(TABLE, schema=schema))

    def _add(self, batch: list[Record], encoder: Encoder, skipped: Skipped) -> None:
        new = {record.key: record for record in batch}
        keys = ", ".join(f"'{key}'" for key in new)
        known = self._table.search().where(f"key IN ({keys})").select(["key"]).limit(len(new)).to_arrow()
        for key in known["key"].to_pylist():
            del new[key]
        columns: dict[str, Any] = {}
        if self.has_pictures:
            with ThreadPoolExecutor(READ_AT_ONCE) as readers:
                read = dict(zip(new, readers.map(_picture, new.values()), strict=True))
            for error in (found for found in read.values() if isinstance(found, PictureError)):
                skipped.add(str(error), "pictures that cannot be read")
            pictures = {key: picture for key, picture in read.items() if not isinstance(picture, PictureError)}
            new = {key: new[key] for key in pictures}
            if new:
                columns["picture_vector"] = list(encoder.pictures(list(pictures.values())))
        if new:
            columns["vector"] = list(encoder.captions([record.caption for record in new.values()]))
            for name in ("key", "caption", "picture", "license", "data"):
                columns[name] = [getattr(record, name) for record in new.values()]
            self._table.add(library("pyarrow").table(columns, schema=self._table.schema))

    def _finish(self) -> None:
        """Compact the table, and build vector indices where it is large."""
        self._table.optimize()
        if len(self) >= VECTOR_INDEX_FROM:
            config = library("lancedb.index").IvfPq(distance_type="cosine")
            for column in ("vector", "picture_vector")[: 1 + self.has_pictures]:
                self._table.create_index(column, config=config, replace=True)


def _picture(record: Record) -> np.ndarray | PictureError:
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
