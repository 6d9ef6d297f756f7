"""The command `moongate demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from moongate.cli.terminal import say, training_bar
from moongate.errors import OptionError

__all__ = ["Demo"]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Teach pocket a held-out example, or two in one picture, and write one page with all pictures."""

    kind: Annotated[Literal["single", "compose"], tyro.conf.Positional] = "single"
    """single: one thing in new places. compose: two things in one picture, by joint training, merge, sequential
    training and addition; ten to twenty minutes on two cores."""
    example: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Which example concept, drawn-house by default; twice for compose. A wrong name lists them all."""
    out: Path | None = None
    """Folder for index.html and the concept files, demo or demo/compose by default; an earlier demo there is
    replaced."""
    steps: int | None = None
    """Optimizer steps for each thing; 250 by default."""
    count: int = 8
    """Pictures for each of the eight joint prompts and each way (compose)."""
    seed: int = 0

    def __call__(self, console: Console) -> None:
        if self.kind == "compose":
            self._compose(console)
        else:
            self._single(console)

    def _single(self, console: Console) -> None:
        from moongate.demo.single import EXAMPLE, make_demo

        if len(self.example) > 1:
            raise OptionError(f"{len(self.example)} examples were given. `moongate demo compose` takes two.")
        with training_bar(console) as show:
            page = make_demo(
                next(iter(self.example), EXAMPLE),
                out=self.out or Path("demo"),
                steps=self.steps,
                seed=self.seed,
                on_step=show,
                on_stage=lambda text: say(console, text),
            )
        say(console, f"Open {page}")

    def _compose(self, console: Console) -> None:
        from moongate.demo.pair import EXAMPLES, make_compose_demo

        with training_bar(console) as show:
            made = make_compose_demo(
                self.example or EXAMPLES,
                out=self.out or Path("demo/compose"),
                steps=self.steps,
                seed=self.seed,
                count=self.count,
                on_step=show,
                on_stage=lambda text: say(console, text),
            )
        table = Table(*made.head, title="Recognized in the pictures", title_justify="left")
        for way in made.ways:
            table.add_row(*way.row)
        console.print(table, markup=False)
        say(console, f"Open {made.page}")
