"""What the worker process of the studio answers: `ANSWERS`, by the kind of question.

Each is a function of the `Bench`, which holds the loaded model, and of named arguments; it returns plain JSON. Its
module is imported when it is first asked for, so that a question about a word does not wait for all others.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from moongate.errors import OptionError
from moongate.studio.worker.bench import Bench

__all__ = ["ANSWERS", "answer"]

ANSWERS: Mapping[str, str] = {
    "bring_photos": "teaching",
    "check_mask": "teaching",
    "check_photo": "teaching",
    "check_token": "teaching",
    "export_concept": "keeping",
    "import_concept": "keeping",
    "look_at_photos": "teaching",
    "measure_speed": "teaching",
    "merge_report": "composing",
    "model_facts": "teaching",
    "side_of": "teaching",
    "usual_steps": "teaching",
}
"""The kinds of questions, which are names of functions, with the modules of this package that hold them."""


def answer(bench: Bench, kind: str, arguments: Mapping[str, Any]) -> Any:
    """Answer a question.

    Raises:
        OptionError: There is no such kind.
    """
    if kind not in ANSWERS:
        raise OptionError(f"The studio's worker knows no question {kind!r}. Known: {', '.join(ANSWERS)}.")
    function = getattr(import_module(f"{__name__}.{ANSWERS[kind]}"), kind)
    return function(bench, **arguments)
