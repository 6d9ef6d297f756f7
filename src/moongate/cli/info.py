"""The command `moongate info`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moongate.cli.options import Model, ModelOptions, Output, OutputOptions
from moongate.cli.terminal import bytes_of, plain, readable

if TYPE_CHECKING:
    from moongate.concept import Concept
    from moongate.interop import Recognized
    from moongate.summary import Summary

__all__ = ["Info"]

TITLES = {
    "changed_weights": "changed weights",
    "changed_numbers": "changed numbers",
    "low_rank": "of low rank",
    "largest_rank": "largest rank",
    "bytes": "size",
}
"""How the table calls facts whose names in JSON would read badly."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what a concept file of any format contains."""

    file: Annotated[Path, tyro.conf.Positional]
    """Concept file, or folder of files that belong together."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.summary import read_summary

        summary = None if self.model.model else read_summary(self.file)
        if summary:
            facts = {"format": "Moongate's own concept file", **_facts(summary, self.file)}
        else:
            facts = self._facts_of_any_format()
        if not self.output.json:
            table = Table(show_header=False, title=Text(plain(str(self.file))), title_justify="left")
            for key, value in facts.items():
                shown = readable(value) if key == "bytes" else _shown(value)
                table.add_row(plain(TITLES.get(key, key)), plain(shown))
            console.print(table, markup=False)
        return facts

    def _facts_of_any_format(self) -> dict[str, Any]:
        from moongate.interop import recognize

        recognized = recognize(self.file)
        title = {"format": recognized.format.title}
        if recognized.parts.weights and not self.model.model:
            return {**title, **_facts_of_full_weights(recognized)}
        imported = recognized.concept(base=self.model.load() if self.model.model else None)
        return {**title, **_facts(_summary_of(imported.concept), self.file), "notes": list(imported.notes)}


def _summary_of(concept: "Concept") -> "Summary":
    """Return what `read_summary` returns of the concept's file."""
    from moongate.summary import Summary

    changes = concept.deltas.values()
    return Summary(
        facts=concept.to_json(),
        shapes=[change.shape for change in changes],
        ranks=[change.rank for change in changes if change.rank is not None],
        hash=concept.hash,
    )


def _facts(summary: "Summary", file: Path) -> dict[str, Any]:
    facts, ranks = summary.facts, summary.ranks
    own = {
        "base": facts["base"],
        "fingerprint": summary.fingerprint.short,
        "hash": summary.hash,
        "tokens": list(facts["tokens"]),
        "categories": [subject["category"] for subject in facts["subjects"]],
        "prompts": [prompt for subject in facts["subjects"] for prompt in subject["prompts"]],
        "method": facts["method"],
        "changed_weights": len(summary.shapes),
        "changed_numbers": sum(math.prod(shape) for shape in summary.shapes),
        "low_rank": len(ranks),
        "largest_rank": max(ranks, default=None),
        "bytes": bytes_of(file),
    }
    return own | {key: value for key, value in facts["record"].items() if key not in own}


def _facts_of_full_weights(recognized: "Recognized") -> dict[str, Any]:
    """Return what is known of full weights without their model."""
    weights = recognized.parts.weights
    return {
        "base": recognized.base,
        "tokens": list(recognized.parts.tokens),
        "full_weights": len(weights),
        "numbers": sum(weight.numel() for weight in weights.values()),
        "bytes": bytes_of(recognized.path),
        "notes": [*recognized.parts.notes, "To see what the weights change, name their model with --model."],
    }


def _line(value: Any) -> str:
    """Return what a list or mapping holds on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(entry)}" for key, entry in value.items())
    return ", ".join(map(_line, value)) if isinstance(value, list) else str(value)


def _shown(value: Any) -> str:
    """Return a fact for the table: lists and mappings with one entry per line."""
    if isinstance(value, dict):
        value = [f"{key} {_line(entry)}" for key, entry in value.items()]
    if isinstance(value, list):
        return "\n".join(map(_line, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return "none" if value is None else str(value) or "not stated"
