"""Run one case in a forked child, with limits on time and memory, and say how it ended."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

__all__ = ["outcome"]

SECONDS = 20
RESIDENT_BYTES = 2 * 2**30
"""Resident memory that a case may take above what the child holds when it begins."""


def outcome(case: Callable[[], None], report: Path) -> str:
    """Return "" if the case ended in order, and otherwise what went wrong. The child's last words go to `report`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, Path("/proc/self/statm").read_bytes())
        _run(case, report)
    before = int(os.read(reader, 1000).split()[1]) * resource.getpagesize()
    os.close(reader)
    os.close(writer)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            if usage.ru_maxrss * 1024 - before > RESIDENT_BYTES:
                return f"memory: {usage.ru_maxrss // 1024} MB"
            if os.waitstatus_to_exitcode(status):
                return f"status {os.waitstatus_to_exitcode(status)}: {report.read_text(errors='replace')[-1500:]}"
            return ""
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"hang: more than {SECONDS} s"


def _run(case: Callable[[], None], report: Path) -> None:
    try:
        with report.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            case()
            file.flush()
        os._exit(0)
    except BaseException:  # every end of the case is an outcome
        report.write_text(traceback.format_exc(), errors="replace")
        os._exit(1)
