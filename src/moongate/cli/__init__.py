"""The command line: one module for each command, `moongate train`, `generate`, `merge` and the others.

Commands parse, call the library and print. Importing them loads no PyTorch: each imports what it needs when it runs.
"""

import contextlib
import difflib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

import tyro
from rich.console import Console
from tyro.extras import SubcommandApp

from moongate import __version__
from moongate.cli.analyze import Analyze
from moongate.cli.compress import Compress
from moongate.cli.convert import Convert
from moongate.cli.demo import Demo, DemoCompose
from moongate.cli.evaluate import Evaluate
from moongate.cli.fleet import Fleet
from moongate.cli.generate import Generate
from moongate.cli.info import Info
from moongate.cli.merge import Merge
from moongate.cli.retrieve import RetrieveIndex, RetrieveSearch
from moongate.cli.terminal import say
from moongate.cli.tokens import TokensSuggest
from moongate.cli.train import Train
from moongate.errors import MoongateError, MoongateWarning, OptionError

__all__ = [
    "Analyze",
    "Compress",
    "Convert",
    "Demo",
    "DemoCompose",
    "Evaluate",
    "Fleet",
    "Generate",
    "Info",
    "Merge",
    "RetrieveIndex",
    "RetrieveSearch",
    "TokensSuggest",
    "Train",
    "main",
]

Command = Callable[..., Callable[[Console], None]]
"""A class of options whose instances run the command."""

DESCRIPTION = """\
Teach a text-to-image diffusion model your own subjects from a few photos.
  moongate train my-photos/ --category "teddy bear" --token "<bear>"
  moongate generate "a <bear> teddy bear on a sofa" --concept bear.safetensors

Options of a command: moongate COMMAND --help. Version: moongate --version."""


COMMANDS: Mapping[str, Command | Mapping[str, Command]] = {
    "train": Train,
    "generate": Generate,
    "merge": Merge,
    "compress": Compress,
    "info": Info,
    "convert": Convert,
    "retrieve": {"index": RetrieveIndex, "search": RetrieveSearch},
    "evaluate": Evaluate,
    "analyze": Analyze,
    "fleet": Fleet,
    "demo": {"single": Demo, "compose": DemoCompose},
    "tokens": {"suggest": TokensSuggest},
}
"""Commands by name; those of two words by their first word, then by their second."""
GROUPS = {
    "retrieve": "Find regularization pictures by their captions.",
    "demo": "Teach pocket example subjects and write a page of pictures.",
    "tokens": "Find tokens from which new words can start.",
}
"""Help for commands of two words."""
DEFAULTS = {"demo": "single"}
"""Second words that may be left out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Errors are printed in one message without a traceback, and the program exits with status 2.

    Args:
        arguments: The words after `moongate`; those of the process when None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"moongate {__version__}")
        return
    config = (
        tyro.conf.CascadeSubcommandArgs,  # lets `demo --seed 1` stand for `demo single --seed 1`
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.PositionalMetavarFromFieldName,
    )
    with _errors_printed():
        _check_name(words)
        command = _parser().cli(prog="moongate", description=DESCRIPTION, args=words, config=config)
        console = Console()
        with _warnings_printed(console):
            command(console)


def _parser() -> SubcommandApp:
    parser = SubcommandApp()
    for name, command in COMMANDS.items():
        if not isinstance(command, Mapping):
            parser.command(name=name)(command)
            continue
        group = SubcommandApp()
        for second, subcommand in command.items():
            group.command(name=second, is_default=DEFAULTS.get(name) == second)(subcommand)
        parser.command(group, name=name, help=GROUPS[name])
    return parser


def _check_name(words: Sequence[str]) -> None:
    """Raise OptionError for a word that names no command or is not UTF-8; options are left to the parser."""
    for word in words:
        if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
            raise OptionError(f"The argument {word!r} is not text in UTF-8. Type it again, or rename the file.")
    known: Mapping[str, object] = COMMANDS
    for position, word in enumerate(words[:2]):
        if word.startswith("-"):
            return
        if word not in known:
            similar = difflib.get_close_matches(word, known, n=1)
            meant = f"Did you mean {similar[0]!r}?" if similar else f"Known: {', '.join(known)}."
            raise OptionError(f"There is no command {' '.join(words[: position + 1])!r}. {meant}")
        group = known[word]
        if not isinstance(group, Mapping):
            return
        known = group


@contextlib.contextmanager
def _warnings_printed(console: Console) -> Iterator[None]:
    """Print each warning of the library once, as one line."""
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
            say(console, f"warning: {message}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", MoongateWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _errors_printed() -> Iterator[None]:
    """Print an error as one message and exit: with status 2, or 130 after Ctrl-C."""
    try:
        yield
    except MoongateError as error:
        say(Console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
    except OSError as error:
        from moongate.files import remedy

        path = f"{error.filename}: " if error.filename else ""
        say(Console(stderr=True), f"error: {path}{error.strerror or error}. {remedy(error)}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
