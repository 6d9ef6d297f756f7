"""The command `moongate analyze`."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ..errors import OptionError
from .terminal import load, say

if TYPE_CHECKING:
    from ..concept import Concept

__all__ = ["Analyze"]


@dataclass(frozen=True, kw_only=True)
class Analyze:
    """Look into a concept: how far each kind of layer moved, the spectrum of its changes, or where words look."""

    what: Annotated[Literal["weights", "spectrum", "attention"], tyro.conf.Positional]
    file: Annotated[Path | None, tyro.conf.Positional] = None
    """Concept file; attention works without one, too."""
    prompt: str | None = None
    """What to draw for attention; a photo of the concept's own words by default."""
    count: int = 1
    """Pictures to draw for attention."""
    seed: int = 0
    steps: int = 50
    model: str | None = None
    """The model; the concept's own, or pocket, by default."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    out: Path = Path("analysis")
    """Folder for a page, JSON and PNG files named after what was looked at."""
    device: str | None = None

    def __call__(self, console: Console) -> None:
        from ..concept import Concept

        if self.file is None and self.what != "attention":
            raise OptionError(f"There is no concept file to find the {self.what} of. Name one.")
        concept = Concept.load(self.file) if self.file else None
        if self.what == "attention":
            page = self._attention(concept)
        else:
            assert concept is not None
            page = self._weights(concept, console) if self.what == "weights" else self._spectrum(concept, console)
        say(console, f"Wrote {page}.")

    def _weights(self, concept: "Concept", console: Console) -> Path:
        from ..analysis import weight_changes
        from ..analysis_page import WEIGHTS_HEAD, weights_rows, write_weights

        backbone = load(self.model or concept.base, self.device, "float32", self.config)
        changes = weight_changes(backbone, concept)
        _print(console, WEIGHTS_HEAD, weights_rows(changes))
        return write_weights(changes, self.out)

    def _spectrum(self, concept: "Concept", console: Console) -> Path:
        from ..analysis import spectra
        from ..analysis_page import SPECTRUM_HEAD, spectrum_rows, write_spectra

        found = spectra(concept)
        _print(console, SPECTRUM_HEAD, spectrum_rows(found))
        return write_spectra(found, self.out)

    def _attention(self, concept: "Concept | None") -> Path:
        from ..analysis import word_maps
        from ..analysis_page import write_attention
        from ..data import photo_of
        from ..sampling import SampleOptions

        if self.count < 1:
            raise OptionError(f"count is {self.count}; it must be at least 1.")
        if concept is None and self.prompt is None:
            raise OptionError("There is neither a concept file nor a --prompt to draw. Give one.")
        things = [subject.words for subject in concept.subjects] if concept else []
        prompt = self.prompt or photo_of(*things)
        options = SampleOptions(steps=self.steps)
        model = self.model or (concept.base if concept else "pocket")
        backbone = load(model, self.device, "float32", self.config)
        with concept.applied(backbone) if concept else contextlib.nullcontext():
            seeds = tuple(range(self.seed, self.seed + self.count))
            found = word_maps(backbone, prompt, seeds=seeds, options=options)
        return write_attention(found, self.out)


def _print(console: Console, head: tuple[str, ...], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
