"""The jobs of `moongate fleet`: a file that lists them, and the `train` and `evaluate` that each stands for.

A job has `name`, `concepts` (a list as in the file of --concepts), `evaluate`, and options of `moongate train` by their
names. Paths are relative to the file.
"""

import contextlib
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from moongate.cli.evaluate import Evaluate
from moongate.cli.options import at_home
from moongate.cli.subjects import SubjectOptions, listing_of, subjects_from_file
from moongate.cli.train import Train
from moongate.errors import InputError, OptionError

__all__ = ["FleetJob", "read_entries"]

NOT_OF_A_JOB = (
    *("pictures", "category", "token", "concepts", "subjects"),  # the key `concepts` says them
    *("out", "run", "resume", "overwrite", "on_step", "device", "kept", "json", "quiet"),  # the fleet decides them
)
NOT_OF_AN_EVALUATION = ("files", "out", "overwrite", "model", "config", "dtype", "device", "kept", "json", "quiet")
OF_BOTH = ("model", "config", "dtype")
"""Options of a job that hold for its training and for its evaluation."""
NAMES_OR_PATHS = ("model", "collection", "regularization", "prompts", "holdout")
"""Options that take a name or a path; a path that exists next to the file is meant."""
KINDS_WITH_PATHS = ("protocol", "features")
"""Options that take a kind with a path behind a colon, such as clip:FOLDER; the path is one of these too."""
EXPECTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}

_T = TypeVar("_T")


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read the list of jobs in a YAML or JSON file; only the names are checked to be there.

    Raises:
        OptionError: The file is missing or cannot be parsed, or an entry is not a mapping with a name.
    """
    entries = listing_of(path, "jobs", form=" and its name: '- name: bear'")
    for number, entry in enumerate(entries, 1):
        if not (isinstance(entry, dict) and all(isinstance(key, str) for key in entry)):
            raise OptionError(f"Job {number} of {path} is {entry!r:.80}. Write it as a mapping, such as 'name: bear'.")
        if not isinstance(entry.get("name"), str):
            raise OptionError(f"Job {number} of {path} has the name {entry.get('name')!r}. Give text, such as 'bear'.")
    return entries


@dataclass(frozen=True, kw_only=True)
class FleetJob:
    """What a job stands for: a training, an evaluation of what it taught or of other files, or both."""

    train: Train | None
    evaluate: Evaluate | None

    @classmethod
    def read(cls, entry: Mapping[str, Any], *, folder: Path, out: Path, **given: Any) -> Self:
        """Read a job.

        Args:
            entry: The job as parsed from the file.
            folder: Folder to which relative paths belong.
            out: Folder of the concepts.
            given: Values that the fleet decides, such as `device`, by the names of the options.

        Raises:
            OptionError: A key is unknown, or a value cannot be used. Neither a model nor a picture was read.
        """
        name, place = entry["name"], f"The job {entry['name']!r}"
        options = {key: value for key, value in entry.items() if key not in ("name", "concepts", "evaluate")}
        concepts, wanted, file = entry.get("concepts"), entry.get("evaluate"), out / f"{name}.safetensors"
        train = evaluate = None
        if concepts is not None:
            subjects = tuple(_subjects(concepts, folder, place))
            places = {"out": file, "run": out / f"{name}.run", "subjects": subjects}
            train = _options(Train, options, NOT_OF_A_JOB, folder, place, {**places, **given})
            _check_training(train, place)
        elif not (isinstance(wanted, dict) and "files" in wanted):
            raise OptionError(
                f"{place} has neither concepts to teach nor files to evaluate. Add 'concepts:' and below it "
                "'- pictures: bear-photos', or 'evaluate:' and below it 'files: bear.safetensors'."
            )
        if wanted not in (None, False):
            if wanted is not True and not isinstance(wanted, dict):
                raise OptionError(f"{place} has evaluate: {wanted!r}. Give true, or options of `moongate evaluate`.")
            chosen = {} if wanted is True else dict(wanted)
            model = {key: value for key, value in options.items() if key in OF_BOTH}
            if train is None:
                _check_keys([*options], OF_BOTH, place)
                files = tuple(_value(tuple[Path, ...], chosen.pop("files"), folder, "files", place))
            else:
                files = (file,)
            results = {"out": out / f"{name}.evaluation", "files": files, "overwrite": True}
            _check_keys([*chosen], _settable(Evaluate, NOT_OF_AN_EVALUATION), f"The evaluation of the job {name!r}")
            evaluate = _options(
                Evaluate, {**chosen, **model}, ("files", "out", "overwrite"), folder, place, {**results, **given}
            )
            _check_evaluation(evaluate, place, is_made_first=train is not None)
        return cls(train=train, evaluate=evaluate)


def _subjects(concepts: Any, folder: Path, place: str) -> Sequence[SubjectOptions]:
    if isinstance(concepts, str):
        return subjects_from_file(folder / at_home(concepts))
    if not isinstance(concepts, list) or not concepts:
        raise OptionError(
            f"{place} has concepts: {concepts!r:.80}. Give a list: '- pictures: bear-photos', and below it 'category: "
            "teddy bear' and 'token: <bear>'; or the path of a file for --concepts."
        )
    return [
        SubjectOptions.from_entry(entry, folder=folder, place=f"Concept {number} of the job {place.split(' ', 2)[2]}")
        for number, entry in enumerate(concepts, 1)
    ]


def _check_training(train: Train, place: str) -> None:
    """Check what needs neither a model nor pictures: numbers, names, and that files and folders are there."""
    from moongate.regularization import CHOICES
    from moongate.training.method import METHODS

    if train.method is not None and train.method not in METHODS:
        raise OptionError(f"{place} has the unknown method {train.method!r}. {_meant(train.method, METHODS)}")
    sources = [*train.regularization, *(subject.regularization for subject in train.subjects)]
    folders = [Path(source) for source in sources if source and source not in CHOICES]
    pictures = [path for subject in train.subjects for path in subject.pictures]
    _check_paths([*pictures, *folders, *([train.start_from] if train.start_from else [])], place)
    with _placed(place):
        train.checked()


def _check_evaluation(evaluate: Evaluate, place: str, *, is_made_first: bool) -> None:
    """Check what needs neither a model nor a concept."""
    folders: list[Any] = [evaluate.pictures, evaluate.training_pictures, [evaluate.reference]]
    _check_paths([path for folder in folders for path in _paths(folder)], place)
    if not is_made_first:
        _check_paths(evaluate.files, place)
    with _placed(place):
        evaluate.checked()


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    """Name the job in what is said of its options: a file has many jobs."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{place}: {error}") from error


