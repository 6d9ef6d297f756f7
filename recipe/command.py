"""What all commands of the recipe have in common: options from the command line, and errors as one sentence."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from moongate.errors import MoongateError

__all__ = ["command"]


def command(options: type[Any], work: Callable[[Any], object], *, description: str | None) -> None:
    """Read the options from the command line and do the work.

    An error of Moongate's own tree ends the program with its message and exit code 2, without a traceback.

    Args:
        options: a dataclass of the options.
        work: what to do with them.
        description: the text above the options in `--help`; the module's docstring.
    """
    try:
        work(tyro.cli(options, description=description))
    except MoongateError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
