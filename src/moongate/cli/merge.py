"""Commands on finished concepts: `moongate merge` and `moongate compress`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from moongate.cli.terminal import lines_of, open_concept, open_concepts, say, size_of
from moongate.errors import OptionError

__all__ = ["Compress", "Merge", "gram_cache"]


def gram_cache() -> Path:
    """Return the folder in which Gram matrices of neutral captions are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moongate"


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make one concept of several in closed form, without training; or clean a single one."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Concept files of any format: trained singly or jointly, compressed, or merged before."""
    out: Path
    """Concept file to write."""
    without: tuple[str, ...] = ()
    """Subjects to leave out, by token or words: takes one out of a merge again."""
    captions: Path | None = None
    """Further neutral captions, one in each line, beside the thousand that come with Moongate."""
    contexts: int | None = None
    """Contexts in which each subject keeps its values; as many as there is room for by default."""
    report: Path | None = None
    """Folder to write report.json and index.html into."""
    model: str | None = None
    """The model; by default the first that a file names."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    overwrite: bool = False
    device: str | None = None

    def __call__(self, console: Console) -> None:
        from moongate.files import check_writable
        from moongate.merging import MergeOptions, merge
        from moongate.merging.page import HEAD, summary_rows, verdict, write_report

        check_writable(self.out, overwrite=self.overwrite)
        if self.report and self.report.is_file():
            raise OptionError(f"{self.report} is a file. Give a folder to write the report into.")
        lines = lines_of(self.captions, "captions") if self.captions else []
        options = MergeOptions(captions=tuple(lines), contexts=self.contexts, without=self.without, cache=gram_cache())
        if not self.files:
            raise OptionError("There is no concept to merge. Name one file or several.")
        backbone, concepts = open_concepts(self.files, self.model, self.config, self.device, "float32", console)
        merged = merge(backbone, concepts, options=options)
        merged.concept.save(self.out, overwrite=True)
        table = Table(*HEAD)
        for row in summary_rows(merged.report):
            table.add_row(*row)
        console.print(table, markup=False)
        for line in verdict(merged.report):
            say(console, line)
        if self.report:
            say(console, f"Wrote {write_report(merged.report, self.report)}.")
        say(console, f"Wrote {self.out} ({size_of(self.out)}).")


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Make a concept file smaller by keeping the largest singular values of each change."""

    file: Annotated[Path, tyro.conf.Positional]
    """Concept file of any format."""
    out: Path
    """Concept file to write."""
    energy: float = 0.6
    """Share of the sum of singular values to keep, above 0 and at most 1."""
    model: str | None = None
    """The model it belongs to, where full weights are stored."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    overwrite: bool = False
    device: str | None = None

    def __call__(self, console: Console) -> None:
        from moongate.compression import compress
        from moongate.files import check_writable

        check_writable(self.out, overwrite=self.overwrite)
        concept = open_concept(self.file, self.model, self.config, self.device, console)
        compressed = compress(concept, energy=self.energy)
        compressed.concept.save(self.out, overwrite=True)
        table = Table("layer", "rank", "error")
        for name, layer in compressed.report.layers.items():
            table.add_row(name, f"{layer.rank} of {layer.full_rank}", f"{layer.error:.1%}")
        console.print(table, markup=False)
        say(
            console,
            f"Wrote {self.out}: {size_of(self.file)} became {size_of(self.out)}; "
            f"{compressed.report.error:.1%} of the change was cut away.",
        )
