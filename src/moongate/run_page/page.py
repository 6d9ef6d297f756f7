"""The page of a run, made of the records in its folder alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from moongate.errors import OptionError
from moongate.pages import Page
from moongate.run_page.album import Album, Drawn
from moongate.run_page.losses import held_out_chart, held_out_losses, loss_chart
from moongate.run_page.measures import measures_chart, read_measures, stop_said, when_to_stop
from moongate.run_records import read_config, read_steps

__all__ = ["PAGE", "REFRESH_S", "Status", "duration", "page_of", "words_of"]

PAGE = "index.html"
Status = Literal["running", "stopped", "finished"]
REFRESH_S = 10
"""Seconds after which a browser loads the page of a running training again."""


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
    """Return the words of what a run teaches: "<bear> teddy bear and <chair> armchair"."""
    return " and ".join(" ".join(filter(None, (each["token"], each["category"]))) for each in config["subjects"])


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
    _add_comparison(page, album)
    _add_validation(page, album)
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


def _add_comparison(page: Page, album: Album) -> None:
    """Show what base and concept draw with the same seeds."""
    drawn = album.drawn("comparison")
    if not drawn:
        return
    page.text("h2", "Before and after, with the same seeds")
    for place in sorted({each.place for each in drawn}):
        here = sorted((each for each in drawn if each.place == place), key=lambda each: (each.step, each.seed))
        label = " / ".join(dict.fromkeys(each.prompt for each in here))
        captions = [f"{'after' if each.step else 'before'}, seed {each.seed}" for each in here]
        page.row(label, [album.image(each) for each in here], captions=captions)


def _add_validation(page: Page, album: Album) -> None:
    """Show one prompt at several steps, below what the base makes of it."""
    drawn = album.drawn("validation")
    if not drawn:
        return
    page.text("h2", "During the training")
    for step in sorted({each.step for each in drawn}):
        here = [each for each in drawn if each.step == step]
        label = f"step {step}: {here[0].prompt}" if step else f"base model: {here[0].prompt}"
        page.row(label, [album.image(each) for each in here], captions=list(map(_seed, here)))


def _add_measures(page: Page, run_folder: Path) -> None:
    """Show what `moongate measure` has found, and where to stop."""
    measures = read_measures(run_folder)
    if len(measures) < 2:
        return
    stop = when_to_stop(measures)
    page.text("h2", "When to stop")
    page.chart(measures_chart(measures, stop))
    page.text("p", stop_said(measures))


def _seed(drawn: Drawn) -> str:
    return f"seed {drawn.seed}"


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
