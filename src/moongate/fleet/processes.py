"""Workers that are processes of this computer."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess

from moongate.fleet.queue import Queue
from moongate.fleet.worker import Work, serve

__all__ = ["Processes"]

STOPPED_AFTER_S = 120
"""A process that has not saved its state by then, after it was asked to stop, is killed."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process that was started."""

    name: str
    process: SpawnProcess

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def failure(self) -> str:
        """Return how the process ended; empty if it had nothing left to do."""
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit status {code}" if code else ""
        return f"signal {signal.Signals(-code).name}"

    def stop(self) -> None:
        """Let the process save the state of its job and end."""
        self.process.terminate()

    def join(self) -> None:
        """Wait until it has ended."""
        self.process.join(STOPPED_AFTER_S)
        self.process.kill()


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Starts workers on this computer."""

    queue: Queue
    work: Work
    names: Collection[str]
    threads: int | None
    """Threads of each worker on the CPU; None leaves them to the environment."""

    def start(self, name: str, device: str) -> Worker:
        """Start a worker. It is not a daemon, because its training may need further processes."""
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(self.queue, self.work, self.names, name, device, self.threads)
        )
        process.start()
        return Worker(name=name, process=process)


def _serve(queue: Queue, work: Work, names: Collection[str], name: str, device: str, threads: int | None) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal reaches the fleet alone, which then stops its workers
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if threads:
        import torch

        torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):
        serve(queue, work, names=names, worker=name, device=device)
