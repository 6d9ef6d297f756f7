"""The command `moongate merge`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from moongate.cli.options import (
    Flag,
    Model,
    ModelOptions,
    OptionalInt,
    OptionalPath,
    Texts,
    cache_folder,
    lines_of,
    read_concepts,
)
from moongate.cli.terminal import print_table, say, size_of
from moongate.errors import OptionError

__all__ = ["Merge"]


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge concepts into one in closed form, without training."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Concept files of any format: trained alone or together, compressed, or merged before.
    A single concept is cleaned: it changes other captions less."""
    out: Path
    """Concept file to write."""
    without: Texts = ()
    """Subjects to leave out, named by token or words, such as one of an earlier merge."""
    captions: OptionalPath = None
    """Text file of neutral captions, one per line, in addition to the thousand that come with Moongate."""
    contexts: OptionalInt = None
    """Number of contexts in which each subject keeps its values. Default: as many as there is room for."""
    report: OptionalPath = None
    """Folder for report.json and index.html."""
    overwrite: Flag = False
    """Replace an existing concept file."""
    model: Model = field(default_factory=ModelOptions)

    def __call__(self, console: Console) -> None:
        from moongate.files import check_writable
        from moongate.merging import MergeOptions, merge
        from moongate.merging.page import HEAD, summary_rows, verdict, write_report

        check_writable(self.out, overwrite=self.overwrite)
        if self.report and self.report.is_file():
            raise OptionError(f"{self.report} is a file. Choose a folder for the report.")
        lines = lines_of(self.captions, "captions") if self.captions else []
        options = MergeOptions(
            captions=tuple(lines), contexts=self.contexts, without=self.without, cache=cache_folder()
        )
        if not self.files:
            raise OptionError("There is no concept to merge. Name one or several files.")
        backbone, concepts = read_concepts(self.files, self.model, console)
        merged = merge(backbone, concepts, options=options)
        merged.concept.save(self.out, overwrite=self.overwrite)
        print_table(console, HEAD, summary_rows(merged.report))
        for line in verdict(merged.report):
            say(console, line)
        if self.report:
            say(console, f"Wrote {write_report(merged.report, self.report)}.")
        say(console, f"Wrote {self.out} ({size_of(self.out)}).")
