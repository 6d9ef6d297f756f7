"""Do many jobs on the devices of this computer or on a Ray cluster, and lose nothing when one of them dies.

All that workers share is a folder of files (`moongate.fleet.queue`): a fleet may be killed at any moment and started
again, and several fleets may share one folder. What a job does is a function of the caller; the command `moongate
fleet` trains and evaluates concepts.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from moongate.errors import FleetError, OptionError
from moongate.fleet.processes import Processes
from moongate.fleet.queue import STATES, Job, Queue, Status, check_names
from moongate.fleet.worker import Assignment, Work

__all__ = ["STATES", "Assignment", "Job", "Queue", "Status", "Work", "check_names", "run"]

MAX_DEATHS = 3
"""A job during which this many workers have died is given up: it may need more memory than there is."""
LOOK_EVERY_S = 0.3
"""How often the fleet looks at the folder and at its workers."""


class Worker(Protocol):
    """A worker that was started."""

    @property
    def name(self) -> str: ...

    def is_alive(self) -> bool: ...

    def failure(self) -> str:
        """Return why the worker ended; empty if it had nothing left to do."""
        ...

    def stop(self) -> None:
        """Ask it to end."""
        ...

    def join(self) -> None:
        """Wait until it has ended."""
        ...


class Crew(Protocol):
    """Where workers run."""

    def start(self, name: str, device: str) -> Worker: ...


def run(
    folder: Path,
    jobs: Sequence[Job],
    work: Work,
    *,
    devices: Sequence[str],
    ray: str | None = None,
    on_change: Callable[[Sequence[Status]], None] | None = None,
) -> list[Status]:
    """Do all jobs that are not done yet, and return how each ended.

    A job whose worker dies is continued by another one. Failed jobs are tried again when the fleet is started again.

    Args:
        folder: The folder of the fleet, which may hold its earlier jobs; see `moongate.fleet.queue`.
        jobs: What to do, in this order.
        work: Does one job; it is sent to each worker once.
        devices: One for each worker: `["cuda:0", "cuda:1"]`, or `["cpu", "cpu"]` for two processes.
        ray: Address of a Ray cluster whose computers all see the folder; None runs the workers on this computer.
        on_change: Called with the status of every job when one has changed.

    Returns:
        The status of each job, in the order of `jobs`. A job that was canceled meanwhile is left out.

    Raises:
        OptionError: A name cannot be used, there is no device, a job is running, paused or done with other settings, or
            the cluster does not answer.
        FleetError: Workers end again and again before they have begun a job, or the cluster is gone.
        MissingLibrary: Ray is not installed.
    """
    check_names(jobs)
    if not devices:
        raise OptionError('There is no device, so no worker would do a job. Give one for each, such as ["cpu", "cpu"].')
    queue = Queue(folder.absolute())
    names = {job.name for job in jobs}
    crew: Crew
    if ray:
        from moongate.fleet.cluster import Cluster, connect

        connect(ray)
        crew = Cluster(queue=queue, work=work, names=names)
    else:
        crew = Processes(queue=queue, work=work, names=names, threads=_threads(len(devices)))
    watch = _Watch(queue=queue, names=[job.name for job in jobs], on_change=on_change)
    team = _Team(queue=queue, crew=crew, devices=devices)
    try:
        for job in jobs:
            queue.add(job)
        while open_jobs := [status for status in watch.look() if status.state in ("queued", "running")]:
            team.tend(open_jobs)
            time.sleep(LOOK_EVERY_S)
    finally:
        team.dismiss()
    return watch.look()


def _threads(workers: int) -> int | None:
    """Return the threads for each worker, unless the environment sets them."""
    return None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // workers)


@dataclass(kw_only=True)
class _Watch:
    """Reads the folder."""

    queue: Queue
    names: Sequence[str]
    on_change: Callable[[Sequence[Status]], None] | None
    last: Mapping[str, Status] = field(default_factory=dict)

    def look(self) -> list[Status]:
        """Return the status of each job, and tell the caller if one has changed."""
        states, found = self.queue.states(), dict[str, Status]()
        for name in self.names:
            state, before = states.get(name) or self.queue.state(name), self.last.get(name)
            if state is None:
                continue  # canceled
            is_over = before is not None and before.state == state and state in ("done", "failed")
            found[name] = before if before and is_over else self.queue.status(name, state)
        if self.on_change and found != self.last:
            self.on_change(list(found.values()))
        self.last = found
        return list(found.values())


@dataclass(kw_only=True)
class _Team:
    """The workers of a fleet, one on each device, and those that have died."""

    queue: Queue
    crew: Crew
    devices: Sequence[str]
    deaths: Counter[str] = field(default_factory=Counter)
    """How many workers have died, by the job that they had; by the device if they had none."""

    def __post_init__(self) -> None:
        self.workers: list[Worker | None] = [None] * len(self.devices)

    def tend(self, open_jobs: Sequence[Status]) -> None:
        """Notice workers that have ended, and start as many as there are jobs for.

        Raises:
            FleetError: A worker has died again before it had a job.
        """
        for place, worker in enumerate(self.workers):
            if worker and not worker.is_alive():
                self.workers[place] = None
                if failure := worker.failure():
                    self._count(worker.name, self.devices[place], failure)
        alive = {worker.name for worker in self.workers if worker}
        busy = {job.worker for job in open_jobs if job.state == "running"} & alive
        free = sum(job.state == "queued" for job in open_jobs)
        if alive == busy:  # a worker that begins may itself claim what was abandoned
            left = [job.name for job in open_jobs if job.state == "running" and job.worker not in alive]
            free += sum(map(self.queue.is_abandoned, left))
        for place, device in enumerate(self.devices):
            if self.workers[place] is None and free > len(alive) - len(busy):
                worker = self.crew.start(f"{device} {secrets.token_hex(3)}", device)
                self.workers[place] = worker
                alive.add(worker.name)

    def dismiss(self) -> None:
        """Let all workers save their state and end."""
        workers = [worker for worker in self.workers if worker]
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()

    def _count(self, worker: str, device: str, failure: str) -> None:
        """Count the death of a worker, and give up its job if it was not the first."""
        states = self.queue.states()
        held = [name for name, state in states.items() if state == "running"]
        held = [name for name in held if self.queue.status(name, "running").worker == worker]
        for name in held or [device]:
            self.deaths[name] += 1
            if self.deaths[name] < MAX_DEATHS:
                continue
            times = f"{MAX_DEATHS} times ({failure})"
            if not held:
                raise FleetError(f"The worker on {device} ended {times} before it had a job. See what it printed.")
            self.queue.fail(name, f"Its worker ended {times}, perhaps because memory ran out. See the job's log.")
