"""Regularization pictures by similarity: the captions nearest to a prompt, their pictures checked and written.

The paper takes 200 whose captions are nearer than 0.85 to the prompt (Sec. 3.2).
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from moongate.data.pictures import MIN_SIDE_PX, SAME_ABOVE, looks, read_picture
from moongate.errors import CollectionError, OptionError, PictureError
from moongate.regularization.collection import READ_AT_ONCE, Hit
from moongate.regularization.sources import Record, Skipped

__all__ = ["MANIFEST", "RetrieveOptions", "Retrieved", "already_in", "retrieve"]

MANIFEST = "retrieval.json"


@dataclass(frozen=True, kw_only=True)
class RetrieveOptions:
    """How many pictures to take, how near their captions must be, and how large they may be."""

    threshold: float
    """The least similarity to the query."""
    count: int = 200
    side_px: int = 512
    """The shorter side of a picture; larger ones are shrunk, none is cut or squashed."""
    tops_up: bool = False
    """Whether pictures below the threshold make up for those that are missing."""
    by: Literal["captions", "pictures"] = "captions"
    """What was compared with the query."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError(f"count is {self.count}; it must be at least 1.")
        if self.side_px < MIN_SIDE_PX:
            raise OptionError(f"side_px is {self.side_px}; a picture has at least {MIN_SIDE_PX} pixels a side.")
        if not -1 <= self.threshold <= 1:
            raise OptionError(f"threshold is {self.threshold}; a similarity is between -1 and 1, such as 0.85.")


def already_in(out: Path, facts: Mapping[str, str], options: RetrieveOptions) -> bool:
    """Tell whether the folder `out` holds what `retrieve` was told to write there."""
    manifest = out / MANIFEST
    found = json.loads(manifest.read_text()) if manifest.is_file() else {}
    wanted = {**facts, **asdict(options)}
    return {key: found.get(key) for key in wanted} == wanted


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """What came of it. `enough_at` is the threshold that would have given the count, where it was not reached."""

    count: int
    wanted: int
    lowest: float
    highest: float
    enough_at: float | None
    skipped: Skipped

    def __str__(self) -> str:
        found = f"{self.count} pictures with similarities from {self.highest:.3f} to {self.lowest:.3f}"
        if self.count == self.wanted:
            return f"{found}."
        if self.enough_at is None:
            return f"{found}; the collection has no {self.wanted}."
        return f"{found}; a threshold of {self.enough_at:.3f} would have given {self.wanted}."


def retrieve(
    hits: Iterable[Hit],
    read: Callable[[Record], bytes],
    *,
    facts: Mapping[str, str],
    out: Path,
    options: RetrieveOptions,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Retrieved:
    """Write the pictures of the nearest hits into the folder `out`, replacing it, and return what came of it.

    `hits` come nearest first. Near-identical pictures are dropped, and those that cannot be read are skipped and
    counted. `metadata.jsonl` gives each picture its caption, source, license and similarity; `retrieval.json` has
    the `facts` (what was searched for, and where), the options and what was skipped. `on_progress` gets the number of
    pictures written. Raises CollectionError when there is none, and changes nothing then.
    """
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    skipped = Skipped()
    kept: list[float] = []
    below: list[float] = []
    stream = iter(hits)
    with ThreadPoolExecutor(READ_AT_ONCE) as readers, (partial / "metadata.jsonl").open("w") as listing:
        distinct = _distinct(stream, read, readers, skipped, below, options)
        for hit, picture in islice(distinct, options.count):
            name = f"{len(kept):04d}.png"
            _shrunk(picture, options.side_px).save(partial / name)
            record, similarity = hit.record, round(hit.similarity, 4)
            row = {"file_name": name, "caption": record.caption, "similarity": similarity, "source": record.picture}
            listing.write(json.dumps(row | {"license": record.license}) + "\n")
            kept.append(hit.similarity)
            on_progress(len(kept))
    short = options.count - len(kept)
    below += [hit.similarity for hit in islice(stream, max(0, short - len(below)))]
    enough_at = math.floor(below[short - 1] * 1000) / 1000 if 0 < short <= len(below) else None
    if not kept:
        shutil.rmtree(partial)
        raise CollectionError(_nothing(below, skipped, enough_at, options))
    manifest = {**facts, **asdict(options), "found": len(kept), "enough_at": enough_at}
    manifest |= {"skipped": dict(skipped.counts), "skipped_names": skipped.names}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return Retrieved(
        count=len(kept),
        wanted=options.count,
        lowest=min(kept),
        highest=max(kept),
        enough_at=enough_at,
        skipped=skipped,
    )


def _distinct(
    hits: Iterator[Hit],
    read: Callable[[Record], bytes],
    readers: ThreadPoolExecutor,
    skipped: Skipped,
    below: list[float],
    options: RetrieveOptions,
) -> Iterator[tuple[Hit, np.ndarray]]:
    """Yield hits above the threshold with their pictures, no two alike; similarities below it go into `below`."""

    def load(hit: Hit) -> np.ndarray | PictureError:
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
            look = looks(picture)
            if seen and (np.stack(seen) @ look).max() > SAME_ABOVE:
                skipped.add(hit.record.picture, "near-identical pictures")
                continue
            seen.append(look)
            yield hit, picture
        if len(near) < len(window):
            below += [hit.similarity for hit in window[len(near) :]]
            return


def _shrunk(picture: np.ndarray, side_px: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = side_px / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _nothing(below: list[float], skipped: Skipped, enough_at: float | None, options: RetrieveOptions) -> str:
    if not below:
        return f"No picture can be used: {skipped.with_example}" if skipped.counts else "The collection is empty."
    nearest = f"No caption reaches the similarity {options.threshold}; the nearest has {max(below):.3f}"
    if enough_at is None:
        return f"{nearest}. Lower --threshold."
    return f"{nearest}. Take --threshold {enough_at:.3f} for {options.count} pictures."
