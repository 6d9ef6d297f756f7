import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from moongate.errors import OptionError, StudioError, TokenError
from moongate.studio.desk import Desk


def at_desk(folder: Path, visit: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def visiting() -> None:
        desk = Desk(setup={"model": str(folder), "device": "cpu"})
        try:
            await visit(desk)
        finally:
            await desk.close()

    asyncio.run(visiting())


def test_the_worker_answers_with_results_and_with_errors_of_the_library(tiny_folder: Path) -> None:
    async def visit(desk: Desk) -> None:
        assert await desk.ask("check_token", token="<bear>") is True
        with pytest.raises(TokenError, match="'bear' is already a word"):
            await desk.ask("check_token", token="bear")
        with pytest.raises(OptionError, match="knows no question 'nonsense'"):
            await desk.ask("nonsense")
        with pytest.raises(StudioError, match="TypeError: .*unexpected keyword"):
            await desk.ask("check_token", token="<bear>", color="red")

    at_desk(tiny_folder, visit)


def test_a_worker_that_is_killed_is_an_error_and_the_next_question_starts_another(tmp_path: Path) -> None:
    async def visit(desk: Desk) -> None:
        with pytest.raises(OptionError):
            await desk.ask("nonsense")
        assert desk._process is not None
        os.kill(desk._process.pid, signal.SIGKILL)
        with pytest.raises(StudioError, match="ended before it answered"):
            await desk.ask("nonsense")
        with pytest.raises(OptionError):
            await desk.ask("nonsense")

    at_desk(tmp_path, visit)


def test_a_later_question_of_one_name_takes_the_place_of_those_that_wait(tmp_path: Path) -> None:
    async def visit(desk: Desk) -> None:
        asked = [asyncio.create_task(desk.ask(f"kind {n}", replaces="typing")) for n in range(4)]
        first, *replaced, last = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in replaced] == [asyncio.CancelledError] * 2
        assert "'kind 3'" in str(last)
        assert isinstance(first, asyncio.CancelledError | OptionError)
        assert not desk._latest

    at_desk(tmp_path, visit)
