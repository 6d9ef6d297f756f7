"""What was drawn last on the page Compose, side by side: a row for each way, the same seeds above one another."""

from dataclasses import dataclass
from functools import partial

from nicegui import ui

from moongate.studio.commands import Command, State
from moongate.studio.composition import WAYS, Composition
from moongate.studio.pictures import Picture, pictures
from moongate.studio.state import Studio
from moongate.studio.widgets import command_line, live, notice, paragraph, picture, progress, section

__all__ = ["show_drawn"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The pictures of one way, and the command that draws them, if the studio started it."""

    way: str
    pictures: tuple[Picture, ...]
    state: State | None
    command: Command | None
    failure: str
    """`Started.failure` of the command."""


def show_drawn(studio: Studio, composition: Composition) -> None:
    """Add the pictures of the last drawing, which appear as they are drawn."""
    if composition.drawn:
        with section("Drawn"):
            live(partial(_rows, studio, composition.drawn), partial(_show, studio, composition))


def _rows(studio: Studio, folder: str) -> list[Row]:
    place = studio.places.inside(studio.places.gallery / folder)
    by_out = {started.command.words[-1]: started for started in reversed(studio.commands.all())}
    rows = []
    for way in ("alone", *WAYS):
        drawn = sorted(pictures(studio.places, place / way), key=lambda picture: picture.seed)
        started = by_out.get(str(place / way))
        if drawn or started:
            rows.append(
                Row(
                    way=way,
                    pictures=tuple(drawn),
                    state=started.state if started else None,
                    command=started.command if started else None,
                    failure=started.failure if started else "",
                )
            )
    return rows


def _show(studio: Studio, composition: Composition, rows: list[Row]) -> None:
    if rows and rows[0].pictures:
        paragraph(rows[0].pictures[0].prompt)
    for row in rows:
        with section(_title(row), level=3):
            if row.state == "waiting":
                paragraph("It waits until the drawings before it are done.", quiet=True)
            if row.state == "running":
                progress("Pictures drawn", len(row.pictures), composition.count)
            if row.state == "failed":
                notice(f"This failed: {row.failure}", level="bad")
            with ui.element("div").classes("pictures"):
                for each in row.pictures:
                    alt = f"{each.prompt}, seed {each.seed}, {row.way}"
                    picture(studio.places, each.file, alt=alt, caption=f"seed {each.seed}")
            if row.command:
                command_line(row.command)


def _title(row: Row) -> str:
    return "With the concept" if row.way == "alone" else f"{row.way}: {WAYS[row.way]}"
