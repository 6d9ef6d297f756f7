"""The command `moongate analyze`."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from moongate.cli.terminal import open_concept, open_concepts, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept

__all__ = ["Analyze"]


@dataclass(frozen=True, kw_only=True)
class Analyze:
    """Look into a concept: how far each kind of layer moved, the spectrum of its changes, or where words look."""

    what: Annotated[Literal["weights", "spectrum", "attention"], tyro.conf.Positional]
    file: Annotated[Path | None, tyro.conf.Positional] = None
    """Concept file of any format; attention works without one, too."""
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
        if self.file is None and self.what != "attention":
            raise OptionError(f"There is no concept file to find the {self.what} of. Name one.")
        find = {"weights": self._weights, "spectrum": self._spectrum, "attention": self._attention}[self.what]
        say(console, f"Wrote {find(console)}.")

    def _opened(self, console: Console) -> "tuple[Backbone, Concept | None]":
        files = [self.file] if self.file else []
        backbone, concepts = open_concepts(files, self.model, self.config, self.device, "float32", console)
        return backbone, next(iter(concepts), None)

    def _weights(self, console: Console) -> Path:
        from moongate.analysis import weight_changes
        from moongate.analysis.page import WEIGHTS_HEAD, weights_rows, write_weights

        backbone, concept = self._opened(console)
        assert concept is not None
        changes = weight_changes(backbone, concept)
        _print(console, WEIGHTS_HEAD, weights_rows(changes))
        return write_weights(changes, self.out)

    def _spectrum(self, console: Console) -> Path:
        from moongate.analysis import spectra
        from moongate.analysis.page import SPECTRUM_HEAD, spectrum_rows, write_spectra

        assert self.file is not None
        found = spectra(open_concept(self.file, self.model, self.config, self.device, console))
        _print(console, SPECTRUM_HEAD, spectrum_rows(found))
        return write_spectra(found, self.out)

    def _attention(self, console: Console) -> Path:
        from moongate.analysis import word_maps
        from moongate.analysis.page import write_attention
        from moongate.data import photo_of
        from moongate.sampling import SampleOptions

        if self.count < 1:
            raise OptionError(f"count is {self.count}; it must be at least 1.")
        if self.file is None and self.prompt is None:
            raise OptionError("There is neither a concept file nor a --prompt to draw. Give one.")
        options = SampleOptions(steps=self.steps)
        backbone, concept = self._opened(console)
        things = [subject.words for subject in concept.subjects] if concept else []
        if not (self.prompt or things):
            raise OptionError(f"{self.file} names no thing to draw a photo of. Say what to draw with --prompt.")
        prompt = self.prompt or photo_of(*things)
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
