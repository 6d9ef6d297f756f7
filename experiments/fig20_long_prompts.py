"""Fig. 20: whether long descriptions make pocket itself draw a subject."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.pictures import Word
from experiments.records import Record, Results
from experiments.rendering import labeled_rows, table
from experiments.scores import BASE, OURS
from experiments.study import real_pictures

TITLE = "Fig. 20: long prompts in pocket itself"
LONG = {
    "bulldog": "photo of a big brown and white {} with a black nose and a short tail",
    "jar": "photo of a blue {} with a yellow ring below a small blue neck",
    "winchesterSofa": "photo of a dark red leather {} with low round arms and small feet",
    "drawn-penguin": "drawing of a black and white {} with an orange beak and orange feet",
    "desk_lamp2": "photo of a red desk {} with a thin black arm on a round black foot",
}
"""What a person who sees the training pictures would write."""
KINDS = {"long": "a long prompt", "short": "a short prompt", "taught": "taught by our method"}


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (_word(example, kind) for example in LONG for kind in KINDS)


def report(results: Results, out: Path) -> str:
    """Return the image alignment with the subject, and the pictures."""
    rows = []
    for example in LONG:
        values = {kind: results[_word(example, kind)] for kind in KINDS}
        alignments = [values[kind]["image"] for kind in KINDS]
        cells = (f"{a['pocket-clip']:.3f}, {a['efficientnet-lite0']:.3f}" for a in alignments)
        rows.append((example, values["long"]["prompt"], *cells))
    text = (
        "Image alignment with held-out pictures of the subject, in features of pocket-clip and of "
        "EfficientNet-Lite0, seed 0.\n\n"
    ) + table(("subject", "long prompt", *KINDS.values()), rows)
    for example in LONG:
        real = np.concatenate([np.asarray(picture) for picture in real_pictures(example)[:6]], axis=1)
        shown = {"training pictures": Image.fromarray(real)}
        shown |= {name: results.picture(_word(example, kind)) for kind, name in KINDS.items()}
        text += f"\n{example}:\n\n" + labeled_rows(shown, out / f"fig20_{example}.webp")
    return text


def _word(example: str, kind: str) -> Word:
    style = LONG[example].partition(" of a ")[0]
    short = f"{style} of a {{}}"
    prompt = {"long": LONG[example], "short": short, "taught": f"{style} of a <{example.lower()}> {{}}"}[kind]
    return Word(example, OURS if kind == "taught" else BASE, prompt, f"fig20-{kind}")
