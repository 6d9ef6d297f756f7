"""The page of a run, made of the records in its folder alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from moongate.errors import OptionError
from moongate.pages import Page
from moongate.run_page.album import Album, Drawn
from moongate.run_page.losses import held_out_chart, loss_chart
from moongate.run_page.measures import measures_chart, read_measures, stop_said, when_to_stop
from moongate.run_records import CONFIG, PAGE, held_out_losses, read_config, read_steps

__all__ = [
    "PAGE",
    "REFRESH_S",
    "Row",
    "Status",
    "comparison_rows",
    "duration",
    "page_of",
    "validation_rows",
    "words_of",
]

Status = Literal["running", "stopped", "finished"]
REFRESH_S = 10
"""Seconds after which a browser loads the page of a running training again."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures of a run that are shown side by side."""

    label: str
    drawn: tuple[Drawn, ...]
    captions: tuple[str, ...]
    """One for each picture."""


def page_of(run_folder: Path, status: Status) -> Page:
    """Return the page of a run as it is now; nothing is written.

    Args:
        run_folder: The folder in which the run keeps its records.
        status: Whether the run goes on, was stopped and may be resumed, or is finished.

    Raises:
        OptionError: The folder has no records of a run that can be read.
    """
    try:
        return _page(run_folder, status)
    except OptionError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise OptionError(f"{run_folder} holds no records of a run that can be read ({error}). Check it.") from error


def duration(seconds: float) -> str:
    """Return a time for people to read: "40 seconds", "3 minutes", "1.5 hours"."""
    if seconds < 90:
        return f"{max(2, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def words_of(config: dict[str, Any]) -> str:
    """Return the words of what a run teaches: "<bear> teddy bear and <chair> armchair".

    Raises:
        OptionError: The configuration does not say them.
    """
    try:
        return " and ".join(" ".join(filter(None, (each["token"], each["category"]))) for each in config["subjects"])
    except (LookupError, TypeError) as error:
        raise OptionError(f"{CONFIG} of the run does not say what is taught ({error!r}). Check it.") from error


def comparison_rows(drawn: Iterable[Drawn]) -> list[Row]:
    """Return a row for each prompt of a comparison: the base's pictures by seed, and then the concept's."""
    rows = []
    for _, group in groupby(sorted(drawn, key=attrgetter("place", "step", "seed")), key=attrgetter("place")):
        pictures = tuple(group)
        label = " / ".join(dict.fromkeys(picture.prompt for picture in pictures))
        captions = (f"{'after' if picture.step else 'before'}, seed {picture.seed}" for picture in pictures)
        rows.append(Row(label=label, drawn=pictures, captions=tuple(captions)))
    return rows


def validation_rows(drawn: Iterable[Drawn]) -> list[Row]:
    """Return a row for each step at which a prompt was drawn, by seed; that of the base comes first."""
    rows = []
    for step, group in groupby(sorted(drawn, key=attrgetter("step", "seed")), key=attrgetter("step")):
        pictures = tuple(group)
        label = f"{f'Step {step}' if step else 'The base model'}: {pictures[0].prompt}"
        captions = tuple(f"seed {picture.seed}" for picture in pictures)
        rows.append(Row(label=label, drawn=pictures, captions=captions))
    return rows


def _page(run_folder: Path, status: Status) -> Page:
    config, steps = read_config(run_folder), read_steps(run_folder)
    words = words_of(config)
    page = Page(title=f"Moongate: {words}", refresh_s=REFRESH_S if status == "running" else None)
    page.text("h1", f"Teaching {config['backbone']} {words}")
    _say_status(page, steps, config, status)
    album = Album(run_folder)
    taught = album.drawn("taught")
    if taught:
        page.row("Taught from", [album.image(each) for each in taught], captions=[each.prompt for each in taught])
    _add_rows(page, album, "Before and after, with the same seeds", comparison_rows(album.drawn("comparison")))
    _add_rows(page, album, "During the training", validation_rows(album.drawn("validation")))
    _add_measures(page, run_folder)
    _add_losses(page, steps)
    page.text("h2", "Settings")
    page.table(["setting", "value"], _settings(config))
    return page


def _say_status(page: Page, steps: Sequence[dict[str, Any]], config: dict[str, Any], status: Status) -> None:
    done, total = (steps[-1]["index"] if steps else 0), config["steps"]
    speed = steps[-1]["pictures_per_second"] if steps else 0
    pictures = config["batch"] * (2 if config["regularization"] else 1)
    if status == "finished":
        page.notice(f"Finished after {done} steps.", level="good")
    elif status == "stopped":
        page.notice(f"Stopped after step {done} of {total}. The same command with --resume continues.", level="fair")
    elif done == total:
        page.notice(f"All {total} steps are done. Pictures of base and concept are being drawn.", level="good")
    else:
        left = f", about {duration((total - done) * pictures / speed)} left" if speed else ""
        page.notice(f"Running: step {done} of {total}, {speed:.1f} pictures a second{left}.", level="good")
        page.text("p", "This page is updated while the training runs, and your browser follows.")
    skipped = steps[-1].get("skipped_steps", 0) if steps else 0
    if skipped:
        page.text("p", f"{skipped} steps changed nothing, because their gradients overflowed float16.")


def _add_rows(page: Page, album: Album, heading: str, rows: Sequence[Row]) -> None:
    if rows:
        page.text("h2", heading)
    for row in rows:
        page.row(row.label, [album.image(drawn) for drawn in row.drawn], captions=row.captions)


def _add_measures(page: Page, run_folder: Path) -> None:
    """Show what `moongate measure` has found, and where to stop."""
    measures = read_measures(run_folder)
    if len(measures) < 2:
        return
    stop = when_to_stop(measures)
    page.text("h2", "When to stop")
    page.chart(measures_chart(measures, stop))
    page.text("p", stop_said(measures))


def _add_losses(page: Page, steps: Sequence[dict[str, Any]]) -> None:
    page.text("h2", "Loss")
    if len(steps) < 2:
        page.text("p", "The curve begins with the second step.")
        return
    page.text(
        "p",
        "Each point is one step; a line is the mean of the steps before. The loss depends mostly on the noise levels "
        "that are drawn, so it falls little even when a subject is learned well: judge by the pictures.",
    )
    page.chart(loss_chart(steps))
    scores = held_out_losses(steps)
    if scores:
        best = min(scores, key=lambda step: (scores[step], step))
        page.text("p", f"The loss of the held-out pictures is lowest at step {best}: {scores[best]:.4f}.")
    if len(scores) > 1:
        page.chart(held_out_chart(scores))


def _settings(config: dict[str, Any]) -> list[list[str]]:
    """Return the settings that people ask for, as rows of a table."""
    method = config["method"]
    shown = {
        "model": f"{config['backbone']}, {config['dtype'].removeprefix('torch.')}, on {config['device']}",
        "method": method["name"],
        "steps": config["steps"],
        "target pictures in a step": config["batch"],
        "learning rate of a step": f"{config['learning_rate']:.3g}",
        "learning rate of the new tokens": f"{config.get('token_learning_rate', config['learning_rate']):.3g}",
        "resolution": f"{config['resolution_px']} px" if "resolution_px" in config else "the model's own",
        "optimizer": config.get("optimizer", "adamw"),
        "regularization pictures": ", ".join(
            f"{each['pictures']} ({each['source']})" for each in config["regularization"]
        )
        or "none",
        "seed": config["seed"],
    }
    return [[name, str(value)] for name, value in shown.items()]
