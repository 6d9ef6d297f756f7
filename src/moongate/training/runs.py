"""The run folder: what a training run was told, how it went, and the state it can be resumed from when stopped.

It knows nothing of pictures, losses or what a state holds besides its step.
"""

import hashlib
import io
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from moongate.errors import OptionError
from moongate.files import write_atomically

__all__ = ["STATE", "Run", "check_free", "interrupt_after_step", "seeded"]

CONFIG, LOG, STATE = "config.json", "log.jsonl", "state.pt"
MAY_DIFFER = ("steps", "versions", "device")
"""Entries of config.json in which a resumed run may differ from the one it continues."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run in progress; without a folder it keeps no records."""

    folder: Path | None
    config: dict[str, Any]
    resumes: bool

    @classmethod
    def begin(cls, folder: Path | None, config: dict[str, Any], *, resume: bool, overwrite: bool) -> Self:
        """Write config.json, or check it when resuming. Raises OptionError before anything is changed."""
        if folder is None:
            return cls(folder=None, config=config, resumes=False)
        if resume:
            _check_continues(folder, config)
        else:
            check_free(folder, resume=False, overwrite=overwrite)
            (folder / STATE).unlink(missing_ok=True)
            (folder / LOG).unlink(missing_ok=True)
        write_atomically(folder / CONFIG, json.dumps(config, indent=1).encode())
        return cls(folder=folder, config=config, resumes=resume)

    def restore(self) -> dict[str, Any] | None:
        """Return the saved state when resuming, and cut the log back to its step."""
        if not self.resumes or self.folder is None:
            return None
        state = torch.load(self.folder / STATE, weights_only=True, map_location="cpu")
        lines = (self.folder / LOG).read_text().splitlines()
        kept = lines[: state["step"]]  # one for each step; what follows may be torn
        write_atomically(self.folder / LOG, "".join(f"{line}\n" for line in kept).encode())
        return state

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if self.folder:
            with (self.folder / LOG).open("a") as file:
                file.write(json.dumps(dict(values)) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resumable state, whole or not at all; it holds its `step`."""
        if self.folder:
            buffer = io.BytesIO()
            torch.save(dict(state), buffer)
            write_atomically(self.folder / STATE, buffer.getvalue())

    @property
    def saved_state(self) -> Path | None:
        """The file to resume from, when there is one."""
        return self.folder / STATE if self.folder and (self.folder / STATE).exists() else None


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise OptionError when `folder` holds another run, or, when resuming, none."""
    exists = (folder / STATE).exists()
    if resume and not exists:
        raise OptionError(f"{folder} holds no {STATE} to resume from. Start without --resume.")
    if exists and not resume and not overwrite:
        raise OptionError(
            f"{folder} holds another run. Continue it (--resume), replace it (--overwrite), or choose another folder."
        )


def _check_continues(folder: Path, config: Mapping[str, Any]) -> None:
    check_free(folder, resume=True, overwrite=False)
    before = json.loads((folder / CONFIG).read_text())
    now = json.loads(json.dumps(config))
    for key in sorted(set(before) | set(now)):
        if key not in MAY_DIFFER and before.get(key) != now.get(key):
            raise OptionError(
                f"The run in {folder} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}. Resume "
                "with the same settings, or start another run."
            )


def seeded(seed: int, *label: object) -> torch.Generator:
    """Return a generator that depends on the seed and a label alone, so that a resumed run repeats itself."""
    digest = hashlib.sha256(repr((seed, *label)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@contextmanager
def interrupt_after_step() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that the loop asks after each step; the second one acts at once."""
    pressed = threading.Event()

    def handle(_signal: int, _frame: Any) -> None:
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
