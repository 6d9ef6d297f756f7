"""The command line: `moongate train | merge | compress | generate | evaluate | analyze | info | demo`.

It parses, calls the library and prints.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ..errors import MoongateError
from .analyze import Analyze
from .compose import Compress, Merge
from .evaluate import Evaluate
from .generate import Generate
from .terminal import say, size_of, training_bar
from .train import Train

if TYPE_CHECKING:
    from ..concept import Concept

__all__ = ["Analyze", "Compress", "Demo", "Evaluate", "Generate", "Info", "Merge", "Train", "main"]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what is in a concept file."""

    file: Annotated[Path, tyro.conf.Positional]
    json: bool = False
    """Print JSON instead of a table."""

    def __call__(self, console: Console) -> None:
        from ..concept import Concept

        facts = _facts(Concept.load(self.file), self.file)
        if self.json:
            console.print_json(json.dumps(facts))
            return
        table = Table(show_header=False, title=str(self.file), title_justify="left")
        for key, value in facts.items():
            table.add_row(key, "\n".join(value) if isinstance(value, list) else str(value))
        console.print(table)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Teach pocket a held-out example, draw it in new places, and write one page with all pictures."""

    example: str = "teddyBear"
    """Which example concept; a wrong name lists them all."""
    out: Path = Path("demo")
    """Folder for index.html and the concept file; an earlier demo there is replaced."""
    steps: int | None = None
    seed: int = 0

    def __call__(self, console: Console) -> None:
        from ..pocket.demo import make_demo

        with training_bar(console) as show:
            page = make_demo(
                self.example,
                out=self.out,
                steps=self.steps,
                seed=self.seed,
                on_step=show,
                on_stage=lambda text: say(console, text),
            )
        say(console, f"Open {page}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors are printed without a traceback and exit with status 2."""
    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "merge": Merge,
        "compress": Compress,
        "generate": Generate,
        "evaluate": Evaluate,
        "analyze": Analyze,
        "info": Info,
        "demo": Demo,
    }
    console = Console()
    command = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="moongate",
        description="Teach a text-to-image diffusion model your own things from a few photos.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        command(console)
    except MoongateError as error:
        say(Console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _facts(concept: "Concept", file: Path) -> dict[str, object]:
    ranks = [change.rank for change in concept.deltas.values()]
    low = [rank for rank in ranks if rank is not None]
    stored = f"dense: {len(ranks) - len(low)}, low rank: {len(low)}" + (f" (up to {max(low)})" if low else "")
    numbers = sum(change.full().numel() for change in concept.deltas.values())
    return {
        "base": concept.base,
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
