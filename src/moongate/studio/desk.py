"""The desk: one worker process that keeps a model loaded and answers what pages ask.

No page waits for it, and a crash in it takes nothing else along: it is started again with the next question. Questions
are answered one after the other, in the order in which they were asked.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moongate import errors
from moongate.errors import MoongateError, StudioError

__all__ = ["Desk"]

MAX_ANSWER_BYTES = 50_000_000
"""Longest line that the worker may write; answers name files of pictures and do not hold them."""
STOPPED_AFTER_S = 5


@dataclass(kw_only=True)
class Desk:
    """Asks the worker, `python -m moongate.studio.worker`; see `moongate.studio.worker.ANSWERS` for what it knows."""

    setup: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `moongate.studio.worker.bench.Setup`."""
    _process: asyncio.subprocess.Process | None = field(default=None, init=False, repr=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _latest: dict[str, object] = field(default_factory=dict, init=False, repr=False)

    async def ask(self, kind: str, *, replaces: str | None = None, **arguments: Any) -> Any:
        """Return what the worker answers.

        Args:
            kind: One of `moongate.studio.worker.ANSWERS`.
            replaces: A name for questions of which only the latest counts, such as those of one slider: an earlier one
                of this name that the worker has not begun is not asked anymore.
            arguments: What the question takes, as plain JSON.

        Raises:
            MoongateError: What the worker raised, with its class.
            StudioError: The worker ended before it answered; the next question starts another.
            asyncio.CancelledError: A later question replaced this one.
        """
        me = object()
        if replaces is not None:
            self._latest[replaces] = me
        question = json.dumps({"kind": kind, "arguments": arguments}).encode() + b"\n"

        async def answer() -> Any:
            async with self._turn:
                if replaces is not None:
                    if self._latest.get(replaces) is not me:
                        raise asyncio.CancelledError
                    del self._latest[replaces]  # it begins; pages that are gone leave nothing here
                return await self._exchange(question)

        answering = asyncio.create_task(answer())
        answering.add_done_callback(_looked_at)
        return await asyncio.shield(answering)  # a page that is closed must not end the worker for all others

    async def close(self) -> None:
        """Let the worker end."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), STOPPED_AFTER_S)
            return
        self._process = process
        self._kill()

    async def _exchange(self, question: bytes) -> Any:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            await process.stdin.drain()
            if line := await process.stdout.readline():
                message = json.loads(line)
                if "error" in message:
                    raise _error(message["error"], message["text"])
                return message["answer"]
        except (OSError, ValueError) as error:
            if isinstance(error, MoongateError):
                raise
            self._kill()
        status = await process.wait()
        raise StudioError(
            f"The process that computes for the studio ended before it answered (exit status {status}), perhaps "
            "because memory ran out. Try again; it is started again."
        )

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "moongate.studio.worker", json.dumps(dict(self.setup))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_ANSWER_BYTES,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _looked_at(answering: asyncio.Task[Any]) -> None:
    """Take note of an error that nobody waits for anymore."""
    if not answering.cancelled():
        answering.exception()


def _error(name: str, text: str) -> MoongateError:
    kind: Any = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MoongateError):
        return kind(text)
    return StudioError(f"{name}: {text}")
