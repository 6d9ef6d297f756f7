"""The queue of trainings as a part of a page: progress, losses, and buttons to pause, resume and cancel."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from nicegui import ui

from moongate.errors import OptionError
from moongate.fleet import Status
from moongate.pages import Chart
from moongate.run_page import duration
from moongate.run_page.losses import loss_chart
from moongate.run_records import Progress, read_progress, read_steps
from moongate.studio.state import Studio
from moongate.studio.widgets import chart, errors_shown, link, live, notice, paragraph, progress, section

__all__ = ["show_queue"]

STATES = {"running": "is running", "queued": "waits", "paused": "is paused", "failed": "failed", "done": "is done"}
DONE_SHOWN = 5
"""Trainings that are done are shown no further than this; Watch shows all."""


@dataclass(frozen=True)
class Card:
    """What the queue shows of a training."""

    status: Status
    run: Progress | None
    folder: Path
    losses: Chart | None


def show_queue(studio: Studio) -> None:
    """Add the queue, which follows what happens."""
    with section("Queue"):
        live(partial(_cards, studio), partial(_show, studio))


def _cards(studio: Studio) -> list[Card]:
    found = studio.trainings.all()
    done = [status for status in found if status.state == "done"]
    shown = [status for status in found if status.state != "done"] + done[-DONE_SHOWN:]
    return [_card(studio, status) for status in shown]


def _card(studio: Studio, status: Status) -> Card:
    folder = studio.places.concepts / f"{status.name}.run"
    known = read_progress(folder)
    losses = None
    if status.state in ("running", "paused") and known and known.step > 1:
        with contextlib.suppress(OptionError):  # the page Watch says what is wrong with the log
            losses = loss_chart(read_steps(folder))
    return Card(status=status, run=known, folder=folder, losses=losses)


def _show(studio: Studio, cards: list[Card]) -> None:
    if not cards:
        paragraph("No training waits or runs. Add photos above, and start one.", quiet=True)
    for card in cards:
        _show_card(studio, card)


def _show_card(studio: Studio, card: Card) -> None:
    status, name = card.status, card.status.name
    with section(f"{name} {STATES[status.state]}", level=3) as part:
        part.classes("card")
        done, total = (card.run.step, card.run.steps) if card.run else (status.done, status.total)
        if status.state in ("running", "paused"):
            progress("Steps done", done, total or 1).mark(f"progress-{name}")
            paragraph(_progress(card, done, total))
        if status.error:
            notice(status.error, level="bad")
        if card.losses:
            chart(card.losses)
        with ui.element("div").classes("bar"):
            if status.state in ("running", "queued"):
                _button("Pause", "pause", name, lambda: studio.trainings.pause(name))
            if status.state in ("paused", "failed"):
                _button("Resume", "play_arrow", name, lambda: studio.trainings.resume(name))
            if status.state != "done":
                _button("Cancel", "close", name, lambda: studio.trainings.cancel(name))
            if card.run:
                link(f"Watch {name}", "/watch?" + urlencode({"run": str(card.folder)}))


def _progress(card: Card, done: int, total: int) -> str:
    if card.status.state == "running" and not done:
        return "It begins: the model is loaded, and regularization pictures are prepared."
    text = f"Step {done} of {total}"
    if card.run is None:
        return f"{text}."
    text += f", {card.run.pictures_per_second:.1f} pictures a second"
    if card.status.state == "running":
        text += f", about {duration(card.run.left_s)} left" if done < total else ", drawing the last pictures"
    return f"{text}."


def _button(text: str, icon: str, name: str, do: Callable[[], None]) -> None:
    def click() -> None:
        with errors_shown():
            do()

    button = ui.button(text, icon=icon, on_click=click).props("outline dense")
    button.mark(f"{text.lower()}-{name}")._props["aria-label"] = f"{text} {name}"
