"""The bytes of a record's picture, from where the picture is.

/data/0001.jpg                   a file
https://host/0001.jpg            fetched when it is needed
/data/shard.tar#1536+20480       bytes of a WebDataset shard: offset and length
/data/part.parquet#image:17      a row of a column
"""

import contextlib
import ipaddress
import queue
import re
import socket
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from huggingface_hub import get_session

from moongate.errors import PictureError, first_line
from moongate.extras import library
from moongate.files import read_regular
from moongate.limits import (
    MAX_DOWNLOAD_BYTES,
    MAX_DOWNLOAD_S,
    MAX_REDIRECTS,
    MAX_ROW_GROUP_BYTES,
    MAX_ROW_GROUP_VALUES,
    MAX_SILENCE_S,
)

__all__ = ["check_row_group", "read_bytes"]

ROW_GROUPS_KEPT = 4
"""Row groups of Parquet files that stay in memory. Hits of a search are in no order, so that the pictures of one row
group are asked for again and again."""
METADATA_SERVICES = ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
"""Where Amazon, Alibaba, Azure and Oracle tell a machine its passwords, besides the link-local 169.254.169.254."""
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
        return read_regular(Path(picture), at_most=MAX_DOWNLOAD_BYTES)
    except (OSError, ValueError, OverflowError, TypeError, LookupError, RuntimeError) as error:
        raise PictureError(f"{picture} cannot be read ({error}).") from error


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
    """Fetch an address with the client of the hub, which knows proxies and certificates, and follow where it leads."""
    client = get_session()
    http: Any = import_module(type(client).__module__.partition(".")[0])  # httpx, or the successor of the same API
    content, last = bytearray(), time.monotonic() + MAX_DOWNLOAD_S
    request = client.build_request("GET", url, headers={"User-Agent": "moongate"}, timeout=MAX_SILENCE_S)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            _check_host(request.url.host, url)
            with contextlib.closing(client.send(request, stream=True, follow_redirects=False)) as answer:
                if answer.next_request is None:
                    answer.raise_for_status()
                    for part in answer.iter_bytes():
                        content += part
                        if len(content) > MAX_DOWNLOAD_BYTES or time.monotonic() > last:
                            raise _over_limits(url)
                    return bytes(content)
                request = answer.next_request
    except (http.HTTPError, http.InvalidURL, OSError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{url} cannot be read ({first_line(error)})") from error
    raise PictureError(f"{url} leads to other addresses more than {MAX_REDIRECTS} times.")


def _check_host(host: str, url: str) -> None:
    """Raise PictureError for the addresses at which machines in data centers keep their passwords.

    A listing could name one, or an address that leads there. A host whose name is not known here is left to the client,
    which may have a proxy.
    """
    for address in map(ipaddress.ip_address, _addresses(host)):
        plain = getattr(address, "ipv4_mapped", None) or address
        if plain.is_link_local or str(plain) in METADATA_SERVICES:
            raise PictureError(f"{url} leads to {address}, where a machine keeps facts about itself; it is not read.")


def _addresses(host: str) -> list[str]:
    """Return the addresses of a host; none if its name is not known here."""
    try:
        return [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):
        return []


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
    table = library("pyarrow.parquet").ParquetFile(file)
    check_row_group(table.metadata, group, [column])
    return table.read_row_group(group, columns=[column])[column]


def check_row_group(metadata: Any, group: int, columns: Sequence[str]) -> None:
    """Check that columns of a row group of a Parquet file may be read.

    Raises:
        ValueError: A column would unpack to more than `MAX_ROW_GROUP_BYTES` or `MAX_ROW_GROUP_VALUES`.
    """
    parts = metadata.row_group(group)
    for part in (parts.column(index) for index in range(parts.num_columns)):
        is_read = part.path_in_schema.partition(".")[0] in columns
        if is_read and (part.total_uncompressed_size > MAX_ROW_GROUP_BYTES or part.num_values > MAX_ROW_GROUP_VALUES):
            raise ValueError(
                f"row group {group + 1} has {part.num_values} values of {part.total_uncompressed_size / 1e6:.0f} MB in "
                f"{part.path_in_schema}; write it in groups of at most {MAX_ROW_GROUP_BYTES // 10**6} MB"
            )
