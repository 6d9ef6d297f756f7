"""Run one case in a forked child, with limits on time and memory, and say how it ended."""

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcome", "outcome"]

SECONDS = 20
RESIDENT_BYTES = 2 * 2**30
"""Resident memory that a case may take above what the child holds when it begins."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a case ended."""

    wrong: str
    """Empty if it ended in order; otherwise what went wrong, and the child's last words."""
    seconds: float
    megabytes: float
    """Largest resident memory above what the child held when it began."""


def outcome(case: Callable[[], None], report: Path) -> Outcome:
    """Run a case and return how it ended. What the child prints goes to `report`."""
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # programs that the case starts end with it
        os.write(writer, Path("/proc/self/statm").read_bytes())
        _run(case, report)
    before = int(os.read(reader, 1000).split()[1]) * resource.getpagesize()
    os.close(reader)
    os.close(writer)
    wrong, usage = None, None
    while time.monotonic() < began + SECONDS:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            wrong = f"status {code}: {report.read_text(errors='replace')[-1500:]}" if code else ""
            break
        time.sleep(0.002)
    if wrong is None:
        os.killpg(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
        wrong = f"hang: more than {SECONDS} s: {report.read_text(errors='replace')[:1500]}"
    above = (usage.ru_maxrss * 1024 if usage else 0) - before
    if not wrong and above > RESIDENT_BYTES:
        wrong = f"memory: {above // 10**6} MB"
    return Outcome(wrong=wrong, seconds=time.monotonic() - began, megabytes=above / 1e6)


def _run(case: Callable[[], None], report: Path) -> None:
    try:
        with report.open("w", errors="backslashreplace") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            faulthandler.dump_traceback_later(0.9 * SECONDS, file=file)  # says where a case hangs
            warnings.simplefilter("ignore")
            case()
            file.flush()
        os._exit(0)
    except BaseException:  # every end of the case is an outcome
        report.write_text(traceback.format_exc(), errors="backslashreplace")
        os._exit(1)
