"""The page of a training run: what it drew, its losses and its settings, while it runs and afterwards.

What a run knows is data in its folder: `log.jsonl`, `config.json`, and the pictures that `Album` keeps. `page_of` makes
a page of them and changes nothing, so that any program can show a run that another one trains. The package stands above
training, which draws no pictures, and knows nothing of command lines.
"""

from moongate.run_page.album import Album, Drawn, Part
from moongate.run_page.drawing import (
    COMPARED_SEEDS,
    DRAWING,
    PLACES,
    Comparison,
    common_opening,
    compared,
    draw,
    seconds_to_draw,
    without_tokens,
)
from moongate.run_page.page import PAGE, REFRESH_S, Status, duration, page_of

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
    "common_opening",
    "compared",
    "draw",
    "duration",
    "page_of",
    "seconds_to_draw",
    "without_tokens",
]
