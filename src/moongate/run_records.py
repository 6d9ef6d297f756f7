"""The records of a run in its folder, and how they are read; without PyTorch, for programs that only show a run."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moongate.errors import OptionError
from moongate.files import read_regular
from moongate.limits import MAX_INTEGER, MAX_LOG_BYTES
from moongate.texts import parse_json, read_text

__all__ = [
    "CONCEPTS",
    "CONFIG",
    "LISTING",
    "LOG",
    "MEASURES",
    "PAGE",
    "PICTURES",
    "STATE",
    "Progress",
    "drawn_pictures",
    "held_out_losses",
    "holds_run",
    "kept_concepts",
    "read_config",
    "read_progress",
    "read_steps",
]

CONFIG, LOG, STATE = "config.json", "log.jsonl", "state.pt"
"""Everything that decides the result; a line for each step; what a resumed run continues from."""
CONCEPTS = "concepts"
"""Folder in a run folder with the concepts that the run kept on its way."""
PICTURES, LISTING = "pictures", "pictures.jsonl"
"""Folder in a run folder with the pictures that were drawn for its page, and what each shows (`run_page.Album`)."""
MEASURES = "measures.json"
"""What the kept concepts were measured to be (`run_page.measures`)."""
PAGE = "index.html"
"""The page of the run (`run_page.page_of`)."""
HELD_OUT = "held_out_loss"
NUMBERS = ("target_loss", "prior_loss", HELD_OUT, "pictures_per_second", "skipped_steps")
"""The entries of a line of a log that are shown. Each may be missing; the held-out loss is null between its steps."""
LAST_BYTES = 4000
"""What is read of the end of a log; a line takes 200 to 300 bytes."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    model: str
    step: int
    steps: int
    pictures_per_second: float
    left_s: float
    """Time of the steps that are left."""


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds what a run has done: its state, its log or concepts that it kept."""
    return (folder / STATE).exists() or (folder / LOG).exists() or bool(kept_concepts(folder))


def kept_concepts(run_folder: Path) -> dict[int, Path]:
    """Return the files of the concepts that a run has kept, by step; other files beside them do not count."""
    files = sorted((run_folder / CONCEPTS).glob("*.safetensors"))
    return {int(file.stem): file for file in files if re.fullmatch("[0-9]{6,}", file.stem)}


def drawn_pictures(run_folder: Path) -> list[Path]:
    """Return the files of the pictures that were drawn for a run; other files beside them do not count."""
    files = sorted((run_folder / PICTURES).glob("*.png"))
    return [file for file in files if re.fullmatch("[a-z]+-[0-9]{6,}-[0-9]+-[0-9]{3,}", file.stem)]


def read_config(run_folder: Path) -> dict[str, Any]:
    """Return the configuration of a run.

    Raises:
        OptionError: It is missing or cannot be read.
    """
    try:
        config = parse_json(read_text(run_folder / CONFIG))
        if not isinstance(config, dict):
            raise TypeError("it is not a JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(run_folder, error) from error
    return config


def read_steps(run_folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, without a last one that is being written; none if there is no log.

    Raises:
        OptionError: The log cannot be read, or a line has no step, or something else than a number in `NUMBERS`.
    """
    log = run_folder / LOG
    if not log.exists():
        return []
    try:
        lines = read_regular(log, at_most=MAX_LOG_BYTES).decode().split("\n")
        return [_checked(json.loads(line), number) for number, line in enumerate(lines[:-1], 1)]
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(run_folder, error) from error


def held_out_losses(steps: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the loss of the held-out pictures by step, of the lines of a log that have one that is a finite number."""
    losses = {line["index"]: line.get(HELD_OUT) for line in steps}
    return {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}


def read_progress(run_folder: Path) -> Progress | None:
    """Return how far a run is, from the end of its log; None if it has no step yet or cannot be read."""
    try:
        config = read_config(run_folder)
        with (run_folder / LOG).open("rb") as log:
            log.seek(max(0, (run_folder / LOG).stat().st_size - LAST_BYTES))
            last = parse_json(log.read().split(b"\n")[-2])
        speed, step, steps = float(last["pictures_per_second"]), int(last["index"]), int(config["steps"])
        pictures = int(config["batch"]) * (2 if config["regularization"] else 1)
        left_s = (steps - step) * pictures / speed if speed > 0 else 0.0
        model = str(config["backbone"])
    except (OptionError, OSError, ValueError, OverflowError, LookupError, TypeError):
        return None
    return Progress(model=model, step=step, steps=steps, pictures_per_second=speed, left_s=left_s)


def _checked(line: Any, number: int) -> dict[str, Any]:
    """Return a line of a log whose numbers are numbers. Raises ValueError."""
    index = line.get("index") if isinstance(line, dict) else None
    if not (isinstance(index, int) and 0 <= index <= MAX_INTEGER):
        raise ValueError(f"line {number} of {LOG} does not say its step")
    for name in (name for name in NUMBERS if name in line):
        value = line[name]
        if not (_is_number(value) or (value is None and name == HELD_OUT)):
            raise ValueError(f"{name} in line {number} of {LOG} is {value!r:.80}, which is not a number")
    return line


def _is_number(value: Any) -> bool:
    """Return whether a value of a log is a number that can be drawn, or a float that is not finite: a gap."""
    if isinstance(value, float):
        return not math.isfinite(value) or abs(value) < 1e300
    return isinstance(value, int) and abs(value) <= MAX_INTEGER


def _unreadable(run_folder: Path, error: Exception) -> OptionError:
    return OptionError(f"{run_folder} holds no records of a run that can be read ({error}). Check it.")
