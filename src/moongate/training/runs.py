"""The run folder (settings, log, resumable state), reproducible random numbers, and Ctrl-C between two steps.

The module knows nothing of pictures and losses, nor of what a state holds in addition to its step.
"""

import io
import json
import pickle
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from moongate.errors import OptionError, first_line, shortened
from moongate.files import check_folder, digest, read_regular, remedy, write_atomically
from moongate.limits import MAX_LOG_BYTES
from moongate.pickles import UNREADABLE, read_pickle
from moongate.run_records import CONFIG, LISTING, LOG, MEASURES, PAGE, STATE, drawn_pictures, holds_run, kept_concepts
from moongate.texts import parse_json, read_text

__all__ = ["Run", "check_free", "check_run", "interrupt_after_step", "seeded"]

MAY_DIFFER = ("steps", "versions", "device", "threads")
"""Entries of config.json in which a resumed run may differ from the one it continues."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run in progress, with its folder; without a folder it keeps no records."""

    folder: Path | None
    resumes: bool
    """Whether the run continues from a state in the folder."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decides the result of the run, as plain JSON."""
    writes: bool = True
    """Whether this process writes the records; of several that train together, one does."""

    @classmethod
    def begin(cls, folder: Path | None, config: Mapping[str, Any], *, resume: bool, writes: bool = True) -> Self:
        """Remove the records of an earlier run and write config.json, unless the run resumes a state.

        A run that was killed before its first state begins again, and keeps its pictures. `restore` writes the
        config.json of one that resumes.

        Args:
            folder: The run folder, which `check_run` has accepted; None keeps no records.
            config: Everything that decides the result of the run, as plain JSON.
            resume: Whether the run continues the one in the folder.
            writes: Whether this process writes the records.

        Raises:
            OptionError: The folder cannot be written.
        """
        resumes = resume and folder is not None and (folder / STATE).exists()
        if folder and writes and not resumes:
            for record in (folder / STATE, folder / LOG, folder / MEASURES, *kept_concepts(folder).values()):
                record.unlink(missing_ok=True)
            for shown in () if resume else (folder / PAGE, folder / LISTING, *drawn_pictures(folder)):
                shown.unlink(missing_ok=True)
            write_atomically(folder / CONFIG, _as_bytes(config))
        return cls(folder=folder, resumes=resumes, config=config, writes=writes)

    def restore(self, *, steps: int | None = None) -> dict[str, Any] | None:
        """Return the saved state, cut the log back to its step and write config.json; None if the run resumes none.

        Args:
            steps: Steps of the whole run; the state may not have done more.

        Raises:
            OptionError: The saved state or the log cannot be read, the state belongs to a run with other settings, or
                it has done more than `steps`.
        """
        if not self.resumes or self.folder is None:
            return None
        state, settings = _read_state(self.folder / STATE), _digest(self.config)
        if state.get("settings", settings) != settings:
            raise OptionError(
                f"{self.folder / STATE} is of a run with other settings than {self.folder / CONFIG}: the folder holds "
                "parts of two runs. Start again with --overwrite."
            )
        if steps is not None and state["step"] > steps:
            raise OptionError(
                f"The run in {self.folder} has done {state['step']} steps already, which is more than --steps {steps}. "
                "Resume with at least as many."
            )
        if not self.writes:
            return state
        try:
            lines = read_regular(self.folder / LOG, at_most=MAX_LOG_BYTES).decode().splitlines()
        except (OSError, ValueError) as error:
            raise OptionError(f"{self.folder / LOG} cannot be read ({error}). Start again with --overwrite.") from error
        kept = lines[: state["step"]]  # one line for each step; a later line may be incomplete
        write_atomically(self.folder / LOG, "".join(f"{line}\n" for line in kept).encode())
        write_atomically(self.folder / CONFIG, _as_bytes(self.config))
        return state

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if self.folder and self.writes:
            try:
                with (self.folder / LOG).open("a") as file:
                    file.write(json.dumps(dict(values)) + "\n")
            except OSError as error:
                raise OptionError(
                    f"{self.folder / LOG} could not be written ({error.strerror or error}). {remedy(error)}"
                ) from error

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resumable state completely or not at all; it must hold the number of steps done as `step`."""
        if self.folder and self.writes:
            buffer = io.BytesIO()
            torch.save({**state, "settings": _digest(self.config)}, buffer)
            write_atomically(self.folder / STATE, buffer.getvalue())

    @property
    def saved_state(self) -> Path | None:
        """The file to resume from, if there is one."""
        return self.folder / STATE if self.folder and (self.folder / STATE).exists() else None


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a run may use the folder; nothing is left in it.

    Args:
        folder: The run folder.
        resume: Whether the run continues the one in the folder.
        overwrite: Whether the run may replace another one.

    Raises:
        OptionError: The folder holds a run already, or, when resuming, none; or it cannot be written.
    """
    check_folder(folder)
    exists = holds_run(folder)
    if resume and not exists:
        raise OptionError(f"{folder} holds no {STATE} to resume from. Start without --resume.")
    if exists and not resume and not overwrite:
        raise OptionError(
            f"{folder} holds a run already. Continue it (--resume), replace it (--overwrite), or choose another folder."
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
        before = parse_json(read_text(folder / CONFIG))
        if not isinstance(before, dict):
            raise TypeError("it is not a JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise OptionError(f"{folder / CONFIG} cannot be read ({error}). Start again with --overwrite.") from error
    now = json.loads(json.dumps(config))
    for key in sorted(set(before) | set(now)):
        if key not in MAY_DIFFER and before.get(key) != now.get(key):
            name, earlier, later = _difference(key, before.get(key), now.get(key))
            raise OptionError(
                f"The run in {folder} was started with {name} = {shortened(repr(earlier))}, not "
                f"{shortened(repr(later))}. Resume with the same settings, or start another run."
            )


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Return the name of the first part in which two different values of JSON differ, and both values of it."""
    parts: dict[str, tuple[Any, Any]] = {}
    if isinstance(before, dict) and isinstance(now, dict):
        parts = {key: (before.get(key), now.get(key)) for key in (*before, *now)}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = {str(number): pair for number, pair in enumerate(zip(before, now, strict=True), 1)}
    for key, (earlier, later) in parts.items():
        if earlier != later:
            return _difference(f"{name}.{key}", earlier, later)
    return name, before, now


def _read_state(path: Path) -> dict[str, Any]:
    """Read a state whose parts all have the checksums that torch wrote with them: it does not compare them itself."""
    try:
        state = read_pickle(path)
        with zipfile.ZipFile(path) as parts:
            if wrong := parts.testzip():
                raise ValueError(f"the checksum of {wrong} does not match")
        if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise ValueError("it does not say how many steps were done")
    except (*UNREADABLE, pickle.UnpicklingError) as error:
        raise OptionError(
            f"{path} cannot be read: it is damaged ({first_line(error)}) Start again with --overwrite."
        ) from error
    return state


def _as_bytes(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=1).encode()


def _digest(config: Mapping[str, Any]) -> str:
    fixed = {key: value for key, value in config.items() if key not in MAY_DIFFER}
    return digest(json.dumps(fixed, sort_keys=True), length=64)


def seeded(seed: int, *label: object) -> torch.Generator:
    """Return a random generator that depends only on the seed and a label, so that a resumed run repeats itself."""
    content = bytes.fromhex(digest(repr((seed, *label)), length=14))
    return torch.Generator().manual_seed(int.from_bytes(content, "little"))


@contextmanager
def interrupt_after_step() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM take effect after the current step, and a second one at once.

    Yields:
        A function that says whether there was one; the loop asks it after each step. Outside the main thread,
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
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():  # None stands for one that was not installed by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
