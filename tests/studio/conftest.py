"""Pages as a browser gets them, without one: NiceGUI's simulated user, in an event loop of the test's own."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from nicegui import Client
from nicegui.testing import User
from nicegui.testing.user_simulation import user_simulation

from moongate.studio.app import register
from moongate.studio.desk import Desk
from moongate.studio.places import Places
from moongate.studio.state import Studio
from studio.browser import Page, chromium

AT_THE_END = ("reconnect_timeout", "Could not cancel")
"""What NiceGUI logs when the simulation ends while a page is still busy, on a slow computer."""
Visit = Callable[[Callable[[User], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def studio(tmp_path: Path, tiny_folder: Path) -> Studio:
    """A studio in a folder of its own, whose model is the tiny one."""
    setup = {"model": str(tiny_folder), "device": "cpu"}
    places = Places.open(tmp_path / "studio")
    return Studio(places=places, model=str(tiny_folder), device="cpu", desk=Desk(setup=setup), lens=Desk(setup=setup))


@pytest.fixture
def visit(studio: Studio, caplog: pytest.LogCaptureFixture) -> Iterator[Visit]:
    """Run a coroutine that gets a user of the studio; errors that a page logs fail the test."""

    async def visiting(doing: Callable[[User], Coroutine[Any, Any, None]]) -> None:
        try:
            async with user_simulation(root=None) as user:
                register(studio)
                await doing(user)
                Client.page_routes.clear()  # else NiceGUI forgets the modules of the pages, and moongate with them
        finally:
            Client.page_routes.clear()
            await studio.desk.close()
            await studio.lens.close()

    def run(doing: Callable[[User], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(visiting(doing))

    yield run
    errors = [each.getMessage() for each in caplog.get_records("call") if each.levelno >= logging.ERROR]
    assert [text for text in errors if not any(part in text for part in AT_THE_END)] == []


async def until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    """Wait until something has happened, however slow the computer is."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A browser window that the tests of a module share."""
    with chromium() as page:
        yield page
