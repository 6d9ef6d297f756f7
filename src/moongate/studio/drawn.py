"""What was drawn last on the page Compose, side by side: a row for each way, the same seeds above one another."""

from dataclasses import dataclass
from functools import partial

from nicegui import ui

from moongate.studio.commands import Command, State
from moongate.studio.composition import WAYS, Composition
from moongate.studio.pictures import Picture, pictures
from moongate.studio.state import Studio
from moongate.studio.widgets import command_line, live, notice, paragraph, picture, section

__all__ = ["show_drawn"]

LAST_LINES = 400
"""Characters of what a command printed last that are shown when it failed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The pictures of one way."""

    way: str
    pictures: tuple[Picture, ...]
    state: State | None
    command: Command | None
    printed: str


def show_drawn(studio: Studio, composition: Composition) -> None:
    """Add the pictures of the last drawing, which appear as they are drawn."""
    if composition.drawn:
        with section("Drawn"):
            live(partial(_rows, studio, composition.drawn), partial(_show, studio, composition))


def _rows(studio: Studio, folder: str) -> list[Row]:
    place = studio.places.inside(studio.places.gallery / folder)
    started = {each.command.words[-1]: each for each in reversed(studio.commands.all())}
    found = []
    for way in ("alone", *WAYS):
        made = sorted(pictures(studio.places, place / way), key=lambda picture: picture.seed)
        one = started.get(str(place / way))
        if made or one:
            is_bad = one is not None and one.state == "failed"
            found.append(
                Row(
                    way=way,
                    pictures=tuple(made),
                    state=one.state if one else None,
                    command=one.command if one else None,
                    printed=one.printed[-LAST_LINES:] if one and is_bad else "",
                )
            )
    return found


def _show(studio: Studio, composition: Composition, rows: list[Row]) -> None:
    if rows and rows[0].pictures:
        paragraph(rows[0].pictures[0].prompt)
    for row in rows:
        with section(_title(row), level=3):
            if row.state == "waiting":
                paragraph("It waits until the drawings before it are done.", quiet=True)
            if row.state == "running":
                bar = ui.element("progress").props('aria-label="Pictures drawn"')
                bar._props.update({"max": composition.count, "value": len(row.pictures)})
            if row.state == "failed":
                notice(f"This failed: {row.printed.strip() or 'it printed nothing.'}", level="bad")
            with ui.element("div").classes("pictures"):
                for each in row.pictures:
                    alt = f"{each.prompt}, seed {each.seed}, {row.way}"
                    picture(studio.places, each.file, alt=alt, caption=f"seed {each.seed}")
            if row.command:
                command_line(row.command)


def _title(row: Row) -> str:
    return "With the concept" if row.way == "alone" else f"{row.way}: {WAYS[row.way]}"