def _paths(value: Any) -> list[Path]:
    return [value] if isinstance(value, Path) else [path for each in value or () for path in _paths(each)]


def _check_paths(paths: Sequence[Path], place: str) -> None:
    if missing := [path for path in paths if not path.exists()]:
        raise OptionError(f"{place} needs {missing[0]}, which does not exist. Paths are relative to the file of jobs.")


def _options(
    kind: type[_T], values: Mapping[str, Any], hidden: Sequence[str], folder: Path, place: str, given: Mapping[str, Any]
) -> _T:
    """Return the options of a command from a mapping of their names to plain values.

    Args:
        kind: A dataclass; fields that are dataclasses give their fields to it, as on the command line.
        values: The values by name.
        hidden: Names that a mapping may not set.
        folder: Folder to which relative paths belong.
        place: Name of the mapping in messages.
        given: Values that are set as they are.
    """
    _check_keys([*values], ["name", "concepts", "evaluate", *_settable(kind, hidden)], place)
    hints, arguments = get_type_hints(kind), dict[str, Any]()
    for one in fields(kind):  # type: ignore[arg-type]
        hint = hints[one.name]
        if is_dataclass(hint):
            inner = [name for name in _leaves(hint) if name in values]
            part = {name: values[name] for name in inner}
            arguments[one.name] = _options(hint, part, (), folder, place, given)  # type: ignore[arg-type]
        elif one.name in given:
            arguments[one.name] = given[one.name]
        elif values.get(one.name) is not None:
            arguments[one.name] = _value(hint, values[one.name], folder, one.name, place)
    return kind(**arguments)


def _leaves(kind: Any) -> list[str]:
    """Return the names of all options of a command."""
    hints = get_type_hints(kind)
    groups = [_leaves(hints[one.name]) if is_dataclass(hints[one.name]) else [one.name] for one in fields(kind)]
    return [name for group in groups for name in group]


def _settable(kind: Any, hidden: Sequence[str]) -> list[str]:
    return [name for name in _leaves(kind) if name not in hidden]


def _check_keys(keys: Sequence[Any], known: Sequence[str], place: str) -> None:
    if unknown := [key for key in keys if key not in known]:
        raise OptionError(f"{place} has the unknown key {unknown[0]!r}. {_meant(str(unknown[0]), known)}")


def _meant(word: str, known: Any) -> str:
    similar = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {similar[0]!r}?" if similar else f"Known: {', '.join(known)}."


def _value(hint: Any, value: Any, folder: Path, key: str, place: str) -> Any:
    """Return a plain value as an option of a type takes it."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if get_origin(inner) is tuple:  # an option that may be repeated, with several values each time
            return (_value(inner, value, folder, key, place),)
        return tuple(
            _value(inner, each, folder, key, place) for each in (value if isinstance(value, list) else [value])
        )
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise OptionError(f"{place} has {key}: {value!r}. Give one of {', '.join(get_args(hint))}.")
    if hint is str and key == "holdout" and isinstance(value, int):
        return str(value)
    if hint is Path and isinstance(value, str):
        return folder / at_home(value)
    if hint is float and not isinstance(value, bool):
        with contextlib.suppress(ValueError, TypeError):
            return float(value)  # YAML reads 1e-5 as text
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise OptionError(f"{place} has {key}: {value!r}. Give {EXPECTED[hint]}.")
    if key in NAMES_OR_PATHS:
        return _near(value, folder)
    if key in KINDS_WITH_PATHS:
        kind, colon, path = value.partition(":")
        path, number_sign, part = path.partition("#") if key == "protocol" else (path, "", "")
        return f"{kind}{colon}{_near(path, folder) if path else path}{number_sign}{part}"
    return value


def _near(name: str, folder: Path) -> str:
    """Return a path that exists next to the file of jobs; a name as it is."""
    from moongate.files import exists  # loads asyncio, which --help does not need

    path = folder / at_home(name)
    return str(path) if exists(path) else name
