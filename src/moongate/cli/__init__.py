"""The command line: one module for each command, `moongate train`, `generate`, `merge` and the others.

Commands parse, call the library and print. Importing them loads no PyTorch: each imports what it needs when it runs.
A command returns what it reports, which `--json` prints as one object on standard output; everything else then goes to
standard error.
"""

import contextlib
import difflib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import tyro
from rich.console import Console
from tyro.extras import SubcommandApp

from moongate import __version__
from moongate.cli.analyze import Analyze
from moongate.cli.captions import Captions
from moongate.cli.compress import Compress
from moongate.cli.convert import Convert
from moongate.cli.demo import Demo, DemoCompose
from moongate.cli.edit import Edit
from moongate.cli.evaluate import Evaluate
from moongate.cli.fleet import Fleet
from moongate.cli.generate import Generate
from moongate.cli.hints import check_options
from moongate.cli.info import Info
from moongate.cli.judge import JudgeAdd, JudgeMake, JudgeResults
from moongate.cli.masks import Masks
from moongate.cli.measure import Measure
from moongate.cli.merge import Merge
from moongate.cli.options import READERS, at_home
from moongate.cli.retrieve import RetrieveIndex, RetrieveSearch
from moongate.cli.studio import Studio
from moongate.cli.terminal import say
from moongate.cli.tokens import TokensSuggest
from moongate.cli.train import Train
from moongate.errors import MoongateError, MoongateWarning, OptionError

__all__ = [
    "Analyze",
    "Captions",
    "Compress",
    "Convert",
    "Demo",
    "DemoCompose",
    "Edit",
    "Evaluate",
    "Fleet",
    "Generate",
    "Info",
    "JudgeAdd",
    "JudgeMake",
    "JudgeResults",
    "Masks",
    "Measure",
    "Merge",
    "RetrieveIndex",
    "RetrieveSearch",
    "Studio",
    "TokensSuggest",
    "Train",
    "main",
]

Command = Callable[..., Any]
"""A class of options whose instances run the command: they take a console and return what they report."""

DESCRIPTION = """\
Teach a text-to-image diffusion model your own subjects from a few photos.
  moongate train my-photos/ --category "teddy bear" --token "<bear>"
  moongate generate "a <bear> teddy bear on a sofa" --concept bear.safetensors

Options of a command: moongate COMMAND --help. Version: moongate --version.

Exit status: 0 if all went well, 2 after an error, 130 after Ctrl-C."""


