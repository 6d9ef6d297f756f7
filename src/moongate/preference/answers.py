"""The answers of a study: one line of `answers.jsonl` each, added as they come, and files that raters send back."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

from moongate.errors import OptionError, warn
from moongate.files import append_lines, digest
from moongate.preference.study import Study, Trial, check_rater
from moongate.texts import parse_json, read_text

__all__ = ["ANSWERS", "FORMAT", "Answer", "Choice", "add", "answer", "picture_key", "read_answers", "read_sent"]

ANSWERS = "answers.jsonl"
FORMAT, VERSION = "moongate-answers", 1
Choice = Literal["left", "right", "skip"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rater said about one trial."""

    rater: str
    trial: Trial
    choice: Choice
    time: str
    """When it was given, in UTC: 2026-01-31T12:00:00.000+00:00."""

    @classmethod
    def now(cls, rater: str, trial: Trial, choice: Choice) -> Self:
        """Return an answer that is given now."""
        return cls(rater=check_rater(rater), trial=trial, choice=choice, time=_written(datetime.now(UTC)))

    @property
    def key(self) -> tuple[str, tuple[str, int, frozenset[str]]]:
        """What a rater answers once; a later answer takes the place of an earlier one."""
        return self.rater, self.trial.key

    @property
    def preferred(self) -> str | None:
        """The method whose picture was chosen; None after a skip."""
        return self.verdict[0] if self.verdict else None

    @property
    def verdict(self) -> tuple[str, str] | None:
        """The method whose picture was chosen, and the other one; None after a skip."""
        left, right = self.trial.left, self.trial.right
        return {"left": (left, right), "right": (right, left), "skip": None}[self.choice]


def read_answers(folder: Path, study: Study) -> list[Answer]:
    """Return the answers of a study, of each rater and trial the latest.

    A line that cannot be read is left out with a warning: where the machine stopped, the last line may be cut.

    Raises:
        OptionError: The file cannot be read.
    """
    path = folder / ANSWERS
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")  # other ends of lines may be in a name
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror}). Check that you may read it.") from error
    found: list[Answer] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue  # behind the last end of a line
        try:
            facts = parse_json(line)
            if facts.pop("study") != study.id:
                raise ValueError("it belongs to another study")
            trial = {name: facts.pop(name) for name in ("question", "item", "left", "right")}
            found.append(_checked(study, Answer(trial=Trial(**trial), **facts)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            warn(f"Line {number} of {path} is left out: {error}.")
    return _latest(found)


def answer(folder: Path, study: Study, given: Answer) -> None:
    """Add one answer; it is on the disk when this returns."""
    _append(folder, study, [_checked(study, given)])


def add(folder: Path, study: Study, sent: Sequence[Answer]) -> int:
    """Add answers that were sent back, and return how many were new; the same file may come twice.

    Args:
        folder: The folder of the study.
        study: The study.
        sent: What `read_sent` returned.
    """
    known = {earlier.key: earlier for earlier in read_answers(folder, study)}
    new = [given for given in sent if given.key not in known or given.time > known[given.key].time]
    if new:
        _append(folder, study, new)
    return len(new)


def read_sent(file: Path, study: Study) -> list[Answer]:
    """Read and check the file of answers that the page of a study saves.

    Raises:
        OptionError: It is no such file, is of another study, or has an answer that does not fit.
    """
    try:
        facts = parse_json(read_text(file))
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise ValueError("it is not what the page of a study saves")
        if facts.get("version", VERSION) > VERSION:
            raise ValueError(f"it has version {facts['version']!r:.40}, and this Moongate reads up to {VERSION}")
        if facts["study"] != study.id:
            raise ValueError(f"it is of the study {facts['study']!r:.40}, and this one is {study.id!r}")
        pictures = {
            picture_key(study, n, method): (n, method) for n, item in enumerate(study.items) for method in item.pictures
        }
        rater = check_rater(facts["rater"])
        return _latest(_sent(study, rater, given, pictures) for given in facts["answers"])
    except OSError as error:
        raise OptionError(f"{file} cannot be read ({error.strerror}). Check the path.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise OptionError(f"{file} cannot be added: {problem}. Ask the rater for the file again.") from error


def picture_key(study: Study, item: int, method: str) -> str:
    """Return what the page calls a picture; it does not tell the method."""
    return digest(json.dumps([study.id, item, method]), length=16)


def _sent(study: Study, rater: str, given: Any, pictures: dict[str, tuple[int, str]]) -> Answer:
    for side in ("left", "right"):
        if given[side] not in pictures:
            raise ValueError(f"the study has no picture {given[side]!r:.40}")
    (item, left), (other, right) = pictures[given["left"]], pictures[given["right"]]
    if item != other:
        raise ValueError("two pictures of different prompts were compared")
    trial = Trial(question=given["question"], item=item, left=left, right=right)
    return _checked(study, Answer(rater=rater, trial=trial, choice=given["choice"], time=given["time"]))


def _append(folder: Path, study: Study, given: Iterable[Answer]) -> None:
    lines = [
        {"study": study.id, "rater": one.rater, **asdict(one.trial), "choice": one.choice, "time": one.time}
        for one in given
    ]
    append_lines(folder / ANSWERS, [json.dumps(line, ensure_ascii=False) for line in lines])


def _checked(study: Study, given: Answer) -> Answer:
    """Return an answer whose trial is of the study. Raises ValueError."""
    if given.trial.key not in study.keys:
        raise ValueError(f"the study has no trial {given.trial}")
    if given.choice not in get_args(Choice):
        raise ValueError(f"the choice {given.choice!r:.40} is not one of {', '.join(get_args(Choice))}")
    time = datetime.fromisoformat(given.time)
    if time.tzinfo is None:
        raise ValueError(f"the time {given.time!r:.40} has no zone")
    try:
        written = _written(time.astimezone(UTC))
    except OverflowError as error:  # in the first or last hours that a date can have
        raise ValueError(f"the time {given.time!r:.40} cannot be written in UTC") from error
    return Answer(rater=check_rater(given.rater), trial=given.trial, choice=given.choice, time=written)


def _written(time: datetime) -> str:
    """Return a time so that earlier ones sort before later ones."""
    return time.isoformat(timespec="milliseconds")


def _latest(answers: Iterable[Answer]) -> list[Answer]:
    """Return the latest answer of each rater and trial, in the order in which they were first given."""
    found: dict[Any, Answer] = {}
    for given in answers:
        if given.key not in found or given.time >= found[given.key].time:
            found[given.key] = given
    return list(found.values())
