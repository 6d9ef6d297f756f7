import http.server
import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moongate.errors import PictureError
from moongate.regularization import reading
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Skipped, read_source


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An address with 0.png; moved.png leads there; slow.png, drip.png and headers.png never end."""
    hold = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow.png":
                hold.wait(20)
                return
            if self.path == "/headers.png":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not hold.wait(0.05):
                    self.wfile.write(b"X: 1\r\n")
                return
            known = ("/0.png", "/a%20b.png", "/caf%C3%A9.png", "/drip.png")
            if self.path in ("/moved.png", "/loop.png"):
                self.send_response(302)
                self.send_header("Location", "/0.png" if self.path == "/moved.png" else "/loop.png")
                self.end_headers()
                return
            self.send_response(200 if self.path in known else 404)
            self.end_headers()
            while self.path == "/drip.png" and not hold.wait(0.05):
                self.wfile.write(b".")
            self.wfile.write(png(0))

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        hold.set()
        running.shutdown()
        thread.join()


def test_addresses_are_fetched_when_needed_and_named_when_they_do_not_answer(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"URL": [f"{server}/0.png", f"{server}/gone.png"], "TEXT": ["a dog", "a cat"]})
    pq.write_table(table, tmp_path / "laion.parquet")
    first, second = read_source(str(tmp_path / "laion.parquet"), Skipped())
    assert read_bytes(first.picture) == png(0)
    with pytest.raises(PictureError, match=r"gone.png cannot be read \(.*404"):
        read_bytes(second.picture)
    monkeypatch.setattr(reading, "MAX_SILENCE_S", 0.3)
    with pytest.raises(PictureError, match=r"slow.png cannot be read \(.*timed out"):
        read_bytes(f"{server}/slow.png")
    with pytest.raises(PictureError, match="gone.jpg cannot be read"):
        read_bytes(str(tmp_path / "gone.jpg"))


def test_an_address_with_a_space_is_fetched_and_an_invalid_one_named(server: str) -> None:
    assert read_bytes(f"{server}/a b.png") == png(0)
    assert read_bytes(f"{server}/café.png") == png(0)
    for address in ("http://[", "http://a:b/0.png", "http:///0.png"):
        with pytest.raises(PictureError, match="cannot be read"):
            read_bytes(address)


@pytest.mark.parametrize("name", ["drip.png", "headers.png"])
def test_a_server_that_sends_byte_after_byte_or_header_after_header_is_given_up(
    name: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_DOWNLOAD_S", 0.2)
    began = time.monotonic()
    with pytest.raises(PictureError, match=rf"{name} has more than 50 MB or takes more than 0.2 s"):
        read_bytes(f"{server}/{name}")
    assert time.monotonic() - began < 5


def test_too_large_an_answer_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(PictureError, match="more than"):
        read_bytes(f"{server}/0.png")


def test_redirects_are_followed_and_a_loop_is_named(server: str) -> None:
    assert read_bytes(f"{server}/moved.png") == png(0)
    with pytest.raises(PictureError, match="loop.png leads to other addresses more than 5 times"):
        read_bytes(f"{server}/loop.png")


def test_a_row_group_is_read_once_for_all_of_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "part.parquet"
    pq.write_table(pa.table({"image": [png(number) for number in range(8)]}), file, row_group_size=4)
    groups: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: groups.append(i) or real(self, i, **options)
    )
    rows = [5, 0, 6, 3, 1, 7, 4, 2]
    with ThreadPoolExecutor(8) as readers:
        contents = list(readers.map(read_bytes, [f"{file}#image:{row}" for row in rows]))
    assert contents == [png(row) for row in rows]
    assert sorted(groups) == [0, 1]
    with pytest.raises(PictureError, match=r"cannot be read \(it has 8 rows, and row 9 is asked for"):
        read_bytes(f"{file}#image:8")


def test_a_parquet_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    for number in (1, 2):
        pq.write_table(pa.table({"image": [png(number)]}), file)
        assert read_bytes(f"{file}#image:0") == png(number)


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path)):
        with pytest.raises(PictureError, match="is not a regular file"):
            read_bytes(place)


def test_an_address_that_leads_to_a_machines_own_services_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    for host in ("169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "100.100.100.200"):
        with pytest.raises(PictureError, match="where a machine keeps facts about itself"):
            read_bytes(f"http://{host}/latest/meta-data")
    hosts = iter(["127.0.0.1", "169.254.169.254"])
    monkeypatch.setattr(reading, "_addresses", lambda _host: [next(hosts)])
    with pytest.raises(PictureError, match=r"moved.png leads to 169\.254"):
        read_bytes(f"{server}/moved.png")
