"""Fig. 17: scores as training goes on."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from experiments.records import Record, Results
from experiments.rendering import MEASURES, NAMES, plot, save
from experiments.scores import Single
from experiments.study import FEW, for_pocket

TITLE = "Fig. 17: scores against training steps"
METHODS = ("custom-diffusion", "dreambooth", "textual-inversion")
SHARES = (0.2, 0.4, 1.0)
EXAMPLES = FEW[:3]


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (_single(e, m, share) for m in METHODS for share in SHARES for e in EXAMPLES)


def report(results: Results, out: Path) -> str:
    """Plot alignment with the text and with the pictures against steps."""
    text = f"Means over {len(EXAMPLES)} subjects, seed 0.\n\n"
    for column in ("text", "image"):
        curves = {
            NAMES[method]: [
                (
                    share * for_pocket(method).steps_per_subject,
                    mean(results.values([_single(e, method, share) for e in EXAMPLES], *MEASURES[column])),
                )
                for share in SHARES
            ]
            for method in METHODS
        }
        figure = plot(curves, x="steps", y=f"{column} alignment (pocket CLIP)", joined=True)
        text += save(figure, out / f"fig17_{column}.png")
    return text


def _single(example: str, method: str, share: float) -> Single:
    """Return the record after a share of the method's steps; all of them are Table 1's."""
    if share == 1:
        return Single(example, method)
    return Single(example, method, steps=round(share * for_pocket(method).steps_per_subject), kid=False)
