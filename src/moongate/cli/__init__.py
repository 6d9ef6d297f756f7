"""The command line, one class for each command: `moongate train`, `merge`, `generate` and the others.

It parses, calls the library and prints.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from moongate.cli.analyze import Analyze
from moongate.cli.convert import Convert
from moongate.cli.demo import Demo
from moongate.cli.evaluate import Evaluate
from moongate.cli.generate import Generate
from moongate.cli.merge import Compress, Merge
from moongate.cli.retrieve import Retrieve, RetrieveIndex, TokensSuggest
from moongate.cli.terminal import load, say, size_of
from moongate.cli.train import Train
from moongate.errors import MoongateError

if TYPE_CHECKING:
    from moongate.concept import Concept
    from moongate.interop import Recognized

__all__ = [
    "Analyze",
    "Compress",
    "Convert",
    "Demo",
    "Evaluate",
    "Generate",
    "Info",
    "Merge",
    "Retrieve",
    "RetrieveIndex",
    "TokensSuggest",
    "Train",
    "main",
]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what is in a concept file of any format."""

    file: Annotated[Path, tyro.conf.Positional]
    model: str | None = None
    """The model it belongs to: tells what full weights change."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    json: bool = False
    """Print JSON instead of a table."""

    def __call__(self, console: Console) -> None:
        from moongate.interop import recognize

        found = recognize(self.file)
        if found.parts.weights and not self.model:
            facts = _facts_without_model(found)
        else:
            imported = found.concept(base=load(self.model, None, "float32", self.config) if self.model else None)
            notes = {"notes": list(imported.notes)} if imported.notes else {}
            facts = _facts(imported.concept, self.file) | notes
        facts = {"format": found.format.title, **facts}
        if self.json:
            console.print_json(json.dumps(facts))
            return
        table = Table(show_header=False, title=str(self.file), title_justify="left")
        for key, value in facts.items():
            table.add_row(key, "\n".join(value) if isinstance(value, list) else str(value))
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors are printed without a traceback and exit with status 2.

    A command of two words is known by both with a hyphen between them: `moongate retrieve index` as retrieve-index.
    """
    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "merge": Merge,
        "compress": Compress,
        "generate": Generate,
        "convert": Convert,
        "retrieve": Retrieve,
        "retrieve-index": RetrieveIndex,
        "tokens-suggest": TokensSuggest,
        "evaluate": Evaluate,
        "analyze": Analyze,
        "info": Info,
        "demo": Demo,
    }
    console = Console()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "-".join(given[:2]) in commands:
        given[:2] = ["-".join(given[:2])]
    command = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="moongate",
        description="Teach a text-to-image diffusion model your own things from a few photos.",
        args=given,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        command(console)
    except MoongateError as error:
        say(Console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        remedy = "Free some space, or choose a place that can be read and written."
        say(Console(stderr=True), f"error: {place}{error.strerror or error}. {remedy}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _facts_without_model(found: "Recognized") -> dict[str, object]:
    """Return what full weights tell of themselves."""
    weights = found.parts.weights
    numbers = sum(weight.numel() for weight in weights.values())
    return {
        "base": found.base or "not stated",
        "tokens": list(found.parts.tokens) or "none",
        "layers": f"{len(weights)} full weights, {numbers:,} numbers",
        "size": size_of(found.path),
        "notes": [*found.parts.notes, "What the weights change is told beside their model: name it with --model."],
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
        **{key: str(value) for key, value in concept.record.items()},
    }
