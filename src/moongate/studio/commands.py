"""Commands of the shell that the studio starts: each a process of its own, which survives the server.

A folder keeps for each what was started (`NAME.json`), its process (`NAME.process`), what it printed (`NAME.log`), how
it ended (`NAME.ended`), and a lock, which the process holds as long as it lives, however it ends. Commands that take
turns wait for one another in their processes, so that they come to their turns without a server too.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moongate.files import file_name, free_path, try_lock, write_atomically
from moongate.texts import parse_json, read_text

__all__ = ["INTERRUPTED", "Command", "Commands", "Started"]

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ALIVE = ("waiting", "running")
LOOK_EVERY_S = 0.5
"""How often a command looks whether its turn has come."""
STARTING_S = 30
"""A process has this long to take its lock; a loaded computer takes seconds to start Python."""
INTERRUPTED = 130
"""Exit status of a command that was stopped and has saved its state."""
LAST_BYTES = 20_000
"""What is read of the end of a log."""
FAILURE_CHARACTERS = 400
"""What pages show of it when a command has failed."""


@dataclass(frozen=True)
class Command:
    """A command of Moongate, as words after `moongate`."""

    words: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as one types it in a shell."""
        return shlex.join(["moongate", *self.words])


@dataclass(frozen=True, kw_only=True)
class Started:
    """A command that was started."""

    name: str
    command: Command
    began: float
    """Time in seconds since 1970."""
    state: State
    status: int | None
    """Its exit status; None as long as it runs, and when it was killed."""
    log: Path
    takes_turns: bool = False
    """Whether it waits until those that take turns and were started before it have ended."""

    @property
    def printed(self) -> str:
        """The end of what it printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LAST_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    @property
    def failure(self) -> str:
        """What a failed command printed last; empty in every other state."""
        if self.state != "failed":
            return ""
        return self.printed[-FAILURE_CHARACTERS:].strip() or "it printed nothing."


@dataclass(kw_only=True)
class Commands:
    """All commands that were started, as files of a folder."""

    folder: Path
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False, repr=False)

    def start(
        self,
        command: Command,
        *,
        name: str,
        takes_turns: bool = False,
        environment: dict[str, str] | None = None,
    ) -> Started:
        """Start a command that goes on whatever happens to this process.

        Args:
            command: What to do.
            name: What it is called, as far as this name is free.
            takes_turns: Whether it waits until those that take turns and were started before it have ended.
            environment: Variables that it sees in addition to those of this process.

        Raises:
            OptionError: The folder cannot be written.
        """
        place = free_path(self.folder / f"{file_name(name)}.json")
        record = {"words": command.words, "began": time.time(), "takes_turns": takes_turns}
        write_atomically(place, json.dumps(record).encode())
        with place.with_suffix(".log").open("ab") as log:
            self._children[place.stem] = subprocess.Popen(
                [sys.executable, "-m", "moongate.studio.detached", str(self.folder), place.stem],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
            )
        return self.look(place.stem)

    def all(self) -> list[Started]:
        """Return all that were started, the latest first."""
        found = []
        for file in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append(self.look(file.stem))
        return sorted(found, key=lambda each: -each.began)

    def look(self, name: str) -> Started:
        """Return what has become of a command.

        Raises:
            OSError: None of that name was started.
            ValueError: Its file is damaged.
        """
        record = parse_json(read_text(self.folder / f"{name}.json"))
        words = record["words"]
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise ValueError("its words are no list of texts")
        return Started(
            name=name,
            command=Command(tuple(words)),
            began=float(record["began"]),
            state=self._state(name, float(record["began"])),
            status=(self._read(name, "ended") or {}).get("status"),
            log=self.folder / f"{name}.log",
            takes_turns=record.get("takes_turns") is True,
        )

    def wait_for_turn(self, name: str) -> None:
        """Return when it is a command's turn: at once, unless it takes turns and an earlier one that does is alive.

        Raises:
            OSError: None of that name was started.
            ValueError: Its file is damaged.
        """
        own = self.look(name)
        if not own.takes_turns:
            return
        earlier = [
            each.name for each in self.all() if each.takes_turns and (each.began, each.name) < (own.began, own.name)
        ]
        for other in earlier:
            while self.look(other).state in ALIVE:
                time.sleep(LOOK_EVERY_S)

    def _state(self, name: str, began: float) -> State:
        child = self._children.get(name)
        has_ended = child is not None and child.poll() is not None  # waited for, so that it does not stay a zombie
        if (ended := self._read(name, "ended")) is not None:
            states: dict[Any, State] = {0: "finished", INTERRUPTED: "stopped"}
            return states.get(ended["status"], "failed")
        if (process := self._read(name, "process")) is None:
            is_starting = not has_ended and (child is not None or time.time() - began < STARTING_S)
            return "running" if is_starting else "failed"
        if (lock := try_lock(self.folder / f"{name}.lock")) is None:
            return "waiting" if process.get("waits") else "running"
        lock.release()
        ended = self._read(name, "ended")  # it may just have ended
        return "failed" if ended is None else self._state(name, began)

    def _read(self, name: str, suffix: str) -> dict[str, Any] | None:
        try:
            content = parse_json(read_text(self.folder / f"{name}.{suffix}"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None
