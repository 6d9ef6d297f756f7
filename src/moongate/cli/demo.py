"""The commands `moongate demo` and `moongate demo compose`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import WITHOUT_DEFAULT, OptionalInt, Output, OutputOptions, cache_folder
from moongate.cli.terminal import print_table, say, training_bar
from moongate.errors import OptionError
from moongate.limits import check_count

__all__ = ["Demo", "DemoCompose"]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Teach pocket one example subject and draw it in new places."""

    example: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, WITHOUT_DEFAULT] = ()
    """Example subject. Default: drawn-house. An unknown name lists all."""
    out: Path = Path("demo")
    """Folder for index.html and the concept file. An earlier demo there is replaced."""
    steps: OptionalInt = None
    """Optimizer steps. Default: 150."""
    seed: int = 0
    """Seed of training and pictures."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.demo.single import EXAMPLE, make_single_demo

        _check(self.steps, 1, self.seed, self.out)
        if len(self.example) > 1:
            raise OptionError(f"{len(self.example)} examples were given. `moongate demo compose` takes two.")
        with training_bar(console) as show:
            page = make_single_demo(
                next(iter(self.example), EXAMPLE),
                out=self.out,
                steps=self.steps,
                seed=self.seed,
                cache=cache_folder(),
                on_step=show,
                on_stage=lambda text: say(console, text),
            )
        say(console, f"Open {page}")
        return {"page": str(page)}


@dataclass(frozen=True, kw_only=True)
class DemoCompose:
    """Teach pocket two example subjects and draw both in one picture."""

    example: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Example subject; give it twice. An unknown name lists all."""
    out: Path = Path("demo/compose")
    """Folder for index.html and the concept files. An earlier demo there is replaced."""
    steps: OptionalInt = None
    """Optimizer steps for each subject. Default: 150, and 75 where both are taught together."""
    count: int = 8
    """Pictures for each of the eight prompts and each of the strategies that are compared:
    joint training, merge, sequential training and addition. 8 take 10 to 20 minutes on two cores."""
    seed: int = 0
    """Seed of training and pictures."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.demo.pair import EXAMPLES, make_pair_demo

        _check(self.steps, self.count, self.seed, self.out)
        with training_bar(console) as show:
            demo = make_pair_demo(
                self.example or EXAMPLES,
                out=self.out,
                steps=self.steps,
                seed=self.seed,
                count=self.count,
                cache=cache_folder(),
                on_step=show,
                on_stage=lambda text: say(console, text),
            )
        rows = [strategy.row for strategy in demo.strategies]
        print_table(console, demo.head, rows, title="Recognized in the pictures")
        say(console, f"Open {demo.page}")
        strategies = {strategy.name: {**strategy.shares, "seconds": strategy.seconds} for strategy in demo.strategies}
        return {"page": str(demo.page), "strategies": strategies}


def _check(steps: int | None, count: int, seed: int, out: Path) -> None:
    """Raise OptionError before pocket draws what it knows for a minute."""
    from moongate.files import check_folder
    from moongate.sampling import check_seeds
    from moongate.training import TrainOptions

    TrainOptions(steps=steps, seed=seed)
    check_seeds([seed])
    check_folder(out)
    check_count("count", count)
