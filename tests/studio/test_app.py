from collections.abc import Callable
from typing import Any

import pytest
from nicegui.testing import User

from moongate.errors import OptionError
from moongate.studio.app import PAGES, listen
from moongate.studio.state import Studio


def test_every_page_opens_and_leads_to_every_other(visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        for page in PAGES:
            await user.open(page.PATH)
            for other in PAGES:
                await user.should_see(other.TITLE)

    visit(look)


def test_a_taken_port_is_one_sentence_and_so_is_one_that_does_not_exist() -> None:
    first = listen("127.0.0.1", _free_port())
    try:
        with pytest.raises(OptionError, match=r"cannot listen on 127.0.0.1, port \d+ \(.*\). Choose another --port"):
            listen("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()
    for port in (0, 70_000, -1):
        with pytest.raises(OptionError, match=f"--port {port} is not a port"):
            listen("127.0.0.1", port)
    with pytest.raises(OptionError, match="cannot listen on no.such.host.invalid"):
        listen("no.such.host.invalid", 8080)


def test_files_are_handed_out_as_pictures_or_to_be_saved(studio: Studio, visit: Callable[..., None]) -> None:
    (studio.places.gallery / "a.png").write_bytes(b"png")
    (studio.places.concepts / "a.html").write_text("<script>alert(1)</script>")
    (studio.places.root.parent / "secret").write_text("beside the studio's folder")

    async def look(user: User) -> None:
        shown: Any = await user.http_client.get(studio.places.address(studio.places.gallery / "a.png"))
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        saved = await user.http_client.get(studio.places.address(studio.places.concepts / "a.html"))
        assert saved.headers["content-disposition"].startswith("attachment")
        for path in ("/files/0/..%2fsecret", "/files/0/%2e%2e/secret", "/files/9/a.png", "/files/0//etc/passwd"):
            assert (await user.http_client.get(path)).status_code == 404, path

    visit(look)


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
