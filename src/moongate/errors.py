"""The exceptions that users may meet. Each message names the problem, the value given and the remedy.

```
MoongateError
├── InputError (ValueError)     an argument cannot be used
│   ├── PictureError            a picture, mask or caption file, or a folder of pictures
│   ├── TokenError              a token, or a caption or prompt that lacks it
│   └── OptionError             a number, a name, a path
├── BackboneError               a model that cannot be loaded, or lacks a part that is needed
├── ConceptFileError            a file that is not a readable concept
├── BaseMismatchError           a concept that was made for another base model
├── PublishError                an upload to the hub that failed
├── CollectionError             a collection of captioned pictures that cannot be read or searched
├── MissingLibrary              an optional library that a command needs
├── TrainingDiverged            a loss that is no longer a finite number
├── FleetError                  jobs that failed, workers that cannot work, or a cluster that is gone
├── StudioError                 a process of the studio that ended before it answered
├── RankLost                    a process of a training that has ended before the others
└── CorpusError                 a package of pocket's training data that is missing or altered
```

`MoongateWarning` is what the library warns with, by `warn`.
"""

import warnings
from collections.abc import Sequence

__all__ = [
    "BackboneError",
    "BaseMismatchError",
    "CollectionError",
    "ConceptFileError",
    "CorpusError",
    "FleetError",
    "InputError",
    "MissingLibrary",
    "MoongateError",
    "MoongateWarning",
    "OptionError",
    "PictureError",
    "PublishError",
    "RankLost",
    "StudioError",
    "TokenError",
    "TrainingDiverged",
    "first_line",
    "listed",
    "shortened",
    "warn",
]

LONG = 300
"""Characters of an item that a message shows: files may have names of any length."""


class MoongateError(Exception):
    """The base of all exceptions of Moongate."""

    def __format__(self, spec: str) -> str:
        """Format the message as text, so that a caller may shorten it: f"{error:.80}"."""
        return format(str(self), spec)


class InputError(MoongateError, ValueError):
    """An argument cannot be used."""


class PictureError(InputError):
    """A picture, a mask, a caption file, or a folder of pictures cannot be used."""


class TokenError(InputError):
    """A token cannot be used, or a caption or prompt does not match the tokens."""


class OptionError(InputError):
    """A number, a name or a path is not allowed."""


class BackboneError(MoongateError):
    """A model cannot be loaded, or lacks a part that is needed."""


class ConceptFileError(MoongateError):
    """A file is not a readable concept."""


class BaseMismatchError(MoongateError):
    """A concept was made for another base model."""


class PublishError(MoongateError):
    """The hub cannot be reached, or refuses the upload."""


class CollectionError(MoongateError):
    """A collection of captioned pictures cannot be read, or was made with another text encoder."""


class MissingLibrary(MoongateError):
    """An optional library is not installed."""


class TrainingDiverged(MoongateError):
    """The loss is no longer a finite number; the last good state is saved."""


class FleetError(MoongateError):
    """Jobs of a fleet failed, its workers end again and again, or its cluster is gone."""


class StudioError(MoongateError):
    """A process of the studio ended before it answered, or failed in a way that nobody foresaw."""


class RankLost(MoongateError):
    """A process that trains together with others has ended before them."""


class CorpusError(MoongateError):
    """A package of pocket's training data is missing or was altered."""


class MoongateWarning(UserWarning):
    """Something was read, cut or ignored in a way that the user may not have meant.

    The library warns with this class alone, and the command line prints each warning once.
    """


def warn(text: str) -> None:
    """Issue a `MoongateWarning` at the caller of the calling function."""
    warnings.warn(text, MoongateWarning, stacklevel=3)


def listed(items: Sequence[str], *, at_most: int = 8) -> str:
    """Join items for a message. Items beyond the first `at_most` are only counted, and long ones are cut."""
    more = len(items) - at_most
    shown = [item if len(item) <= LONG else f"{item[:LONG]}..." for item in items[:at_most]]
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def shortened(text: str, *, at_most: int = 100) -> str:
    """Return a text for a message; of a longer one its beginning, up to a word, and "..."."""
    return text if len(text) <= at_most else f"{text[:at_most].rsplit(maxsplit=1)[0]} ..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message as one sentence, for use inside a message of ours.

    Args:
        error: An exception of another library, whose message may have many lines or none.

    Returns:
        The first line that holds text, or the name of the error's type, ending in a full stop.
    """
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if line.endswith(".") else f"{line}."
