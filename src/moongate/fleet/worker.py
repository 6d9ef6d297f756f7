"""What a worker of a fleet does, wherever it runs: claim a job, do it, say how it ended, until no job is left."""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moongate.errors import FleetError, MoongateError, first_line
from moongate.fleet.queue import Claim, Queue

__all__ = ["Assignment", "Work", "serve"]

WATCH_EVERY_S = 0.5
"""How often a worker looks whether its job was paused or canceled, and whether its fleet is still there."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A job that a worker was given."""

    name: str
    settings: Mapping[str, Any]
    folder: Path
    """The folder of the fleet."""
    device: str
    """The device to compute on, such as `cuda:1`."""
    report: Callable[[int, int], None]
    """Takes the steps done and the number of all steps; may be called after each step."""


Work = Callable[[Assignment], Mapping[str, Any]]
"""What does a job and returns its result as plain JSON: a function of a module, or another value that can be pickled.
It is called again after an interruption, perhaps in another process on another computer, and then continues from what
it has written itself."""


def serve(queue: Queue, work: Work, *, names: Collection[str], worker: str, device: str) -> None:
    """Do jobs until there is none to claim. KeyboardInterrupt ends the job so that it can continue later.

    Args:
        queue: The jobs.
        work: What a job is.
        names: The jobs that may be claimed.
        worker: Name of this worker.
        device: The device of this worker.

    Raises:
        FleetError: This computer does not see the folder of the fleet.
    """
    if not queue.folder.is_dir():
        raise FleetError(
            f"{socket.gethostname()} does not see {queue.folder}. Choose a folder that all computers share."
        )
    while claim := queue.claim(names, worker=worker):
        with claim, _printed_to(queue.folder / "logs" / f"{claim.name}.log"):
            if not _perform(claim, work, device):
                return


def _perform(claim: Claim, work: Work, device: str) -> bool:
    """Do a job and say how it ended; return False if this worker is to end."""
    try:
        with _watched(claim):
            result = work(
                Assignment(
                    name=claim.name,
                    settings=claim.queue.settings(claim.name),
                    folder=claim.queue.folder,
                    device=device,
                    report=claim.report,
                )
            )
        claim.finish(result)
    except KeyboardInterrupt:
        return not claim.give_back()
    except (MoongateError, OSError) as error:
        claim.fail(str(error))
    except Exception as error:  # whatever one job raises, the others go on
        traceback.print_exc()
        claim.fail(f"{type(error).__name__}: {first_line(error)} The log has the details.")
    return True


@contextlib.contextmanager
def _watched(claim: Claim) -> Iterator[None]:
    """Interrupt the block, as SIGTERM does, once the job has been moved or the fleet has ended."""
    parent, over = multiprocessing.parent_process(), threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_EVERY_S):
            if not claim.holds or (parent is not None and not parent.is_alive()):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Append what is printed to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", errors="backslashreplace") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield
