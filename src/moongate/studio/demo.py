"""What the studio begins with for a newcomer: taught concepts of pocket, a finished run, photos and pictures."""

import io
import json
import lzma
from pathlib import Path

import numpy as np
from PIL import Image

from moongate.files import write_atomically
from moongate.pocket import example, taught_folder
from moongate.run_page import Album, Drawn
from moongate.run_records import LOG
from moongate.studio.drafts import Draft, Settings, drafts
from moongate.studio.places import CONCEPT, Places

__all__ = ["RUN", "fill"]

RUN = "penguin"
"""The concept whose run is shipped."""
EXAMPLE = "drawn-penguin"
"""The example that it was taught from."""
JUDGES = 4
"""Photos of the example that are kept to judge."""


def fill(places: Places) -> None:
    """Unpack what is missing; what is there stays as it is.

    Args:
        places: The folders of a studio, which may have been filled before.
    """
    source = taught_folder()
    for packed in sorted(source.glob(f"*{CONCEPT}.xz")):
        _unpack(places.concepts / packed.stem, lzma.decompress(packed.read_bytes()))
    for drawn in sorted((source / "pictures").glob("*.png")):
        _unpack(places.gallery / drawn.name, drawn.read_bytes())
    if not (places.concepts / f"{RUN}.run" / LOG).exists():
        _unpack_run(source / "run", places.concepts / f"{RUN}.run")
    if not any(draft.name == RUN for draft in drafts(places.photos)):
        _bring_photos(places)


def _unpack(file: Path, content: bytes) -> None:
    if not file.exists():
        write_atomically(file, content)


def _unpack_run(source: Path, run: Path) -> None:
    """Write a run folder; its log comes last, because it is what makes the folder a run."""
    album = Album(run)
    for facts in json.loads((source / "pictures.json").read_text(encoding="utf-8")):
        drawn = Drawn(**facts)
        with Image.open(io.BytesIO((source / f"{Path(drawn.file).stem}.webp").read_bytes())) as image:
            album.add(drawn, np.array(image.convert("RGB")))
    records = sorted(source.glob("*.json*"), key=lambda file: file.name == LOG)
    for record in records:
        if record.name != "pictures.json":
            write_atomically(run / record.name, record.read_bytes())


def _bring_photos(places: Places) -> None:
    """Write a draft; its settings come last, because they are what makes the folder a draft."""
    chosen, draft = example(EXAMPLE), Draft(folder=places.photos / RUN)
    for file in (*chosen.training.glob("*.webp"), *chosen.training.glob("*.txt")):
        _unpack(draft.teach / file.name, file.read_bytes())
    for photo in sorted(chosen.evaluation.glob("*.webp"))[:JUDGES]:
        _unpack(draft.held_out / f"judge-{photo.name}", photo.read_bytes())
    draft.write(Settings(category=chosen.category, token="<pip>"))
