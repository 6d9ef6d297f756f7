"""Training data: subjects, regularization pictures, captions, augmentation and picture files.

The wording of captions can be imported without PyTorch: the other modules are imported when they are first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moongate.data.captions import PRESETS, Named, Preset, photo_of, with_article, with_words, without_tokens

if TYPE_CHECKING:
    from moongate.data.augmentation import ZOOM, Augmented, Framing, augment, framed, framing, square
    from moongate.data.subjects import Regularization, Subject

__all__ = [
    "PRESETS",
    "ZOOM",
    "Augmented",
    "Framing",
    "Named",
    "Preset",
    "Regularization",
    "Subject",
    "augment",
    "framed",
    "framing",
    "photo_of",
    "square",
    "with_article",
    "with_words",
    "without_tokens",
]

_HOMES = {
    "augmentation": ("ZOOM", "Augmented", "Framing", "augment", "framed", "framing", "square"),
    "subjects": ("Regularization", "Subject"),
}
"""The module of each name that is imported when it is first used."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
