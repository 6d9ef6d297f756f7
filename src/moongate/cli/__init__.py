"""The command line: one module for each command, `moongate train`, `generate`, `merge` and the others.

Commands parse, call the library and print. Importing them loads no PyTorch: each imports what it needs when it runs.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence

import tyro
from rich.console import Console
from tyro.extras import SubcommandApp

from moongate import __version__
from moongate.cli.analyze import Analyze
from moongate.cli.compress import Compress
from moongate.cli.convert import Convert
from moongate.cli.demo import Demo, DemoCompose
from moongate.cli.evaluate import Evaluate
from moongate.cli.generate import Generate
from moongate.cli.info import Info
from moongate.cli.merge import Merge
from moongate.cli.retrieve import RetrieveIndex, RetrieveSearch
from moongate.cli.terminal import say
from moongate.cli.tokens import TokensSuggest
from moongate.cli.train import Train
from moongate.errors import MoongateError

__all__ = [
    "Analyze",
    "Compress",
    "Convert",
    "Demo",
    "DemoCompose",
    "Evaluate",
    "Generate",
    "Info",
    "Merge",
    "RetrieveIndex",
    "RetrieveSearch",
    "TokensSuggest",
    "Train",
    "main",
]

DESCRIPTION = """\
Teach a text-to-image diffusion model your own subjects from a few photos.
  moongate train my-photos/ --category "teddy bear" --token "<bear>"
  moongate generate "a <bear> teddy bear on a sofa" --concept bear.safetensors

Options of a command: moongate COMMAND --help. Version: moongate --version."""


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
    command = _commands().cli(prog="moongate", description=DESCRIPTION, args=words, config=config)
    with _errors_printed():
        command(Console())


def _commands() -> SubcommandApp:
    retrieve, demo, tokens = SubcommandApp(), SubcommandApp(), SubcommandApp()
    retrieve.command(name="index")(RetrieveIndex)
    retrieve.command(name="search")(RetrieveSearch)
    demo.command(name="single", is_default=True)(Demo)
    demo.command(name="compose")(DemoCompose)
    tokens.command(name="suggest")(TokensSuggest)

    app = SubcommandApp()
    app.command(name="train")(Train)
    app.command(name="generate")(Generate)
    app.command(name="merge")(Merge)
    app.command(name="compress")(Compress)
    app.command(name="info")(Info)
    app.command(name="convert")(Convert)
    app.command(retrieve, name="retrieve", help="Find regularization pictures by their captions.")
    app.command(name="evaluate")(Evaluate)
    app.command(name="analyze")(Analyze)
    app.command(demo, name="demo", help="Teach pocket example subjects and write a page of pictures.")
    app.command(tokens, name="tokens", help="Find tokens from which new words can start.")
    return app


@contextlib.contextmanager
def _errors_printed() -> Iterator[None]:
    """Print an error as one message and exit: with status 2, or 130 after Ctrl-C."""
    try:
        yield
    except MoongateError as error:
        say(Console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        remedy = "Free some space, or choose a path that can be read and written."
        say(Console(stderr=True), f"error: {path}{error.strerror or error}. {remedy}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
