"""The page Watch: a run as it goes on, the same seeds at each step beside the base's own, and when to stop."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from moongate.errors import OptionError
from moongate.files import is_held
from moongate.fleet import Queue
from moongate.run_page import Album, Drawn, Part, duration
from moongate.run_page.losses import held_out_chart, loss_chart
from moongate.run_page.measures import Measured, measures_chart, read_measures, stop_said, when_to_stop
from moongate.run_page.page import Row, comparison_rows, validation_rows, words_of
from moongate.run_records import CONCEPTS, Progress, held_out_losses, read_config, read_progress, read_steps
from moongate.studio.commands import Command
from moongate.studio.drafts import Draft
from moongate.studio.state import Studio
from moongate.studio.widgets import (
    busy,
    chart,
    command_line,
    heading,
    live,
    notice,
    paragraph,
    picture,
    progress,
    section,
)

__all__ = ["PATH", "TITLE", "show"]

PATH, TITLE = "/watch", "Watch"
MEASURE = "measure"
"""The command that measures a run, and what it is called among those that were started."""


@dataclass(frozen=True)
class Seen:
    """What the page shows of a run, read from its folder."""

    words: str
    progress: Progress | None
    is_running: bool
    lines: list[dict[str, Any]]
    drawn: list[Drawn]
    measures: list[Measured]

    def part(self, part: Part) -> list[Drawn]:
        """Return the pictures of one part."""
        return [drawn for drawn in self.drawn if drawn.part == part]


def show(studio: Studio) -> None:
    """Build the page."""
    named = ui.context.client.request.query_params.get("run", "")
    runs = studio.places.runs()
    if not runs:
        paragraph(
            "There is no training yet. Start one on the page Teach, or in the shell with its --out in a chosen folder."
        )
        live(lambda: bool(studio.places.runs()), lambda found: ui.navigate.to(PATH) if found else None)
        return
    run = next((each for each in runs if str(each) == named), runs[0])
    names = {str(each): each.relative_to(_folder(studio, each)).as_posix() for each in runs}
    ui.select(names, label="Training", value=str(run), on_change=lambda event: _go(str(event.value))).props(
        "outlined dense"
    ).classes("field").mark("run")
    live(partial(_seen, run), partial(_show, studio, run))
    _show_measuring(studio, run)


def _go(run: str) -> None:
    ui.navigate.to(f"{PATH}?{urlencode({'run': run})}")


def _folder(studio: Studio, run: Path) -> Path:
    return next(folder for folder in studio.places.chosen if run.is_relative_to(folder))


def _seen(run: Path) -> Seen:
    return Seen(
        words=words_of(read_config(run)),
        progress=read_progress(run),
        is_running=is_held(run),
        lines=read_steps(run),
        drawn=Album(run).drawn(),
        measures=read_measures(run),
    )


def _show(studio: Studio, run: Path, seen: Seen) -> None:
    heading(f"Teaching {seen.words}")
    _show_status(seen)
    if rows := validation_rows(seen.part("validation")):
        with section("During the training, with the same seeds"):
            _show_rows(studio, run, rows)
            if rows[0].drawn[0].step:
                paragraph("The base's own pictures are drawn when the training is measured.", quiet=True)
    if rows := comparison_rows(seen.part("comparison")):
        with section("Before and after, with the same seeds"):
            _show_rows(studio, run, rows)
    _show_stop(seen)
    if len(seen.lines) > 1:
        with section("Loss"):
            paragraph("It falls little even when a subject is learned well: judge by the pictures.", quiet=True)
            chart(loss_chart(seen.lines))
            losses = held_out_losses(seen.lines)
            if len(losses) > 1:
                chart(held_out_chart(losses))
    if taught := seen.part("taught"):
        with section("Taught from"), ui.element("div").classes("pictures"):
            for drawn in taught:
                _picture(studio, run, drawn, caption=drawn.prompt)


def _show_status(seen: Seen) -> None:
    run = seen.progress
    if run is None:
        notice("It begins: the model is loaded, and regularization pictures are prepared.", level="good")
        return
    progress("Steps done", run.step, run.steps).mark("progress")
    if seen.is_running:
        left = f", about {duration(run.left_s)} left" if run.step < run.steps else ""
        speed = f"{run.pictures_per_second:.1f} pictures a second"
        notice(f"Running: step {run.step} of {run.steps}, {speed}{left}.", level="good")
    elif run.step < run.steps:
        notice(f"Stopped after step {run.step} of {run.steps}. Resume it on the page Teach.", level="fair")
    else:
        notice(f"Finished after {run.steps} steps.", level="good")


def _show_rows(studio: Studio, run: Path, rows: Sequence[Row]) -> None:
    for row in rows:
        heading(row.label, level=3)
        with ui.element("div").classes("pictures"):
            for drawn, caption in zip(row.drawn, row.captions, strict=True):
                _picture(studio, run, drawn, caption=caption)


def _show_stop(seen: Seen) -> None:
    with section("When to stop"):
        if len(seen.measures) < 2:
            paragraph("Not measured yet.")
            return
        stop = when_to_stop(seen.measures)
        notice(stop_said(seen.measures), level="good" if stop is None else "fair").mark("stop")
        chart(measures_chart(seen.measures, stop))


def _picture(studio: Studio, run: Path, drawn: Drawn, *, caption: str) -> None:
    file = run / "pictures" / drawn.file
    picture(studio.places, file, alt=f"{drawn.prompt}, step {drawn.step}, seed {drawn.seed}", caption=caption)


def _show_measuring(studio: Studio, run: Path) -> None:
    """Add the start of the process that measures the run."""
    with section("Measure"):
        paragraph(
            "Compare what each kept concept draws with photos that it does not learn from, and its pictures of "
            "unrelated prompts with the base's.",
            quiet=True,
        )
        folder = ui.input("Folder of held-out photos", value=_held_out(studio, run)).props("outlined dense")
        folder.classes("field").mark("held-out")
        command_line(lambda: _command(studio, run, folder.value or ""))
        button = ui.button("Measure", icon="query_stats").mark("measure")
        button.on_click(lambda: _measure(studio, run, folder.value or "", button))
        words = (MEASURE, str(run))
        live(
            lambda: next((each for each in studio.commands.all() if each.command.words[:2] == words), None),
            lambda started: notice(f"{started.command.line}: {started.state}.", level="good") if started else None,
        )


def _command(studio: Studio, run: Path, folder: str) -> Command:
    device = ("--device", studio.device) if studio.device else ()
    return Command((MEASURE, str(run), "--photos", folder, "--follow", *device))


async def _measure(studio: Studio, run: Path, folder: str, button: ui.button) -> None:
    async with busy(button):
        place = studio.places.inside(folder)
        if not folder or not place.is_dir():
            raise OptionError(f"There is no folder {folder!r} of photos. Check the path.")
        if not any((run / CONCEPTS).glob("*.safetensors")) and not is_held(run):
            raise OptionError(f"{run.name} has kept no concept to measure. Train with --save-every.")
        studio.places.inside(run, to_write=True)
        command = _command(studio, run, str(place))
        await asyncio.to_thread(studio.commands.start, command, name=f"{MEASURE}-{run.stem}")


def _held_out(studio: Studio, run: Path) -> str:
    """Return the folder of the photos that were held out from a run of the queue; empty for another run."""
    queue = Queue(studio.places.fleet)
    state = queue.state(run.stem)
    job = studio.trainings.entry(run.stem, state) if state else None
    if job and isinstance(job.get("holdout"), str):
        return str(job["holdout"])
    draft = Draft(folder=studio.places.photos / run.stem)
    return str(draft.held_out) if draft.held_out.is_dir() and any(draft.held_out.iterdir()) else ""
