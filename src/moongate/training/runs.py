"""The run folder (settings, log, resumable state), reproducible random numbers, and Ctrl-C between two steps.

The module knows nothing of pictures and losses, nor of what a state holds in addition to its step.
"""

import io
import json
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from moongate.errors import OptionError
from moongate.files import digest, write_atomically

__all__ = ["STATE", "Run", "check_free", "check_run", "interrupt_after_step", "seeded"]

CONFIG, LOG, STATE = "config.json", "log.jsonl", "state.pt"
MAY_DIFFER = ("steps", "versions", "device")
"""Entries of config.json in which a resumed run may differ from the one it continues."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run in progress, with its folder; without a folder it keeps no records."""

    folder: Path | None
    resumes: bool

    @classmethod
    def begin(cls, folder: Path | None, config: Mapping[str, Any], *, resume: bool) -> Self:
        """Write config.json and, unless the run resumes an earlier one, remove an earlier state and log.

        Args:
            folder: The run folder, which `check_run` has accepted; None keeps no records.
            config: Everything that decides the result of the run, as plain JSON.
            resume: Whether the run continues from the state in the folder.

        Raises:
            OptionError: The folder cannot be written.
        """
        if folder:
            if not resume:
                (folder / STATE).unlink(missing_ok=True)
                (folder / LOG).unlink(missing_ok=True)
            write_atomically(folder / CONFIG, json.dumps(config, indent=1).encode())
        return cls(folder=folder, resumes=resume)

    def restore(self) -> dict[str, Any] | None:
        """Return the saved state and cut the log back to its step; None for a run that does not resume one.

        Raises:
            OptionError: The saved state cannot be read.
        """
        if not self.resumes or self.folder is None:
            return None
        if not zipfile.is_zipfile(self.folder / STATE):  # torch writes zip files
            raise OptionError(f"{self.folder / STATE} cannot be read: it is damaged. Start again with --overwrite.")
        state: dict[str, Any] = torch.load(self.folder / STATE, weights_only=True, map_location="cpu")
        lines = (self.folder / LOG).read_text().splitlines()
        kept = lines[: state["step"]]  # one line for each step; a later line may be incomplete
        write_atomically(self.folder / LOG, "".join(f"{line}\n" for line in kept).encode())
        return state

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if self.folder:
            with (self.folder / LOG).open("a") as file:
                file.write(json.dumps(dict(values)) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resumable state completely or not at all; it must hold the number of steps done as `step`."""
        if self.folder:
            buffer = io.BytesIO()
            torch.save(dict(state), buffer)
            write_atomically(self.folder / STATE, buffer.getvalue())

    @property
    def saved_state(self) -> Path | None:
        """The file to resume from, if there is one."""
        return self.folder / STATE if self.folder and (self.folder / STATE).exists() else None


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a run may use the folder; nothing is written.

    Args:
        folder: The run folder.
        resume: Whether the run continues from the state in the folder.
        overwrite: Whether the run may replace another one.

    Raises:
        OptionError: The folder holds another run, or, when resuming, none.
    """
    exists = (folder / STATE).exists()
    if resume and not exists:
        raise OptionError(f"{folder} holds no {STATE} to resume from. Start without --resume.")
    if exists and not resume and not overwrite:
        raise OptionError(
            f"{folder} holds another run. Continue it (--resume), replace it (--overwrite), or choose another folder."
        )


def check_run(folder: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Check that a run with these settings may use the folder: as `check_free`, and a resumed run has equal settings.

    Raises:
        OptionError: The folder is not free, or the run to resume had other settings.
    """
    check_free(folder, resume=resume, overwrite=overwrite)
    if not resume:
        return
    try:
        before = dict(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise OptionError(f"{folder / CONFIG} cannot be read ({error}). Start again with --overwrite.") from error
    now = json.loads(json.dumps(config))
    for key in sorted(set(before) | set(now)):
        if key not in MAY_DIFFER and before.get(key) != now.get(key):
            raise OptionError(
                f"The run in {folder} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}. Resume "
                "with the same settings, or start another run."
            )


def seeded(seed: int, *label: object) -> torch.Generator:
    """Return a random generator that depends only on the seed and a label, so that a resumed run repeats itself."""
    content = bytes.fromhex(digest(repr((seed, *label)), length=14))
    return torch.Generator().manual_seed(int.from_bytes(content, "little"))


@contextmanager
def interrupt_after_step() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C take effect after the current step, and a second one at once.

    Yields:
        A function that says whether Ctrl-C was pressed; the loop asks it after each step. Outside the main thread,
        where Python delivers no signals, Ctrl-C is left alone.
    """
    pressed = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
