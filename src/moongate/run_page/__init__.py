"""The page of a training run: what it drew, its losses and its settings, while it runs and afterwards.

What a run knows is data in its folder: `log.jsonl`, `config.json`, and the pictures that `Album` keeps. `page_of` makes
a page of them and changes nothing, so that any program can show a run that another one trains. The package stands above
training, which draws no pictures, and knows nothing of command lines. To show a run takes no PyTorch, to draw for it
does: what `drawing` holds is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moongate.run_page.album import Album, Drawn, Part
from moongate.run_page.page import PAGE, REFRESH_S, Status, duration, page_of

if TYPE_CHECKING:
    from moongate.run_page.drawing import (
        COMPARED_SEEDS,
        DRAWING,
        PLACES,
        Comparison,
        caption_template,
        compared,
        draw,
        drawings,
        seconds_to_draw,
    )

__all__ = [
    "COMPARED_SEEDS",
    "DRAWING",
    "PAGE",
    "PLACES",
    "REFRESH_S",
    "Album",
    "Comparison",
    "Drawn",
    "Part",
    "Status",
    "caption_template",
    "compared",
    "draw",
    "drawings",
    "duration",
    "page_of",
    "seconds_to_draw",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # and not imported above
        return getattr(import_module("moongate.run_page.drawing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
