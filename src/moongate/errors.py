"""The exceptions users may meet. Each message names the problem, the value given and the remedy.

```
MoongateError
├── InputError (ValueError)     something given cannot be used
│   ├── PictureError            a picture, or a folder of pictures
│   ├── TokenError              a modifier token or a caption that lacks it
│   └── OptionError             a number, a name, a path
├── BackboneError               a model that cannot be loaded or lacks what is asked of it
├── ConceptFileError            a file that is not a readable concept
├── BaseMismatchError           a concept made for another backbone
├── PublishError                an upload to the hub that failed
├── CollectionError             a collection of captioned pictures that cannot be read or searched
├── MissingLibrary              an optional library that a command needs
├── TrainingDiverged            the loss is no longer a finite number
└── CorpusError                 a package of pocket's corpus is missing or altered
```
"""

from collections.abc import Sequence

__all__ = [
    "BackboneError",
    "BaseMismatchError",
    "CollectionError",
    "ConceptFileError",
    "CorpusError",
    "InputError",
    "MissingLibrary",
    "MoongateError",
    "OptionError",
    "PictureError",
    "PublishError",
    "TokenError",
    "TrainingDiverged",
    "first_line",
    "listed",
]


class MoongateError(Exception):
    """Anything that Moongate refuses or cannot finish."""


class InputError(MoongateError, ValueError):
    """Something given by the caller cannot be used."""


class PictureError(InputError):
    """A picture, or a folder of pictures, cannot be used."""


class TokenError(InputError):
    """A modifier token is not usable, or a caption or prompt does not agree with the tokens."""


class OptionError(InputError):
    """A number, name or path is outside what is allowed."""


class BackboneError(MoongateError):
    """A model cannot be loaded, or lacks what is asked of it."""


class ConceptFileError(MoongateError):
    """A file is not a readable concept."""


class BaseMismatchError(MoongateError):
    """A concept was made for another backbone."""


class PublishError(MoongateError):
    """The hub cannot be reached, or refuses."""


class CollectionError(MoongateError):
    """A collection of captioned pictures cannot be read, or was made with another text encoder."""


class MissingLibrary(MoongateError):
    """An optional library is not installed."""


class TrainingDiverged(MoongateError):
    """The loss is no longer a finite number; the last good state was kept."""


class CorpusError(MoongateError):
    """A package of pocket's corpus is missing or was altered."""


def listed(items: Sequence[str], *, at_most: int = 8) -> str:
    """Join items for a message, counting what is beyond the first few."""
    more = len(items) - at_most
    return "; ".join(items[:at_most]) + (f"; and {more} more" if more > 0 else "")


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
