"""Ship taught concepts with pocket, so that the studio's demo begins with something to look at.

`python -m recipe.taught CONCEPT.safetensors... --run RUN.run --pictures FOLDER` packs what `moongate train`, `measure`
and `generate` have made, as `recipe/README.md` shows.
"""

import json
import lzma
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from moongate.compression import compress
from moongate.concept import Concept, LowRank
from moongate.errors import OptionError
from moongate.files import write_atomically
from moongate.pocket import taught_folder
from moongate.run_page import Album
from moongate.run_records import CONFIG, LOG, MEASURES
from recipe.command import command

__all__ = ["TaughtOptions", "pack", "rounded", "small"]

ENERGY = 0.5
MANTISSA_BITS = 10
"""As many as float16 has: the factors then take half the space, and the pictures show no difference."""
PARTS = ("taught", "validation", "comparison")
"""What is shipped of the pictures of a run."""


@dataclass(frozen=True, kw_only=True)
class TaughtOptions:
    """What to pack."""

    concepts: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Concept files; each keeps its name."""
    run: Path | None = None
    """The run folder of one of them. Without it or pictures, only the small concepts are written into `small`."""
    pictures: Path | None = None
    """Folder of PNG files that `moongate generate` has drawn with the small concepts."""


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


def pack(concepts: Sequence[Path], run: Path, pictures: Path) -> None:
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


def main(options: TaughtOptions) -> None:
    """Check that everything is there, and pack it."""
    folders = [folder for folder in (options.run, options.pictures) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise OptionError(f"There is no folder {folder}. Check the path.")
    if options.run is None or options.pictures is None:
        if folders:
            raise OptionError("A run and pictures are packed together. Give both --run and --pictures, or neither.")
        for file in options.concepts:
            write_atomically(file.parent / "small" / file.name, small(Concept.load(file)).file_bytes)
        return
    pack(options.concepts, options.run, options.pictures)


if __name__ == "__main__":
    command(TaughtOptions, main, description=__doc__)
