"""Ship taught concepts with pocket, so that the studio's demo begins with something to look at.

`python -m recipe.taught CONCEPT.safetensors... --run RUN.run --pictures FOLDER` packs what `moongate train`, `measure`
and `generate` have made, as `recipe/README.md` shows.
"""

import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from moongate.compression import compress
from moongate.concept import Concept, LowRank
from moongate.files import write_atomically
from moongate.pocket import taught_folder
from moongate.run_page import Album
from moongate.run_page.measures import MEASURES
from moongate.run_records import CONFIG, LOG

__all__ = ["pack", "rounded", "small"]

ENERGY = 0.5
MANTISSA_BITS = 10
"""As many as float16 has: the factors then take half the space, and the pictures show no difference."""
PARTS = ("taught", "validation", "comparison")
"""What is shipped of the pictures of a run."""


def rounded(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return float32 numbers rounded to `MANTISSA_BITS`; the bits that remain are zeros, which compress well."""
    shift = 23 - MANTISSA_BITS
    bits = tensor.contiguous().view(torch.int32)
    return (((bits + (1 << (shift - 1))) >> shift) << shift).view(torch.float32)


def small(concept: Concept) -> Concept:
    """Return a concept cut to low rank, with rounded factors."""
    cut = compress(concept, energy=ENERGY).concept
    deltas = {
        name: LowRank(up=rounded(change.up), down=rounded(change.down)) if isinstance(change, LowRank) else change
        for name, change in cut.deltas.items()
    }
    return replace(cut, deltas=deltas, tokens={token: rounded(row) for token, row in cut.tokens.items()})


def pack(concepts: list[Path], run: Path, pictures: Path) -> None:
    """Write what is shipped.

    Args:
        concepts: Concept files; each keeps its name.
        run: The run folder of one of them, which the page Watch shows.
        pictures: PNG files that `moongate generate` has drawn with the shipped concepts.
    """
    folder = taught_folder()
    for file in concepts:
        content = small(Concept.load(file)).file_bytes
        write_atomically(folder / f"{file.name}.xz", lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    place, album = folder / "run", Album(run)
    shutil.rmtree(place, ignore_errors=True)
    for name in (CONFIG, LOG, MEASURES):
        write_atomically(place / name, (run / name).read_bytes())
    shown = [drawn for drawn in album.drawn() if drawn.part in PARTS]
    write_atomically(place / "pictures.json", json.dumps([vars(drawn) for drawn in shown]).encode())
    for drawn in shown:
        Image.fromarray(album.image(drawn)).save(place / f"{Path(drawn.file).stem}.webp", quality=80, method=6)
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    shutil.copytree(pictures, folder / "pictures")


def main(
    concepts: Annotated[list[Path], tyro.conf.Positional], *, run: Path | None = None, pictures: Path | None = None
) -> None:
    """Pack everything; without a run or pictures, only write the small concepts into the folder `small`."""
    if run is None or pictures is None:
        for file in concepts:
            write_atomically(file.parent / "small" / file.name, small(Concept.load(file)).file_bytes)
        return
    pack(concepts, run, pictures)


if __name__ == "__main__":
    tyro.cli(main)
