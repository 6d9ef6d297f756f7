"""Regularization pictures by similarity: the captions nearest to a query, their pictures checked and written.

The paper takes 200 pictures whose captions have a similarity above 0.85 to the prompt (Sec. 3.1).
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from moongate import pocket
from moongate.data.pictures import SAME_ABOVE, appearance, read_picture
from moongate.errors import CollectionError, OptionError, PictureError
from moongate.evaluation.networks.clip import Clip
from moongate.files import replace_folder, write_atomically
from moongate.limits import MAX_CAPTION_CHARACTERS, MIN_SIDE_PX, check_count
from moongate.pages import png_bytes
from moongate.regularization.collection import READ_AT_ONCE, Collection, Hit, nearest
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Record, Skipped, read_source
from moongate.texts import parse_json, read_text

__all__ = [
    "MANIFEST",
    "RetrieveOptions",
    "Retrieved",
    "already_retrieved",
    "check_threshold",
    "retrieve",
    "write_nearest",
]

MANIFEST = "retrieval.json"
"""File that says what was searched for, where, with which options, and what was skipped."""


def check_threshold(threshold: float | None) -> None:
    """Raise OptionError if a least similarity is given that is not between -1 and 1."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise OptionError(f"threshold is {threshold}; a similarity is between -1 and 1, such as 0.85.")


@dataclass(frozen=True, kw_only=True)
class RetrieveOptions:
    """How many pictures to take, how near their captions must be, and how large the pictures may be."""

    threshold: float
    """Least cosine similarity to the query, -1..1."""
    count: int = 200
    """Number of pictures."""
    side_px: int = 512
    """Shorter side of a picture; larger pictures are scaled down, none is cropped or distorted."""
    tops_up: bool = False
    """Whether pictures below the threshold are taken when too few are above it."""
    by: Literal["captions", "pictures"] = "captions"
    """What of the collection is compared with the query."""

    def __post_init__(self) -> None:
        check_count("count", self.count)
        if self.side_px < MIN_SIDE_PX:
            raise OptionError(f"side_px is {self.side_px}; a picture has at least {MIN_SIDE_PX} pixels a side.")
        check_threshold(self.threshold)


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The outcome of a retrieval."""

    count: int
    """Number of pictures written."""
    wanted: int
    lowest: float
    """Lowest similarity of a picture that was written."""
    highest: float
    enough_at: float | None
    """If there were too few: the threshold that would have sufficed, or None if the collection is too small."""
    skipped: Skipped

    def __str__(self) -> str:
        written = f"{self.count} pictures with similarities from {self.highest:.3f} to {self.lowest:.3f}"
        if self.count == self.wanted:
            return f"{written}."
        if self.enough_at is None:
            return f"{written}; the collection does not have {self.wanted}."
        return f"{written}; a threshold of {self.enough_at:.3f} would have given {self.wanted}."


def retrieve(
    query: str,
    *,
    clip: Clip,
    collection: Collection | None,
    out: Path,
    options: RetrieveOptions,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Retrieved:
    """Write the pictures whose captions are nearest to a query into a folder, with a listing and a manifest.

    Near-identical pictures are dropped, and pictures that cannot be read are skipped and counted. `metadata.jsonl`
    gives each picture its caption, source, license and similarity.

    Args:
        query: What the captions should say, such as "photo of a dog".
        clip: The text encoder that made the collection.
        collection: The collection to search; None searches the pool that comes with pocket. Its captions are few enough
            to be embedded at once, so that no index becomes outdated with the text encoder.
        out: The folder to write, which is replaced.
        options: How many pictures, how near, how large.
        on_progress: Called with the number of pictures written.

    Raises:
        CollectionError: Another encoder made the collection, or there is no picture to write. `out` is unchanged then.
        OptionError: The query has more than `MAX_CAPTION_CHARACTERS`.
    """
    if len(query) > MAX_CAPTION_CHARACTERS:
        raise OptionError(f"The query has {len(query)} characters; at most {MAX_CAPTION_CHARACTERS} are read.")
    if collection is not None:
        collection.check(clip)
    vector = clip.captions([query])[0]
    hits: Iterable[Hit]
    if collection is not None:
        hits, read = collection.search(vector, by=options.by), collection.read
    else:
        hits, read = nearest(read_source(str(pocket.pool_folder()), Skipped()), vector, clip), _read_pool
    facts = _facts(query, clip, collection)
    return write_nearest(hits, read, facts=facts, out=out, options=options, on_progress=on_progress)


def already_retrieved(
    query: str,
    *,
    clip: Clip,
    collection: Collection | None,
    out: Path,
    options: RetrieveOptions,
    of_any_size: bool = False,
) -> bool:
    """Return whether the folder `out` holds what `retrieve` would write there.

    With `of_any_size`, it may also hold what was retrieved before captions were added to the collection.
    """
    manifest = out / MANIFEST
    try:
        recorded = dict(parse_json(read_text(manifest))) if manifest.is_file() else {}
    except (OSError, ValueError, TypeError):  # damaged: it is retrieved again
        recorded = {}
    wanted = {**_facts(query, clip, collection), **asdict(options)}
    if of_any_size:
        del wanted["captions"]
    return {key: recorded.get(key) for key in wanted} == wanted


def write_nearest(
    hits: Iterable[Hit],
    read: Callable[[Record], bytes],
    *,
    facts: Mapping[str, str | int | None],
    out: Path,
    options: RetrieveOptions,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Retrieved:
    """Write the pictures of hits that come nearest first; `retrieve` says how.

    Args:
        hits: Records with their similarities, the nearest first. They are read as far as needed.
        read: Returns the bytes of a record's picture; raises PictureError for a picture to skip.
        facts: Further entries of the manifest.
        out: The folder to write, which is replaced.
        options: How many pictures, how near, how large.
        on_progress: Called with the number of pictures written.

    Raises:
        CollectionError: There is no picture to write. `out` is unchanged then.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    skipped = Skipped()
    kept: list[float] = []
    below: list[float] = []
    stream = iter(hits)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".moongate-") as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        rows: list[str] = []
        with ThreadPoolExecutor(READ_AT_ONCE) as readers:
            distinct = _distinct(stream, read, readers, skipped, below, options)
            for hit, picture in islice(distinct, options.count):
                name = f"{len(kept):04d}.png"
                write_atomically(folder / name, png_bytes(_shrunk(picture, options.side_px)))
                rows.append(json.dumps(_row(name, hit)) + "\n")
                kept.append(hit.similarity)
                on_progress(len(kept))
        short = options.count - len(kept)
        below += [hit.similarity for hit in islice(stream, max(0, short - len(below)))]
        enough_at = math.floor(below[short - 1] * 1000) / 1000 if 0 < short <= len(below) else None
        if not kept:
            raise CollectionError(_nothing(below, skipped, enough_at, options))
        manifest = {**facts, **asdict(options), "found": len(kept), "enough_at": enough_at}
        manifest |= {"skipped": dict(skipped.counts), "skipped_names": skipped.names}
        write_atomically(folder / "metadata.jsonl", "".join(rows).encode())
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        replace_folder(folder, out)
    return Retrieved(
        count=len(kept),
        wanted=options.count,
        lowest=min(kept),
        highest=max(kept),
        enough_at=enough_at,
        skipped=skipped,
    )


