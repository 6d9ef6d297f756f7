"""The commands `moongate judge make`, `add` and `results`: the paper's human preference study."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import WITHOUT_DEFAULT, Output, OutputOptions, Texts, flat
from moongate.cli.terminal import print_table, progress_bar, say, size_of
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.preference import Results
    from moongate.preference.making import Subject

__all__ = ["JudgeAdd", "JudgeMake", "JudgeResults"]


@dataclass(frozen=True, kw_only=True)
class JudgeMake:
    """Make a study of two or more folders of pictures, and a page to send to raters."""

    study: Annotated[Path, tyro.conf.Positional]
    """Folder to write: study.json, copies of the pictures, and judge.html, which needs nothing else."""
    method: Texts
    """NAME=FOLDER for each method. Pictures of the same prompt and seed are compared."""
    subject: Texts = ()
    """"WORDS=FOLDER": a subject with its photos, such as "<bear> teddy bear=bear-photos".
    With it, raters also say which picture shows the subject better. They read the words without the token."""
    seed: int = 0
    """Seed of the order of the trials and of the sides."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.preference import write_page
        from moongate.preference.making import make_study

        methods = _folders("method", flat(self.method))
        subjects = _subjects(_folders("subject", flat(self.subject)))
        with progress_bar(console) as progress:
            task = progress.add_task("Copying", total=None, note="")
            study = make_study(
                self.study,
                methods,
                subjects,
                seed=self.seed,
                on_picture=lambda done, total: progress.update(task, completed=done, total=total),
            )
        page = write_page(study, self.study)
        say(console, f"Wrote {self.study}: {len(study.keys)} trials of {', '.join(study.methods)} for each rater.")
        say(console, f"Send {page} ({size_of(page)}) to raters, and add what they send back with `moongate judge add`.")
        facts = {"methods": list(study.methods), "items": len(study.items), "trials": len(study.keys)}
        return {"study": str(self.study), "id": study.id, "page": str(page), **facts}


@dataclass(frozen=True, kw_only=True)
class JudgeAdd:
    """Add the files of answers that raters sent back."""

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, WITHOUT_DEFAULT]
    """Files of answers. All are checked before the first is added; a file that comes twice counts once."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.preference import Study, add, read_sent

        if not self.files:
            raise OptionError("There is no file of answers to add. Name one or several.")
        study = Study.open(self.study)
        sent = {file: read_sent(file, study) for file in self.files}
        added = {str(file): add(self.study, study, answers) for file, answers in sent.items()}
        for file, answers in sent.items():
            say(console, f"{file}: {added[str(file)]} new of {len(answers)} answers.")
        return {"study": str(self.study), "added": added}


@dataclass(frozen=True, kw_only=True)
class JudgeResults:
    """Print how often each method was preferred, with intervals."""

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.preference import Study, read_answers, results_of

        study = Study.open(self.study)
        results = results_of(study, read_answers(self.study, study))
        _print(console, results)
        return {"study": str(self.study), **results.to_json()}


def _folders(what: str, values: Sequence[str]) -> dict[str, Path]:
    """Read NAME=FOLDER for each value."""
    from moongate.files import exists

    found: dict[str, Path] = {}
    for value in values:
        splits = [(value[:at], value[at + 1 :]) for at, character in enumerate(value) if character == "="]
        there = (split for split in splits if split[1] and exists(Path(split[1])))  # lr=0.1 may be the folder's name
        name, folder = next(there, splits[0] if splits else ("", ""))
        if not (name.strip() and folder):
            raise OptionError(f"--{what} {value!r} is not a name and a folder. Write it as NAME=FOLDER.")
        if name.strip() in found:
            raise OptionError(f"The {what} {name.strip()!r} is given twice. Give each a name of its own.")
        found[name.strip()] = Path(folder)
    return found


def _subjects(folders: dict[str, Path]) -> "list[Subject]":
    from moongate.preference.making import Subject

    return [Subject(words=words, photos=folder) for words, folder in folders.items()]


def _print(console: Console, results: "Results") -> None:
    from moongate.preference.results import PREFERENCE_HEAD, STRENGTHS_HEAD, preference_rows, strength_rows

    raters = "1 rater" if len(results.raters) == 1 else f"{len(results.raters)} raters"
    say(console, f"{raters}, {results.trials} trials for each.")
    print_table(console, PREFERENCE_HEAD, preference_rows(results))
    for strengths in results.strengths:
        if strengths.values:
            print_table(console, STRENGTHS_HEAD, strength_rows(strengths), title=f"Strengths, {strengths.question}")
        if strengths.problem:
            say(console, f"Strengths, {strengths.question}: {strengths.problem}")
