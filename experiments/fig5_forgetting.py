"""Fig. 5: what the word of the category draws after training with and without regularization pictures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.pictures import Word
from experiments.records import Record, Results
from experiments.rendering import NAMES, difference, labeled_rows, table
from experiments.scores import BASE, OURS
from experiments.study import FEW
from moongate import pocket

TITLE = "Fig. 5: the word of the category, with and without regularization"
FIGURE, PROMPT = "fig5", "photo of a {} on the beach"
METHODS = (BASE, f"{OURS}-without-regularization", OURS)


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from words(FIGURE, PROMPT, METHODS)


def report(results: Results, out: Path) -> str:
    """Return the figure and its numbers."""
    return compared(results, out, FIGURE, PROMPT, METHODS)


def words(figure: str, prompt: str, methods: Sequence[str]) -> Iterator[Word]:
    """Yield the records of what a prompt without the token draws after training by each method."""
    yield from (word(figure, prompt, example, method) for example in FEW for method in methods)


def word(figure: str, prompt: str, example: str, method: str) -> Word:
    """Return the record of a subject and a method; `{style}` in the prompt is the style of the subject's pictures."""
    return Word(example, method, prompt.replace("{style}", pocket.example(example).style), figure)


def _measured(values: Mapping[str, Any]) -> tuple[float, ...]:
    image = values["image"]
    recognized = values["recognized"] / values["pictures"]
    return image["pocket-clip"], image["efficientnet-lite0"], values["diversity"], recognized


def compared(results: Results, out: Path, figure: str, prompt: str, methods: Sequence[str]) -> str:
    """Return a table of how methods differ from the first, pocket itself, and the first pictures of each subject."""
    values = {method: [_measured(results[word(figure, prompt, each, method)]) for each in FEW] for method in methods}
    base, *taught = ([list(column) for column in zip(*values[method], strict=True)] for method in methods)
    rows = [(NAMES[methods[0]], *(f"{mean(column):.3f}" for column in base))]
    rows += [
        (NAMES[method], *map(difference, columns, base)) for method, columns in zip(methods[1:], taught, strict=True)
    ]
    asked = prompt.format("[category]", style="[style]")
    text = (
        f'The prompt is "{asked}", without the token. Image alignment is measured with '
        "held-out pictures of the subject: above that of pocket itself, the subject has leaked into the word. "
        "Diversity is the mean of 1 - cosine over pairs of pictures (Lite0), recognized is the share of pictures in "
        f"which the recognizer sees the category. {len(FEW)} subjects, seed 0: the means of pocket itself, and by how "
        "much each method differs from it, subject by subject, with 95 % intervals.\n\n"
    )
    head = ("method", "image alignment", "image alignment (Lite0)", "diversity", "category recognized")
    text += table(head, rows)
    for example in FEW:
        shown = {NAMES[method]: results.picture(word(figure, prompt, example, method)) for method in methods}
        text += f"\n{example}:\n\n" + labeled_rows(shown, out / f"{figure}_{example}.webp")
    return text