def _facts(query: str, clip: Clip, collection: Collection | None) -> dict[str, str | int | None]:
    """Return what a retrieval depends on besides its options; captions are added to a collection, and never changed."""
    place, captions = (pocket.POOL, None) if collection is None else (collection.place, len(collection))
    return {"query": query, "collection": place, "captions": captions, "encoder": clip.name}


def _read_pool(record: Record) -> bytes:
    return read_bytes(record.picture)


def _row(name: str, hit: Hit) -> dict[str, str | float]:
    """Return the line of a picture in `metadata.jsonl`."""
    record = hit.record
    similarity = round(hit.similarity, 4)
    row: dict[str, str | float] = {"file_name": name, "caption": record.caption, "similarity": similarity}
    return row | {"source": record.picture, "license": record.license}


def _distinct(
    hits: Iterator[Hit],
    read: Callable[[Record], bytes],
    readers: ThreadPoolExecutor,
    skipped: Skipped,
    below: list[float],
    options: RetrieveOptions,
) -> Iterator[tuple[Hit, UInt8[np.ndarray, "height width 3"]]]:
    """Yield hits above the threshold with their pictures, no two alike; similarities below it go into `below`."""

    def load(hit: Hit) -> UInt8[np.ndarray, "height width 3"] | PictureError:
        try:
            return read_picture(read(hit.record), name=hit.record.picture)
        except PictureError as error:
            return error

    seen: list[np.ndarray] = []
    while window := list(islice(hits, READ_AT_ONCE)):
        near = [hit for hit in window if options.tops_up or hit.similarity >= options.threshold]
        for hit, picture in zip(near, readers.map(load, near), strict=True):
            if isinstance(picture, PictureError):
                skipped.add(str(picture), "pictures that cannot be read")
                continue
            look = appearance(picture)
            if seen and (np.stack(seen) @ look).max() > SAME_ABOVE:
                skipped.add(hit.record.picture, "near-identical pictures")
                continue
            seen.append(look)
            yield hit, picture
        if len(near) < len(window):
            below += [hit.similarity for hit in window[len(near) :]]
            return


def _shrunk(picture: UInt8[np.ndarray, "height width 3"], side_px: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = side_px / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _nothing(below: list[float], skipped: Skipped, enough_at: float | None, options: RetrieveOptions) -> str:
    """Return why there is no picture, and the threshold that would have sufficed."""
    if not below:
        if skipped.counts:
            return f"No picture can be used: {skipped.with_example}. Correct the source, or search another one."
        return "The collection is empty. Index a source into it."
    best = f"No caption reaches the similarity {options.threshold}; the nearest has {max(below):.3f}"
    if enough_at is None:
        return f"{best}. Lower --threshold."
    return f"{best}. Take --threshold {enough_at:.3f} for {options.count} pictures."
