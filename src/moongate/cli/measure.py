"""The command `moongate measure`."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import Flag, Model, ModelOptions, OptionalStr, Output, OutputOptions
from moongate.cli.terminal import print_table, say
from moongate.errors import OptionError
from moongate.limits import check_count

if TYPE_CHECKING:
    from moongate.run_page.measures import Measured

__all__ = ["Measure"]

LOOK_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure the kept concepts of a training, and say when to stop."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of a training with --save-every, finished or not."""
    photos: Path
    """Folder of photos of the subject that the training does not learn from."""
    features: OptionalStr = None
    """Network whose features are compared, as in `moongate evaluate`. Default: the first that suits the model."""
    count: int = 8
    """Unrelated prompts, of which each concept draws one picture each."""
    follow: Flag = False
    """Go on until the training has ended."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.data.folders import find_pictures
        from moongate.data.pictures import read_picture
        from moongate.evaluation.benchmark import default_features
        from moongate.evaluation.networks import check_network, load_network
        from moongate.files import check_folder, is_held
        from moongate.run_page.measures import when_to_stop
        from moongate.run_page.measuring import measure
        from moongate.run_records import kept_concepts, read_config

        check_count("count", self.count)
        config = read_config(self.run)
        check_folder(self.run)
        if not (self.follow or kept_concepts(self.run)):
            raise self._nothing_kept()
        if self.features:
            check_network(self.features)
        photos = [read_picture(path) for path in find_pictures(self.photos)]
        backbone = self.model.load(default=str(config.get("backbone", "pocket")))
        name = self.features or default_features(backbone)[0]
        network = load_network(name, device=str(backbone.device))
        measures = list[Any]()
        while True:
            is_running = self.follow and is_held(self.run)
            if kept_concepts(self.run):
                measures = measure(
                    *(backbone, self.run, photos, network),
                    count=self.count,
                    on_step=lambda each: say(console, f"Step {each.step}: {_text(each)}"),
                )
            if not is_running:
                break
            time.sleep(LOOK_EVERY_S)
        if not measures:
            raise self._nothing_kept()
        return self._report(measures, when_to_stop(measures), console)

    def _nothing_kept(self) -> OptionError:
        return OptionError(f"{self.run} has kept no concept to measure. Train with --save-every.")

    def _report(self, measures: "Sequence[Measured]", stop: int | None, console: Console) -> dict[str, Any]:
        from moongate.run_page.measures import stop_said

        rows = [[str(each.step), f"{each.alignment:.3f}", f"{each.drift:.3f}"] for each in measures]
        print_table(console, ["step", "image alignment", "drift"], rows)
        say(console, stop_said(measures))
        return {"run": str(self.run), "stop": stop, "measures": [asdict(each) for each in measures]}


def _text(measured: "Measured") -> str:
    return f"image alignment {measured.alignment:.3f}, drift {measured.drift:.3f}"
