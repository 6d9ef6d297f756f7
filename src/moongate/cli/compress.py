"""The command `moongate compress`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import Flag, Model, ModelOptions, Output, OutputOptions, check_concept_file, read_concept
from moongate.cli.terminal import bytes_of, print_table, say, size_of

__all__ = ["Compress"]


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Make a concept file smaller: keep the largest singular values."""

    file: Annotated[Path, tyro.conf.Positional]
    """Concept file of any format. Full weights also need --model."""
    out: Path
    """Concept file to write."""
    energy: float = 0.6
    """Share of the sum of the singular values of each change to keep, above 0 and at most 1."""
    overwrite: Flag = False
    """Replace an existing concept file."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.analysis.page import layer_name
        from moongate.compression import check_energy, compress

        check_energy(self.energy)
        check_concept_file(self.out, overwrite=self.overwrite)
        concept = read_concept(self.file, self.model, console)
        compressed = compress(concept, energy=self.energy)
        before = size_of(self.file)  # --out may be the same file
        compressed.concept.save(self.out, overwrite=self.overwrite)
        rows = [
            (layer_name(name), f"{layer.rank} of {layer.full_rank}", f"{layer.error:.1%}")
            for name, layer in compressed.report.layers.items()
        ]
        print_table(console, ("layer", "rank", "error"), rows)
        sizes = f"{before} became {size_of(self.out)}"
        say(console, f"Wrote {self.out}: {sizes}; {compressed.report.error:.1%} of the change was cut away.")
        return {"out": str(self.out), "bytes": bytes_of(self.out), **asdict(compressed.report)}
