"""The process of a command that the studio has started: `python -m moongate.studio.detached FOLDER NAME`."""

import contextlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

from moongate.errors import MoongateError
from moongate.files import try_lock, write_atomically
from moongate.studio.commands import INTERRUPTED, Commands

__all__ = ["run"]


def run(folder: Path, name: str) -> int:
    """Do a command and write how it ended.

    Args:
        folder: The folder of `moongate.studio.commands.Commands`.
        name: Which of its commands.

    Returns:
        The exit status of the command; 2 if another process does it already.
    """
    lock = try_lock(folder / f"{name}.lock")
    if lock is None:
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a training saves its state, all else just ends
    commands, status = Commands(folder=folder), 1
    started = commands.look(name)
    sys.argv = ["moongate", *started.command.words]
    try:
        if started.takes_turns:
            _write_process(folder, name, waits=True)
            commands.wait_for_turn(name)
        _write_process(folder, name, waits=False)
        runpy.run_module("moongate", run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception:
        traceback.print_exc()
    finally:
        with contextlib.suppress(MoongateError):
            write_atomically(folder / f"{name}.ended", json.dumps({"status": status}).encode())
        lock.release()
    return status


def _write_process(folder: Path, name: str, *, waits: bool) -> None:
    """Say which process does the command, and whether it still waits for its turn."""
    write_atomically(folder / f"{name}.process", json.dumps({"pid": os.getpid(), "waits": waits}).encode())


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2]))
