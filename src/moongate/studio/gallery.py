"""The page Gallery: what was drawn; filter, compare two, draw again, edit by words, download."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import events, ui

from moongate.errors import OptionError
from moongate.files import file_name, free_path
from moongate.studio.commands import ALIVE, Command, Started, State
from moongate.studio.drawings import Chosen, edit_command, redraw_command
from moongate.studio.pictures import Picture, differences, pictures
from moongate.studio.report import table
from moongate.studio.shelf import cards
from moongate.studio.state import Studio
from moongate.studio.widgets import (
    command_line,
    dialog,
    errors_shown,
    heading,
    link,
    live,
    notice,
    paragraph,
    picture,
    section,
)

__all__ = ["PATH", "TITLE", "show"]

PATH, TITLE = "/gallery", "Gallery"
SHOWN = 48
"""Pictures that are shown at first, and how many more each time."""
COMMANDS = ("draw-", "redraw-", "edit-")
"""How the names of commands begin whose pictures appear here."""
LATEST = 5
"""A drawing that failed is shown as long as it is among this many that were started last."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the list of pictures shows."""

    pictures: tuple[Picture, ...]
    total: int
    unfinished: tuple[tuple[str, State, str], ...]
    """Drawings that run, wait or failed: their names, their states, and what those that failed printed last."""


def show(studio: Studio) -> None:
    """Build the page."""
    _Gallery(studio).build()


