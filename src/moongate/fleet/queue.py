"""The folder of a fleet: each job is a file, and the folder that the file is in is the job's state.

```
queued/NAME.json    running/    paused/    done/    failed/     what to do; never changed, only moved
status/NAME.json                                                how far it is, its errors, its result
locks/NAME.lock                                                 held by the worker that runs the job
logs/NAME.log                                                   what it printed
```

A worker takes the lock of a job, then moves its file to `running`. The system frees the lock when the worker ends,
however that happens; a running job whose lock is free may therefore be claimed by anyone. Any program may watch the
folder, and change it by moving files: to `paused`, back to `queued`, or away to cancel a job. A worker whose job is no
longer in `running` stops it. The module knows nothing of what a job does.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

from moongate.errors import FleetError, OptionError
from moongate.files import NAME_BYTES, file_name, try_lock, write_atomically
from moongate.texts import parse_json

__all__ = ["STATES", "Claim", "Job", "Queue", "Status", "check_names"]

STATES = ("queued", "running", "paused", "done", "failed")
REPORT_EVERY_S = 1.0
"""Shortest time between two writings of a status."""
KINDS: Mapping[str, Any] = {
    "worker": str,
    "process": str,
    "done": int,
    "total": int,
    "seconds": int | float,
    "error": str,
    "result": dict,
}
"""What is read of the file of a status, which anyone may write."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to do once."""

    name: str
    """A file name without an ending; no two jobs of a fleet have the same."""
    settings: Mapping[str, Any]
    """What to do, as plain JSON."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a job is."""

    name: str
    state: str
    """One of `STATES`."""
    worker: str = ""
    """The worker that has the job, or had it last."""
    process: str = ""
    """The computer and the process of that worker."""
    done: int = 0
    """Steps done so far, of `total`."""
    total: int = 0
    seconds: float = 0.0
    """Time that all workers have spent on the job."""
    error: str | None = None
    """Why it failed."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the work returned."""

    @property
    def share(self) -> float:
        """What is done of the job, from 0 to 1; not 1 before it has ended, because more may follow the last step."""
        if self.state in ("done", "failed"):
            return 1.0
        return min(0.99, self.done / self.total) if self.total else 0.0


def check_names(jobs: Iterable[Job]) -> None:
    """Raise OptionError for a name that is not a file name, or that two jobs have."""
    seen = dict[str, str]()
    for job in jobs:
        if not re.fullmatch(r"\w[\w.-]*", job.name) or len(job.name.encode()) > NAME_BYTES:
            raise OptionError(
                f"The job {job.name[:80]!r} has a name that cannot be a file name. Write it with letters, digits and "
                f"hyphens, such as {file_name(job.name)!r}."
            )
        if earlier := seen.get(job.name.casefold()):
            raise OptionError(f"Two jobs are called {earlier!r} and {job.name!r}. Give each a name of its own.")
        seen[job.name.casefold()] = job.name


