"""The pictures of a run: PNG files in its folder, and a listing that says what each of them shows."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from moongate.errors import OptionError
from moongate.files import locked, write_atomically
from moongate.limits import MAX_PIXELS
from moongate.pages import png_bytes
from moongate.run_records import LISTING, PICTURES
from moongate.texts import parse_json, read_text

__all__ = ["Album", "Drawn", "Part"]

Part = Literal["taught", "validation", "comparison", "unrelated"]
"""Pictures to learn from; pictures of one prompt at several steps; base and concept side by side at the end; and
pictures of unrelated prompts, in which the cost of training shows."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a picture shows.

    Raises:
        TypeError: A value is of another type, as in the listing of a stranger.
    """

    part: Part
    step: int
    """Steps of training before it was drawn; 0 is the base model."""
    prompt: str
    """Its prompt, or the caption of a picture to learn from."""
    seed: int
    """Its seed, or the position of a picture to learn from."""
    place: int = 0
    """Position of its prompt among those that are drawn together."""

    def __post_init__(self) -> None:
        numbers = (self.step, self.seed, self.place)
        if not (self.part in get_args(Part) and isinstance(self.prompt, str)):
            raise TypeError(
                f"a picture has a part of {get_args(Part)} and a prompt, not {self.part!r}, {self.prompt!r}"
            )
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"the step, seed and place of a picture are whole numbers, not {numbers}")

    @property
    def file(self) -> str:
        """Its name in the folder of pictures."""
        return f"{self.part}-{self.step:06d}-{self.place}-{self.seed:03d}.png"


@dataclass(frozen=True)
class Album:
    """The pictures in a run folder."""

    run_folder: Path

    def add(self, drawn: Drawn, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a picture, and then its line of the listing; an equal one is replaced."""
        write_atomically(self._pictures / drawn.file, png_bytes(image))
        with locked(self.run_folder / f".{LISTING}"):  # a training and `measure` may add at the same time
            others = [other for other in self.drawn() if other.file != drawn.file]
            lines = "".join(json.dumps(asdict(each)) + "\n" for each in (*others, drawn))
            write_atomically(self.run_folder / LISTING, lines.encode())

    def drawn(self, part: Part | None = None) -> list[Drawn]:
        """Return what the pictures of a part show, or of all, in the order in which they were added.

        Pictures that somebody has removed are left out, and all of them if the listing cannot be read.
        """
        try:
            lines = read_text(self.run_folder / LISTING).splitlines()
            pictures = [Drawn(**parse_json(line)) for line in lines]
        except (OSError, ValueError, TypeError):
            return []
        return [each for each in pictures if part in (None, each.part) and (self._pictures / each.file).is_file()]

    def image(self, drawn: Drawn) -> UInt8[np.ndarray, "height width 3"]:
        """Return the pixels of a picture. Raises OptionError if it cannot be read."""
        file = self._pictures / drawn.file
        try:
            with Image.open(file, formats=["PNG"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has more than {MAX_PIXELS // 10**6} million pixels")
                return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise OptionError(
                f"{file} cannot be read ({error}). Remove it: the run needs none of its pictures."
            ) from error

    @property
    def _pictures(self) -> Path:
        return self.run_folder / PICTURES
