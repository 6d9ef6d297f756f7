"""Fig. 5: what the word of the category draws after training with and without regularization pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.pictures import Word
from experiments.records import Record, Results
from experiments.rendering import NAMES, interval, labeled_rows, table
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


def compared(results: Results, out: Path, figure: str, prompt: str, methods: Sequence[str]) -> str:
    """Return a table of methods with 95 % intervals over subjects, and the first pictures of each subject."""
    rows = []
    for method in methods:
        found = [results[word(figure, prompt, example, method)] for example in FEW]
        rows.append(
            (
                NAMES[method],
                interval([[values["image"]["pocket-clip"]] for values in found]),
                interval([[values["image"]["efficientnet-lite0"]] for values in found]),
                interval([[values["diversity"]] for values in found]),
                interval([[values["recognized"] / values["pictures"]] for values in found], digits=0, percent=True),
            )
        )
    asked = prompt.format("[category]", style="[style]")
    text = (
        f'The prompt is "{asked}", without the token. Image alignment is measured with '
        "held-out pictures of the subject: above that of pocket itself, the subject has leaked into the word. "
        "Diversity is the mean of 1 - cosine over pairs of pictures (Lite0). Means over "
        f"{len(FEW)} subjects with 95 % intervals over them, seed 0.\n\n"
    )
    head = ("method", "image alignment", "image alignment (Lite0)", "diversity", "category recognized")
    text += table(head, rows)
    for example in FEW:
        shown = {NAMES[method]: results.picture(word(figure, prompt, example, method)) for method in methods}
        text += f"\n{example}:\n\n" + labeled_rows(shown, out / f"{figure}_{example}.webp")
    return text
