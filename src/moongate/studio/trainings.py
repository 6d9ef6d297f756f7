"""The queue of trainings: a fleet folder as `moongate fleet` reads it, and the process that works on it.

The studio writes the jobs and starts `moongate fleet`, which does those that are queued then; when it has ended and
others were queued meanwhile, the studio starts another. Pausing, resuming and canceling move the files of jobs.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moongate.errors import MoongateError, OptionError, warn
from moongate.files import free_path, write_atomically
from moongate.fleet import Job, Queue, Status, check_names
from moongate.studio.commands import Command, Commands, Started
from moongate.studio.places import CONCEPT, Places
from moongate.texts import parse_json, read_text

__all__ = ["Trainings"]

TEND_EVERY_S = 1.0
REFUSED = 2
"""Exit status of a fleet that could not do its jobs; one that was killed has none, and its jobs go on."""
MESSAGE_CHARACTERS = 600
LIST = ".list"
FLEET = "fleet"
"""What the started `moongate fleet` is called among the commands."""


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """The jobs of the fleet in `concepts/jobs`."""

    places: Places
    commands: Commands
    device: str | None = None

    @property
    def queue(self) -> Queue:
        """The jobs as files."""
        return Queue(self.places.fleet)

    def all(self) -> list[Status]:
        """Return how far each job is, those that run first, then those that wait, then the others."""
        order = {state: place for place, state in enumerate(("running", "queued", "paused", "failed", "done"))}
        found = [self.queue.status(name, state) for name, state in self.queue.states().items()]
        return sorted(found, key=lambda each: order[each.state])

    def add(self, entry: Mapping[str, Any]) -> None:
        """Queue a training.

        Args:
            entry: A job as in the file of `moongate fleet`: its name, concepts, and options of `train`.

        Raises:
            OptionError: The name cannot be used, or a concept or a job that is not done has it already.
        """
        name = entry["name"]
        job = Job(name=name, settings={"job": dict(entry), "folder": os.path.relpath(self._lists, self.places.fleet)})
        check_names([job])
        if obstacle := self.obstacle(name):
            raise OptionError(obstacle)
        (self.places.fleet / "done" / f"{name}.json").unlink(missing_ok=True)  # its concept was deleted or renamed
        self.queue.add(job)

    def obstacle(self, name: str) -> str:
        """Return why no training can be added under a name; empty if one can."""
        if self.queue.state(name) in ("queued", "running", "paused"):
            return f"A training called {name!r} is in the queue already. Choose another name, or cancel it."
        if (self.places.concepts / f"{name}{CONCEPT}").exists():
            return f"There is already a concept called {name!r}. Choose another name."
        return ""

    def pause(self, name: str) -> None:
        """Let a job save its state and stop, or keep it from beginning."""
        self._move(name, ("running", "queued"), "paused")

    def resume(self, name: str) -> None:
        """Let a paused or failed job go on."""
        self._move(name, ("paused", "failed"), "queued")

    def cancel(self, name: str) -> None:
        """Take a job out of the queue; what it has made stays."""
        for state in ("running", "queued", "paused", "failed"):
            with contextlib.suppress(FileNotFoundError):
                (self.places.fleet / state / f"{name}.json").unlink()

    def command(self, entry: Mapping[str, Any]) -> Command:
        """Return what one would type to train this job alone."""
        return Command(_training_words(entry, self.places.concepts))

    def entry(self, name: str, state: str) -> Mapping[str, Any] | None:
        """Return a job in this state as it was added; None if it has moved or is of another kind."""
        try:
            content = parse_json(read_text(self.places.fleet / state / f"{name}.json"))
            job = dict(content["job"])
            return job if job.get("name") == name else None  # the fleet knows it by its own name
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def tend(self) -> None:
        """Start `moongate fleet` if jobs wait and none works on them; fail those that it has refused."""
        fleets = [each for each in self.commands.all() if each.name.startswith(FLEET)]
        if any(each.state == "running" for each in fleets):
            return
        states = self.queue.states()
        waiting = [name for name, state in states.items() if state == "queued"]
        waiting += [name for name, state in states.items() if state == "running" and self.queue.is_abandoned(name)]
        if fleets and fleets[0].status == REFUSED:
            refused = self._listed(fleets[0])
            for name in set(waiting) & set(refused):
                self._fail(name, states[name], fleets[0].printed)
            waiting = [name for name in waiting if name not in refused]
            # A job that is queued again from now on was not refused: somebody wants it to be tried again.
            self._list_of(fleets[0]).unlink(missing_ok=True)
        entries = [self.entry(name, states[name]) for name in waiting]
        if found := [entry for entry in entries if entry is not None]:
            self._start(found)

    @contextlib.asynccontextmanager
    async def tended(self) -> AsyncIterator[None]:
        """Look after the queue until the block ends."""

        async def look() -> None:
            while True:
                try:
                    await asyncio.to_thread(self.tend)
                except (MoongateError, OSError) as error:
                    warn(f"The queue of trainings cannot be read: {error}")
                await asyncio.sleep(TEND_EVERY_S)

        task = asyncio.create_task(look())
        try:
            yield
        finally:
            task.cancel()

    @property
    def _lists(self) -> Path:
        """The folder of the files of jobs that `moongate fleet` was started with."""
        return self.places.commands

    def _start(self, entries: list[Mapping[str, Any]]) -> None:
        file = free_path(self._lists / f"jobs{LIST}")
        write_atomically(file, json.dumps(entries, indent=1).encode())
        words = ["fleet", str(file), "--out", str(self.places.concepts), "--workers", "1"]
        words += ["--device", self.device] if self.device else []
        self.commands.start(Command(tuple(words)), name=FLEET)

    def _listed(self, fleet: Started) -> list[str]:
        """Return the names of the jobs that a fleet was started with."""
        try:
            return [str(entry["name"]) for entry in parse_json(read_text(self._list_of(fleet)))]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def _list_of(self, fleet: Started) -> Path:
        """Return the file of jobs that a fleet was started with."""
        return self._lists / f"{Path(*fleet.command.words[1:2]).stem}{LIST}"

    def _fail(self, name: str, state: str, printed: str) -> None:
        """Mark a job as failed that a fleet has refused, with the last lines that it printed."""
        said = " ".join(printed.split())[-MESSAGE_CHARACTERS:] or "moongate fleet ended without a message."
        with contextlib.suppress(FileNotFoundError):
            self.queue.write(replace(self.queue.status(name, state), error=said))
            self.queue.move(name, state, "failed")

    def _move(self, name: str, before: tuple[str, ...], after: str) -> None:
        for state in before:
            with contextlib.suppress(FileNotFoundError):
                self.queue.move(name, state, after)
                return
        raise OptionError(f"{name} is not {' or '.join(before)} anymore. Look at its state again.")


def _training_words(entry: Mapping[str, Any], out: Path) -> tuple[str, ...]:
    """Return the words of `moongate train` for a job."""
    words = ["train"]
    for subject in entry["concepts"]:
        words.append(str(subject["pictures"]))
    for subject in entry["concepts"]:
        words += ["--category", subject["category"]]
        words += ["--token", subject["token"]] if subject.get("token") else []
    for name, value in entry.items():
        if name not in ("name", "concepts", "evaluate"):
            words += _option(name.replace("_", "-"), value)
    return (*words, "--out", str(out / f"{entry['name']}{CONCEPT}"))


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
