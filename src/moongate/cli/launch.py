"""A command that a launcher such as torchrun has started several times: one of the processes speaks for all."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from moongate.errors import InputError, MoongateWarning

if TYPE_CHECKING:
    from moongate.ranks import Ranks

__all__ = ["launched"]


@contextlib.contextmanager
def launched(device: str | None, console: Console) -> "Iterator[tuple[Ranks, Console]]":
    """Join the processes of the launcher, if there is one, until the block ends.

    All get the same command, so only the first one prints, warns, and says what is wrong with it.

    Args:
        device: The device that the user named, if any.
        console: Where the first one prints.

    Yields:
        The place of this process, and where it prints.
    """
    from moongate.ranks import joined

    with joined(device) as ranks:
        if ranks.is_first:
            yield ranks, console
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MoongateWarning)
            try:
                yield ranks, Console(quiet=True)
            except InputError:
                sys.exit(2)