COMMANDS: Mapping[str, Command | Mapping[str, Command]] = {
    "train": Train,
    "generate": Generate,
    "edit": Edit,
    "captions": Captions,
    "masks": Masks,
    "merge": Merge,
    "compress": Compress,
    "info": Info,
    "convert": Convert,
    "retrieve": {"index": RetrieveIndex, "search": RetrieveSearch},
    "measure": Measure,
    "evaluate": Evaluate,
    "judge": {"make": JudgeMake, "add": JudgeAdd, "results": JudgeResults},
    "analyze": Analyze,
    "fleet": Fleet,
    "studio": Studio,
    "demo": {"single": Demo, "compose": DemoCompose},
    "tokens": {"suggest": TokensSuggest},
}
"""Commands by name; those of two words by their first word, then by their second."""
GROUPS = {
    "retrieve": "Find regularization pictures by their captions.",
    "judge": "Ask people which pictures they prefer, and measure their answers.",
    "demo": "Teach pocket example subjects and write a page of pictures.",
    "tokens": "Find tokens from which new words can start.",
}
"""Help for commands of two words."""
DEFAULTS = {"demo": "single"}
"""Second words that may be left out."""
LEAST_COLUMNS = 20
"""Columns in which help is laid out at least."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Errors are printed in one message without a traceback, and the program exits with status 2; after Ctrl-C with 130.

    Args:
        arguments: The words after `moongate`; those of the process when None.
    """
    words = [at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    with _streams_open(), _errors_printed():
        if words == ["--version"]:
            print(f"moongate {__version__}")
            return
        _check_words(words)
        with _room_for_help():
            command = _parsed(words)
        console = Console(stderr=command.output.json, quiet=command.output.quiet)
        with _warnings_printed():
            report = command(console)
        if command.output.json:
            print(json.dumps(report))


@contextlib.contextmanager
def _room_for_help() -> Iterator[None]:
    """Let the parser lay out help and errors for a terminal of some columns: in fewer than seven it goes on forever."""
    columns = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(LEAST_COLUMNS)
    try:
        yield
    finally:
        if columns is not None:
            os.environ["COLUMNS"] = columns
        else:
            os.environ.pop("COLUMNS", None)


def _parsed(words: Sequence[str]) -> Any:
    """Return the command with its options. Only the parser of the command that is named is built, which is quick."""
    config = (
        tyro.conf.CascadeSubcommandArgs,  # lets `demo --seed 1` stand for `demo single --seed 1`
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.PositionalMetavarFromFieldName,
    )
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        return _app().cli(prog="moongate", description=DESCRIPTION, args=words, config=config, registry=READERS)
    prog, args = f"moongate {words[0]}", words[1:]
    if isinstance(command, Mapping):
        return _group(words[0]).cli(prog=prog, description=GROUPS[words[0]], args=args, config=config, registry=READERS)
    return tyro.cli(command, prog=prog, args=args, config=config, registry=READERS)


def _app() -> SubcommandApp:
    app = SubcommandApp()
    for name, command in COMMANDS.items():
        if isinstance(command, Mapping):
            app.command(_group(name), name=name, help=GROUPS[name])
        else:
            app.command(name=name)(command)
    return app


def _group(name: str) -> SubcommandApp:
    group, commands = SubcommandApp(), COMMANDS[name]
    assert isinstance(commands, Mapping)
    for second, command in commands.items():
        group.command(name=second, is_default=DEFAULTS.get(name) == second)(command)
    return group


def _check_words(words: Sequence[str]) -> None:
    """Raise OptionError for a word that names no command, is not UTF-8, or is an option of another program or twice."""
    for word in words:
        if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
            raise OptionError(f"The argument {word!r} is not text in UTF-8. Type it again, or rename the file.")
    known: Mapping[str, Any] = COMMANDS
    command: Any = None
    for position, word in enumerate(words[:2]):
        if word.startswith("-"):
            break
        if word not in known:
            similar = difflib.get_close_matches(word.lower(), known, n=1)
            meant = f"Did you mean {similar[0]!r}?" if similar else f"Known: {', '.join(known)}."
            raise OptionError(f"There is no command {' '.join(words[: position + 1])!r}. {meant}")
        command = known[word]
        if not isinstance(command, Mapping):
            break
        known = command
    if isinstance(command, Mapping):
        command = command.get(DEFAULTS.get(words[0], ""))
    if command:
        check_options(command, words)


@contextlib.contextmanager
def _warnings_printed() -> Iterator[None]:
    """Print each warning of the library once, as one line on standard error."""
    usual, printed = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, MoongateWarning):
            usual(message, category, filename, lineno, file, line)
        elif str(message) not in printed:
            printed.add(str(message))
            say(Console(stderr=True), f"warning: {message}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", MoongateWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _streams_open() -> Iterator[None]:
    """Print nowhere what would go to standard output or error, if it was closed before the program began, as by >&-."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.ExitStack() as redirected:
        if sys.stdout is None:
            redirected.enter_context(contextlib.redirect_stdout(nowhere))
        if sys.stderr is None:
            redirected.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def _errors_printed() -> Iterator[None]:
    """Print an error as one message and exit: with status 2, or 130 after Ctrl-C.

    When the reader of the output has gone, as `head` does, the program ends without a word and with status 141, as
    programs do that the signal SIGPIPE ends.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # shows whether the reader has gone
    except MoongateError as error:
        say(Console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        sys.exit(141)
    except OSError as error:
        from moongate.files import remedy

        path = f"{error.filename}: " if error.filename else ""
        say(Console(stderr=True), f"error: {path}{error.strerror or error}. {remedy(error)}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
