"""Pages as a browser gets them, without one: NiceGUI's simulated user, in an event loop of the test's own."""

import asyncio
import gc
import json
import logging
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nicegui import Client
from nicegui.testing import User
from nicegui.testing.user_simulation import user_simulation

from moongate.studio import compose, photos, teach, widgets
from moongate.studio.app import register
from moongate.studio.desk import Desk
from moongate.studio.places import Places
from moongate.studio.state import Studio
from moongate.studio.worker import answer
from moongate.studio.worker.bench import Bench, Setup
from studio.browser import Page, Server, chromium

AT_THE_END = ("reconnect_timeout", "Could not cancel")
"""What NiceGUI logs when the simulation ends while a page is still busy, on a slow computer."""
Visit = Callable[[Callable[[User], Coroutine[Any, Any, None]]], None]


@dataclass(kw_only=True)
class Near(Desk):
    """A desk whose questions are answered in a thread of this process, because starting a worker takes seconds.

    Questions and answers go through JSON as they do between processes, which `test_desk.py` tests.
    """

    bench: Bench

    async def close(self) -> None:
        async with self._turn:
            """Wait for the answer to a question that nobody waits for anymore."""

    async def _exchange(self, question: bytes) -> Any:
        asked = json.loads(question)

        def answered() -> str:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return json.dumps(answer(self.bench, asked["kind"], asked["arguments"]))

        return json.loads(await asyncio.to_thread(answered))


@pytest.fixture(scope="session")
def bench(tiny_folder: Path) -> Bench:
    """What all tests of pages ask: it keeps the tiny model loaded."""
    return Bench(Setup(model=str(tiny_folder), device="cpu"))


@pytest.fixture
def studio(tmp_path: Path, tiny_folder: Path, bench: Bench) -> Studio:
    """A studio in a folder of its own, whose model is the tiny one."""
    places = Places.open(tmp_path / "studio")
    desks = Near(bench=bench), Near(bench=bench)
    return Studio(places=places, model=str(tiny_folder), device="cpu", desk=desks[0], lens=desks[1])


@pytest.fixture(scope="session")
def _light_collector() -> None:
    """Let no collection of garbage look at what is imported by now: NiceGUI's simulation asks for two each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pages look every tenth of a second whether something has changed."""
    for module, name in ((widgets, "LOOK"), (compose, "LOOK"), (teach, "SYNC"), (photos, "SYNC")):
        monkeypatch.setattr(module, f"{name}_EVERY_S", 0.1)


@pytest.fixture
def visit(
    studio: Studio, caplog: pytest.LogCaptureFixture, _light_collector: None, _quick_looks: None
) -> Iterator[Visit]:
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio with the demo's concepts, as a process of its own."""
    server = Server(tmp_path_factory.mktemp("studio"), "--demo")
    try:
        yield server
    finally:
        server.stop()
