"""The bytes of a record's picture, from where the picture is.

/data/0001.jpg                   a file
https://host/0001.jpg            fetched when it is needed
/data/shard.tar#1536+20480       bytes of a WebDataset shard: offset and length
/data/part.parquet#image:17      a row of a column
"""

import queue
import re
import stat
import threading
import time
from functools import lru_cache
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from huggingface_hub import get_session

from moongate.errors import PictureError, first_line
from moongate.extras import library
from moongate.limits import MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_S, MAX_SILENCE_S

__all__ = ["read_bytes", "read_regular"]

ROW_GROUPS_KEPT = 4
"""Row groups of Parquet files that stay in memory. Hits of a search are in no order, so that the pictures of one row
group are asked for again and again."""
_reading_parquet = threading.Lock()
"""Held while a row group is read, so that parallel readers of one group read it once."""


def read_bytes(picture: str) -> bytes:
    """Return the bytes of the picture that a record points to.

    Raises:
        PictureError: The file is missing, or the address is invalid or does not answer in time.
        MissingLibrary: The picture is in a Parquet file and pyarrow is not installed.
    """
    if re.match(r"https?://", picture):
        return _fetched(picture)
    try:
        if shard := re.fullmatch(r"(.*\.tar)#(\d+)\+(\d+)", picture):
            with Path(shard[1]).open("rb") as content:
                content.seek(int(shard[2]))
                return content.read(min(int(shard[3]), MAX_DOWNLOAD_BYTES))
        if table := re.fullmatch(r"(.*\.parquet)#(.+):(\d+)", picture):
            return _parquet_row(Path(table[1]), table[2], int(table[3]))
        return read_regular(Path(picture))
    except (OSError, ValueError, OverflowError, TypeError, LookupError) as error:
        raise PictureError(f"{picture} cannot be read ({error}).") from error


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file of at most `MAX_DOWNLOAD_BYTES`; devices and pipes may have no end.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is no regular file, or too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"it has more than {MAX_DOWNLOAD_BYTES // 10**6} MB")
    return path.read_bytes()


def _fetched(url: str) -> bytes:
    """Fetch an address within `MAX_DOWNLOAD_S`, however slowly its server answers.

    The client has limits for each wait only, and a server may send header after header. So a thread of its own fetches,
    and is left to itself when its time is over.
    """
    results: queue.SimpleQueue[bytes | PictureError] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            results.put(_streamed(url))
        except PictureError as error:
            results.put(error)
        except Exception as error:  # it would be lost in the thread
            results.put(PictureError(f"{url} cannot be read ({first_line(error)})"))

    threading.Thread(target=fetch, daemon=True).start()
    try:
        result = results.get(timeout=MAX_DOWNLOAD_S)
    except queue.Empty as error:
        raise _over_limits(url) from error
    if isinstance(result, PictureError):
        raise result
    return result


def _streamed(url: str) -> bytes:
    """Fetch an address with the client of the hub, which follows redirects and knows proxies and certificates."""
    client = get_session()
    http: Any = import_module(type(client).__module__.partition(".")[0])  # httpx, or the successor of the same API
    content, last = bytearray(), time.monotonic() + MAX_DOWNLOAD_S
    try:
        with client.stream(
            "GET", url, headers={"User-Agent": "moongate"}, timeout=MAX_SILENCE_S, follow_redirects=True
        ) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                content += part
                if len(content) > MAX_DOWNLOAD_BYTES or time.monotonic() > last:
                    raise _over_limits(url)
    except (http.HTTPError, http.InvalidURL, OSError, ValueError) as error:
        raise PictureError(f"{url} cannot be read ({first_line(error)})") from error
    return bytes(content)


def _over_limits(url: str) -> PictureError:
    return PictureError(f"{url} has more than {MAX_DOWNLOAD_BYTES // 10**6} MB or takes more than {MAX_DOWNLOAD_S} s.")


def _parquet_row(file: Path, column: str, row: int) -> bytes:
    with _reading_parquet:
        changed_ns = file.stat().st_mtime_ns
        ends = _group_ends(file, changed_ns)
        group = next((group for group, end in enumerate(ends) if row < end), None)
        if group is None:
            raise ValueError(f"it has {ends[-1] if ends else 0} rows, and row {row + 1} is asked for")
        values = _row_group(file, changed_ns, group, column)
    value = values[row - (ends[group - 1] if group else 0)].as_py()
    return value["bytes"] if isinstance(value, dict) else value


@lru_cache(maxsize=64)
def _group_ends(file: Path, changed_ns: int) -> list[int]:
    """Return, for each row group of a Parquet file, the index after its last row."""
    metadata = library("pyarrow.parquet").ParquetFile(file).metadata
    return list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


@lru_cache(maxsize=ROW_GROUPS_KEPT)
def _row_group(file: Path, changed_ns: int, group: int, column: str) -> Any:
    """Return a column of a row group; `changed_ns` makes a file that was replaced another file."""
    return library("pyarrow.parquet").ParquetFile(file).read_row_group(group, columns=[column])[column]
