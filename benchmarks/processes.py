"""Child processes of the benchmarks, so that each measures alone, and their memory as Linux counts it."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_child", "memory_now", "memory_peak"]

Value = TypeVar("Value")


def in_child(work: Callable[..., Value], *arguments: Any) -> Value:
    """Do some work in a new process, and return its result.

    Args:
        work: A function of a module, so that another process can import it.
        arguments: What it takes.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    value: Value = ours.recv()
    process.join()
    return value


def memory_now() -> int:
    """Return the bytes that this process holds, and let the peak begin again from there. Raises OSError elsewhere."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS", "self")


def memory_peak(process: int | str = "self") -> int:
    """Return the most bytes that a process held since `memory_now`, or since it began."""
    return _status_bytes("VmHWM", process)


def _send(pipe: Connection, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    pipe.send(work(*arguments))


def _status_bytes(key: str, process: int | str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