@dataclass(frozen=True)
class Queue:
    """All jobs of a fleet, as files."""

    folder: Path

    def add(self, job: Job) -> None:
        """Queue a job, unless it is there already; one that failed is queued again.

        Other settings replace those of a job that is queued or has failed.

        Raises:
            OptionError: The job is running, paused or done with other settings, or the folder cannot be written.
        """
        lock = try_lock(self._lock(job.name))
        try:
            state = self.state(job.name)
            before, now = self._settings(state or "queued", job.name), _plain(job.settings)
            if state in ("running", "paused", "done") and before not in (None, now):
                raise OptionError(
                    f"The job {job.name!r} is {state} in {self.folder} with other settings. Give it another name; or "
                    f"delete {self._file(state, job.name)} and what the job has made, to begin it again."
                )
            if lock is None or state in ("running", "paused", "done"):
                return  # without the lock: a worker has just begun it
            if before != now:
                write_atomically(self._file(state or "queued", job.name), json.dumps(now).encode())
            if state == "failed":
                self.move(job.name, "failed", "queued")
        finally:
            if lock:
                lock.release()

    def state(self, name: str) -> str | None:
        """Return the state of a job; None if there is no such job."""
        return next((state for state in STATES if self._file(state, name).exists()), None)

    def states(self) -> dict[str, str]:
        """Return the states of all jobs by name."""
        return {name: state for state in STATES for name in self._names(state)}  # the way that a job moves meanwhile

    def status(self, name: str, state: str) -> Status:
        """Return how far a job in this state is."""
        try:
            content = parse_json((self.folder / "status" / f"{name}.json").read_text(encoding="utf-8"))
            known = {key: content[key] for key, kind in KINDS.items() if isinstance(content.get(key), kind)}
            return Status(name=name, state=state, **known)
        except (OSError, ValueError, AttributeError):  # none yet, or a file that somebody else wrote
            return Status(name=name, state=state)

    def claim(self, names: Collection[str], *, worker: str) -> "Claim | None":
        """Claim the oldest job that is queued, or that a dead worker has left; None if there is none.

        Args:
            names: The jobs that may be claimed.
            worker: Name of the worker, for the status.
        """
        for state in ("queued", "running"):
            for name in self._names(state):
                if name not in names or (lock := try_lock(self._lock(name))) is None:
                    continue
                try:
                    self.move(name, state, "running")
                    return Claim(queue=self, lock=lock, name=name, worker=worker)
                except BaseException as error:  # the lock would be held as long as this process lives
                    lock.release()
                    if not isinstance(error, FileNotFoundError):  # which says that another worker was faster
                        raise
        return None

    def is_abandoned(self, name: str) -> bool:
        """Return whether the worker of a running job has ended."""
        if lock := try_lock(self._lock(name)):
            lock.release()
        return lock is not None

    def fail(self, name: str, error: str) -> None:
        """Mark a job as failed that a dead worker has left, unless another worker has it by now."""
        if (lock := try_lock(self._lock(name))) is None:
            return
        try:
            self.write(replace(self.status(name, "failed"), error=error))
            self.move(name, "running", "failed")
        except FileNotFoundError:  # it was moved meanwhile
            pass
        finally:
            lock.release()

    def settings(self, name: str) -> Mapping[str, Any]:
        """Return the settings of a running job.

        Raises:
            FleetError: Its file holds none.
        """
        settings = self._settings("running", name)
        if not isinstance(settings, dict):
            raise FleetError(f"{self._file('running', name)} holds no settings. Queue the job again.")
        return settings

    def move(self, name: str, before: str, after: str) -> None:
        """Move the file of a job from one state to another. Raises FileNotFoundError if it is not there."""
        path = self._file(after, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file(before, name).rename(path)

    def write(self, status: Status) -> None:
        """Write how far a job is."""
        content = {key: value for key, value in asdict(status).items() if key not in ("name", "state")}
        write_atomically(self.folder / "status" / f"{status.name}.json", json.dumps(content, indent=1).encode())

    def _settings(self, state: str, name: str) -> Any:
        try:
            return parse_json(self._file(state, name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _names(self, state: str) -> list[str]:
        def age(path: Path) -> tuple[int, str]:
            with contextlib.suppress(OSError):
                return path.stat().st_mtime_ns, path.stem
            return 0, path.stem  # it has just been moved

        return [path.stem for path in sorted((self.folder / state).glob("*.json"), key=age)]

    def _file(self, state: str, name: str) -> Path:
        return self.folder / state / f"{name}.json"

    def _lock(self, name: str) -> Path:
        return self.folder / "locks" / f"{name}.lock"


@dataclass(kw_only=True)
class Claim:
    """A job that this process has claimed; at the end of the `with` block the claim is released."""

    queue: Queue
    lock: FileLock
    name: str
    worker: str

    def __post_init__(self) -> None:
        before = self.queue.status(self.name, "running")
        process = f"{socket.gethostname()}, process {os.getpid()}"
        self._status = replace(before, worker=self.worker, process=process, error=None)
        self._seconds, self._began, self._reported = before.seconds, time.monotonic(), time.monotonic()
        self.queue.write(self._status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.release()

    @property
    def holds(self) -> bool:
        """Whether the job is still to be run: nobody has paused or canceled it."""
        return (self.queue.folder / "running" / f"{self.name}.json").exists()

    def report(self, done: int, total: int) -> None:
        """Say how far the job is; often said, it is written once a second."""
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S or done == total or not self._status.total:
            self._reported = now
            self._write(done=done, total=total)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Mark the job as done."""
        self._end("done", result=result)

    def fail(self, error: str) -> None:
        """Mark the job as failed."""
        self._end("failed", error=error)

    def give_back(self) -> bool:
        """Queue the job again; return False if somebody has moved its file."""
        return self._end("queued")

    def _end(self, state: str, **changes: Any) -> bool:
        self._write(**changes)
        try:
            self.queue.move(self.name, "running", state)
        except FileNotFoundError:
            return False
        return True

    def _write(self, **changes: Any) -> None:
        seconds = round(self._seconds + time.monotonic() - self._began, 1)
        status = replace(self._status, seconds=seconds, **changes)
        self.queue.write(status)
        self._status = status  # not before: what cannot be written must not be in the next status, which says so


def _plain(settings: Mapping[str, Any]) -> Any:
    """Return settings as they are read back from their file."""
    return json.loads(json.dumps(dict(settings)))
