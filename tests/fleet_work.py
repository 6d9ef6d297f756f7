"""Work for fleets in tests: it counts to a number, keeps the count in a file, and may die or fail on the way."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moongate.errors import OptionError
from moongate.fleet import Assignment, Job, Queue, run


def count(assignment: Assignment) -> Mapping[str, Any]:
    """Count from where the file `place` stands up to `steps`, a line each; what `settings` say happens at a step."""
    settings = assignment.settings
    place, steps = Path(settings["place"]), settings["steps"]
    begun = len(place.read_text().splitlines()) if place.exists() else 0
    print(f"{assignment.name} begins at {begun}")
    for step in range(begun + 1, steps + 1):
        with place.open("a") as file:
            file.write(f"{step} {os.getpid()}\n")
        assignment.report(step, steps)
        if step == settings.get("dies_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == settings.get("fails_at"):
            raise OptionError("The seed is odd. Choose an even one.")
        if step == settings.get("crashes_at"):
            raise RuntimeError("CUDA out of memory\nTried to allocate 2 GiB")
        time.sleep(settings.get("pause_s", 0))
    return {"counted": steps}


def always_dies(assignment: Assignment) -> Mapping[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def cannot_begin(*_arguments: object) -> None:
    raise SystemExit(1)


def whole_fleet(folder: Path, jobs: Sequence[Job], devices: Sequence[str]) -> None:
    """Run a fleet that must end well, in a process of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    assert {status.state for status in run(folder, jobs, count, devices=devices)} == {"done"}


def steps_of(place: Path) -> list[int]:
    """The steps that were counted."""
    return [int(line.split()[0]) for line in place.read_text().splitlines()]


def processes_of(place: Path) -> list[int]:
    """The processes that counted, in their order."""
    return list(dict.fromkeys(int(line.split()[1]) for line in place.read_text().splitlines()))


def claim_and_wait(queue: Queue, name: str) -> None:
    """Claim a job and hold it until this process is killed."""
    claim = queue.claim({name}, worker="the other")
    assert claim is not None
    claim.report(7, 10)
    time.sleep(600)
