"""The command `moongate analyze`."""

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.options import (
    Model,
    ModelOptions,
    OptionalPath,
    OptionalStr,
    Output,
    OutputOptions,
    read_concept,
    read_concepts,
)
from moongate.cli.terminal import print_table, say
from moongate.errors import OptionError
from moongate.limits import check_count

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from moongate.backbone import Backbone
    from moongate.concept import Concept

__all__ = ["Analyze"]


@dataclass(frozen=True, kw_only=True)
class Analyze:
    """Show what a concept changes, or where the model attends to words."""

    what: Annotated[Literal["weights", "spectrum", "attention"], tyro.conf.Positional]
    """weights: how far each kind of layer moved.
    spectrum: the singular values of each change.
    attention: where each word of a prompt looks in the picture."""
    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="", metavar="FILE")] = None
    """Concept file of any format. Optional for attention."""
    prompt: OptionalStr = None
    """Prompt to draw for attention. Default: a photo of the concept's subjects."""
    source: OptionalStr = None
    """Prompt of a picture that --prompt edits, as `moongate edit` does: the maps of both are shown."""
    photo: OptionalPath = None
    """The photo that --source describes. Without it, the source is drawn."""
    count: int = 1
    """Pictures to draw for attention."""
    seed: int = 0
    """Seed of the first picture."""
    steps: int = 50
    """Denoising steps."""
    out: Path = Path("analysis")
    """Folder for an HTML page, JSON and PNG files, named after what is analyzed."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.files import check_folder

        if self.file is None and self.what != "attention":
            raise OptionError(f"There is no concept file to show the {self.what} of. Name one.")
        check_folder(self.out)
        write = {"weights": self._weights, "spectrum": self._spectrum, "attention": self._attention}[self.what]
        page, facts = write(console)
        say(console, f"Wrote {page}.")
        return {"page": str(page), **facts}

    def _weights(self, console: Console) -> tuple[Path, dict[str, Any]]:
        from moongate.analysis import weight_changes
        from moongate.analysis.page import WEIGHTS_HEAD, weights_rows, write_weights

        backbone, concept = self._read(console)
        assert concept is not None
        changes = weight_changes(backbone, concept)
        print_table(console, WEIGHTS_HEAD, weights_rows(changes))
        return write_weights(changes, self.out), {"weights": [asdict(change) for change in changes]}

    def _spectrum(self, console: Console) -> tuple[Path, dict[str, Any]]:
        from moongate.analysis import spectra
        from moongate.analysis.page import SPECTRUM_HEAD, spectrum_rows, write_spectra

        assert self.file is not None
        spectrum = spectra(read_concept(self.file, self.model, console))
        print_table(console, SPECTRUM_HEAD, spectrum_rows(spectrum))
        facts = {
            name: {
                "largest": float(s.values[0]),
                "rank_60": s.rank(0.6),
                "rank_95": s.rank(0.95),
                "full": len(s.values),
            }
            for name, s in spectrum.items()
        }
        return write_spectra(spectrum, self.out), {"spectrum": facts}

    def _attention(self, console: Console) -> tuple[Path, dict[str, Any]]:
        from moongate.analysis import edit_maps, word_maps
        from moongate.analysis.page import write_attention
        from moongate.data import photo_of
        from moongate.sampling import SampleOptions, check_seeds

        check_count("count", self.count)
        check_seeds([self.seed, self.seed + self.count])
        if self.file is None and self.prompt is None:
            raise OptionError("There is neither a concept file nor a --prompt to draw. Give one.")
        photo = self._photo()
        options = SampleOptions(steps=self.steps, scheduler="ddpm" if photo is None else "ddim")
        backbone, concept = self._read(console)
        subjects = [subject.words for subject in concept.subjects] if concept else []
        if not (self.prompt or subjects):
            raise OptionError(f"{self.file} names no subject to draw. Say what to draw with --prompt.")
        prompt = self.prompt or photo_of(*subjects)
        seeds = tuple(range(self.seed, self.seed + self.count))
        if self.source:
            maps = edit_maps(
                backbone, self.source, prompt, concept=concept, picture=photo, seeds=seeds, options=options
            )
            return write_attention(maps, self.out), {
                "source": self.source,
                "photo": str(self.photo) if self.photo else None,
                "prompt": prompt,
                "seeds": list(seeds),
            }
        with concept.applied(backbone) if concept else contextlib.nullcontext():
            maps = word_maps(backbone, prompt, seeds=seeds, options=options)
        return write_attention(maps, self.out), {"prompt": prompt, "seeds": list(seeds)}

    def _photo(self) -> "UInt8[np.ndarray, 'height width 3'] | None":
        """Return the photo to edit, if there is one. Raises OptionError where options do not fit together."""
        from moongate.data.pictures import read_picture
        from moongate.files import is_file

        if self.source and is_file(Path(self.source)):
            raise OptionError(
                f"--source {self.source} is a file, but it must be the prompt of the picture. Give the file with "
                "--photo, and say with --source what it shows."
            )
        if self.photo is None:
            return None
        if not self.source:
            raise OptionError(f"--photo {self.photo} needs --source, a prompt that describes it.")
        if self.count > 1:
            raise OptionError(f"--count is {self.count}, but there is one photo to edit. Leave it out.")
        return read_picture(self.photo)

    def _read(self, console: Console) -> "tuple[Backbone, Concept | None]":
        backbone, concepts = read_concepts([self.file] if self.file else [], self.model, console)
        return backbone, next(iter(concepts), None)