class _Gallery:
    """The page as one browser has it: what it searches and compares is its own."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.query, self.shown = "", SHOWN
        self.chosen: list[Path] = []
        self.boxes: dict[Path, ui.checkbox] = {}

    def build(self) -> None:
        field = ui.input("Filter by words of the prompt, seed, concept or hash", on_change=self._filter)
        field.props("outlined dense clearable type=search").classes("wide").mark("filter")
        self.compared = ui.element("div").mark("compared")
        live(self._found, self._show)

    def _filter(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self.query, self.shown = event.value or "", SHOWN

    def _found(self) -> _Found:
        found = [each for each in pictures(self.studio.places) if each.matches(self.query)]
        return _Found(
            pictures=tuple(found[: self.shown]),
            total=len(found),
            unfinished=tuple((started.name, started.state, started.failure) for started in self._unfinished()),
        )

    def _unfinished(self) -> list[Started]:
        """Return all drawings that run or wait, and those of the latest that failed."""
        ours = [each for each in self.studio.commands.all() if each.name.startswith(COMMANDS)]
        return [each for each in ours if each.state in ALIVE or (each.state == "failed" and each in ours[:LATEST])]

    def _show(self, found: _Found) -> None:
        for name, state, failure in found.unfinished:
            if state == "running":
                paragraph(f"{name} is running.", quiet=True)
            elif state == "waiting":
                paragraph(f"{name} waits until the drawings before it are done.", quiet=True)
            else:
                notice(f"{name} failed: {failure}", level="bad")
        if not found.total:
            paragraph("No picture has all of these words." if self.query else "No picture has been drawn yet.")
        elif self.query:
            paragraph(f"{found.total} pictures", quiet=True)
        with ui.element("div").classes("pictures gallery"):
            for each in found.pictures:
                self._show_picture(each)
        if found.total > len(found.pictures):
            ui.button(f"Show more of {found.total}", on_click=self._more).props("outline").mark("more")

    def _more(self) -> None:
        self.shown += SHOWN

    def _show_picture(self, each: Picture) -> None:
        name = f"{each.prompt}, seed {each.seed}"
        with ui.element("div").classes("picture"):
            picture(self.studio.places, each.file, alt=name, caption=name)
            with ui.element("div").classes("bar"):
                look = ui.button("Look", on_click=partial(self._open, each)).props("outline dense")
                look._props["aria-label"] = f"Look at {name}"
                look.mark(f"look-{each.file.stem}")
                box = ui.checkbox("compare", value=each.file in self.chosen, on_change=partial(self._choose, each.file))
                box._props["aria-label"] = f"Compare {name}"
                box.mark(f"compare-{each.file.stem}")
                self.boxes[each.file] = box

    # --- two pictures -------------------------------------------------------------------------------------------------

    def _choose(self, file: Path, event: events.ValueChangeEventArguments[Any]) -> None:
        others = [other for other in self.chosen if other != file]
        ticked = [*others, file] if event.value else others
        self.chosen = ticked[-2:]
        for dropped in ticked[:-2]:
            if box := self.boxes.get(dropped):
                box.value = False
        self._compare()

    def _compare(self) -> None:
        known = {each.file: each for each in pictures(self.studio.places)}
        two = [known[file] for file in self.chosen if file in known]
        self.compared.clear()
        if len(two) < 2:
            return
        with self.compared, section("Compared"):
            with ui.element("div").classes("two"):
                for each in two:
                    picture(self.studio.places, each.file, alt=each.prompt, caption=f"{each.prompt}, seed {each.seed}")
            rows = differences(two[0], two[1])
            if rows:
                table(("", "left", "right"), rows)
            else:
                paragraph("Both were drawn in the same way.")

    # --- one picture --------------------------------------------------------------------------------------------------

    def _open(self, each: Picture) -> None:
        with dialog(classes="wide") as opened:
            heading(each.prompt)
            picture(self.studio.places, each.file, alt=each.prompt).classes("large")
            facts = [("seed", str(each.seed)), ("concepts", each.described), ("model", each.model)]
            facts += [("steps", str(each.steps or "")), ("scheduler", each.scheduler), ("edited from", each.source)]
            table(("", ""), [fact for fact in facts if fact[1]])
            with ui.element("p"):
                address = self.studio.places.address(each.file)
                link("Download it with its metadata", address, download=each.file.name)
            self._offer_redrawing(each)
            self._offer_editing(each)
            ui.button("Close", on_click=opened.close).props("outline")

    def _offer_redrawing(self, each: Picture) -> None:
        heading("Draw it again", level=3)
        try:
            command = self._redrawing(each)
        except OptionError as error:
            notice(str(error), level="fair")
            return
        command_line(command)
        again = partial(self._start, partial(self._redrawing, each), f"redraw-{each.seed}")
        ui.button("Draw again", on_click=again).mark("redraw")

    def _offer_editing(self, each: Picture) -> None:
        heading("Edit it by its prompt", level=3)
        target = ui.input("Changed prompt", value=each.prompt).props("outlined").classes("wide").mark("target")

        def command() -> Command:
            try:
                return self._editing(each, target.value or "")
            except OptionError:
                return Command(("edit",))

        command_line(command)

        edit = partial(self._start, lambda: self._editing(each, target.value or ""), f"edit-{each.seed}")
        ui.button("Edit", on_click=edit).mark("edit")

    def _redrawing(self, each: Picture) -> Command:
        out = free_path(self.studio.places.gallery / f"again-{file_name(each.prompt.lower())}")
        return redraw_command(each, self._concepts(each), out=out, model=self.studio.model)

    def _editing(self, each: Picture, target: str) -> Command:
        if " ".join(target.split()) == each.prompt:
            raise OptionError("The prompt is the same. Change a word of it.")
        out = free_path(self.studio.places.gallery / f"edit-{file_name(target.lower())}")
        return edit_command(each, target, self._concepts(each), out=out, model=self.studio.model)

    def _concepts(self, each: Picture) -> list[Chosen]:
        """Return the concept files of a picture, by their content, whatever they are called now."""
        known = {card.hash: card.file for card in cards(self.studio.places)}
        if lost := [used for used in each.concepts if used.hash not in known]:
            raise OptionError(
                f"The concept {lost[0].file} ({lost[0].hash}) that this picture was drawn with is not in the library "
                "anymore. Restore or import it first."
            )
        return [Chosen(file=known[used.hash], strength=used.strength) for used in each.concepts]

    def _start(self, command_now: Callable[[], Command], name: str) -> None:
        with errors_shown():
            command = command_now()  # only now, so that its folder is free
            Path(command.words[-1]).mkdir(parents=True)
            self.studio.commands.start(command, name=name, takes_turns=True)
            ui.notify("It is being drawn, and will appear at the top.")
