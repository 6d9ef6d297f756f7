"""The command `moongate info`."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moongate.cli.options import Flag, Model, ModelOptions
from moongate.cli.terminal import plain, size_of

if TYPE_CHECKING:
    from moongate.concept import Concept
    from moongate.interop import Recognized

__all__ = ["Info"]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what a concept file of any format contains."""

    file: Annotated[Path, tyro.conf.Positional]
    """Concept file, or folder of files that belong together."""
    json: Flag = False
    """Print JSON instead of a table."""
    model: Model = field(default_factory=ModelOptions)

    def __call__(self, console: Console) -> None:
        from moongate.interop import recognize

        recognized = recognize(self.file)
        if recognized.parts.weights and not self.model.model:
            facts = _facts_of_full_weights(recognized)
        else:
            imported = recognized.concept(base=self.model.load() if self.model.model else None)
            notes = {"notes": list(imported.notes)} if imported.notes else {}
            facts = _facts(imported.concept, self.file) | notes
        facts = {"format": recognized.format.title, **facts}
        if self.json:
            console.print_json(json.dumps(facts), ensure_ascii=True)
            return
        table = Table(show_header=False, title=Text(plain(str(self.file))), title_justify="left")
        for key, value in facts.items():
            table.add_row(plain(key), plain(_shown(value)))
        console.print(table, markup=False)


def _facts_of_full_weights(recognized: "Recognized") -> dict[str, object]:
    """Return what is known of full weights without their model."""
    weights = recognized.parts.weights
    numbers = sum(weight.numel() for weight in weights.values())
    return {
        "base": recognized.base or "not stated",
        "tokens": list(recognized.parts.tokens) or "none",
        "layers": f"{len(weights)} full weights, {numbers:,} numbers",
        "size": size_of(recognized.path),
        "notes": [*recognized.parts.notes, "To see what the weights change, name their model with --model."],
    }


def _facts(concept: "Concept", file: Path) -> dict[str, object]:
    ranks = [change.rank for change in concept.deltas.values()]
    low = [rank for rank in ranks if rank is not None]
    stored = f"dense: {len(ranks) - len(low)}, low rank: {len(low)}" + (f" (up to {max(low)})" if low else "")
    numbers = sum(math.prod(change.shape) for change in concept.deltas.values())
    return {
        "base": concept.base or "not stated",
        "fingerprint": concept.fingerprint.short,
        "hash": concept.hash,
        "tokens": list(concept.tokens) or "none",
        "class words": [subject.category for subject in concept.subjects],
        "prompts": [prompt for subject in concept.subjects for prompt in subject.prompts],
        "method": concept.method,
        "layers": f"{len(ranks)} weights, {numbers:,} numbers; {stored}",
        "size": size_of(file),
        **concept.record,
    }


def _shown(value: object) -> str:
    """Return a fact for the table: lists and mappings with one entry per line."""
    if isinstance(value, dict):
        value = [f"{key} {entry}" for key, entry in value.items()]
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
