"""The page Compose: choose concepts, see at once what a merge keeps, and draw them together in several ways."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import background_tasks, events, ui

from moongate.errors import MoongateError, OptionError
from moongate.files import file_name
from moongate.studio.commands import Command
from moongate.studio.composition import WAYS, Composition, filled, joint_job, templates
from moongate.studio.drawings import MAX_COUNT, merge_command
from moongate.studio.drawn import show_drawn
from moongate.studio.places import CONCEPT
from moongate.studio.regions import RegionEditor
from moongate.studio.report import show_report
from moongate.studio.shelf import Card, cards, free_name
from moongate.studio.state import Studio
from moongate.studio.widgets import (
    Words,
    command_line,
    errors_shown,
    heading,
    live,
    notice,
    paragraph,
    picture,
    section,
)

__all__ = ["PATH", "TITLE", "show"]

PATH, TITLE = "/compose", "Compose"
LOOK_EVERY_S = 1.0


def show(studio: Studio) -> None:
    """Build the page."""
    _Compose(studio).build()


class _Compose:
    """The page as one browser has it. What is chosen is a file, so that all browsers show the same."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.dragged = studio, ""
        self.known = Composition.read(studio.places)
        self.reported: tuple[list[tuple[str, float]], dict[str, Any]] | None = None

    def build(self) -> None:
        with section("Concepts"):
            paragraph("Drag concepts into the field below, or choose them with their buttons.", quiet=True)
            live(self._usable, self._show_shelf)
        self.part = ui.element("div")
        self._rebuild()
        ui.timer(LOOK_EVERY_S, self._follow)

    # --- what is chosen -----------------------------------------------------------------------------------------------

    def _change(self, composition: Composition, *, anew: bool = True) -> None:
        """Keep a change, and build the page again unless only a value of it changed."""
        with errors_shown():
            composition.write(self.studio.places)
            self.known = composition
            if anew:
                self._rebuild()

    def _follow(self) -> None:
        """Take over what another browser has chosen."""
        now = Composition.read(self.studio.places)
        if now != self.known:
            self.known = now
            self._rebuild()

    def _chosen(self) -> list[Card]:
        """Return the cards of the chosen concepts."""
        known = {card.file: card for card in cards(self.studio.places)}
        return [known[concept.file] for concept in self.known.concepts if concept.file in known]

    @property
    def words(self) -> list[str]:
        """The words of all chosen subjects."""
        return [words for card in self.chosen for words in card.words]

    def _usable(self) -> list[Card]:
        return [card for card in cards(self.studio.places) if not card.problem]

    # --- building -----------------------------------------------------------------------------------------------------

    def _show_shelf(self, shelf: list[Card]) -> None:
        if not shelf:
            paragraph("There are no concepts yet. Teach one, or import a file on the page Library.")
        with ui.element("div").classes("shelf"):
            for card in shelf:
                with ui.element("div").classes("chip").props("draggable=true") as chip:
                    chip.on("dragstart", partial(self._drag, card))
                    if card.thumbnail:
                        picture(self.studio.places, card.thumbnail, alt="")
                    button = ui.button(card.title, icon="add", on_click=partial(self._add, card.file))
                    button.props("flat dense no-caps").mark(f"add-{card.name}")

    def _drag(self, card: Card) -> None:
        self.dragged = str(card.file)

    def _drop(self) -> None:
        if self.dragged:
            self._add(Path(self.dragged))
        self.dragged = ""

    def _add(self, file: Path) -> None:
        self._change(self.known.added(file))

    def _rebuild(self) -> None:
        self.chosen = self._chosen()
        self.part.clear()
        with self.part:
            field = ui.element("section").classes("drop").props('aria-label="Chosen concepts"').mark("field")
            field.on("dragover.prevent", lambda: None, throttle=1.0)
            field.on("drop.prevent", self._drop)
            with field:
                heading("Together")
                if not self.chosen:
                    paragraph("No concept is chosen. Drag some here.", quiet=True)
                for card in self.chosen:
                    self._show_chosen(card)
                self.report = ui.element("div").props("aria-live=polite").mark("report")
            if self.chosen:
                background_tasks.create(self._ask())  # a timer would end with the part it is in, and the worker with it
                self._show_saving()
                with section("Draw"):
                    self._show_drawing()
            show_drawn(self.studio, self.known)

    def _show_chosen(self, card: Card) -> None:
        strength = next(concept.strength for concept in self.known.concepts if concept.file == card.file)
        with ui.element("div").classes("bar strength"):
            paragraph(card.title)
            shown = Words("output", f"strength {strength:.2f}")
            slider = ui.slider(
                min=0, max=1.5, step=0.05, value=strength, on_change=partial(self._strengthen, card.file, shown)
            )
            slider.props(f'label aria-label="Strength of {file_name(card.name)}"').mark(f"strength-{card.name}")
            remove = ui.button(icon="close", on_click=lambda: self._change(self.known.removed(card.file)))
            remove.props(f'flat dense aria-label="Remove {file_name(card.name)}"').mark(f"remove-{card.name}")

    def _strengthen(self, file: Path, shown: Words, event: events.ValueChangeEventArguments[Any]) -> None:
        shown.set_text(f"strength {event.value:.2f}")
        self._change(self.known.strengthened(file, float(event.value)), anew=False)
        background_tasks.create(self._ask())

    def _wanted(self) -> list[tuple[str, float]]:
        """Return the concepts that are chosen, with their strengths, as the worker is asked about them."""
        return [(str(concept.file), concept.strength) for concept in self.known.concepts]

    async def _ask(self) -> None:
        """Let the worker merge, and show what it reports; only the latest question of this page counts."""
        asked, place, problem = self._wanted(), self.report, ""
        if not self.reported or self.reported[0] != asked:
            if not place.is_deleted and not place.default_slot.children:
                with place:
                    paragraph("The model is loaded, and the concepts are merged.", quiet=True)
            try:
                report = await self.studio.desk.ask("merge_report", concepts=asked, replaces=f"merge {id(self)}")
                self.reported = (asked, report)
            except (MoongateError, OSError) as error:
                problem = str(error)
            except asyncio.CancelledError:
                return
        if place.is_deleted or asked != self._wanted():
            return
        place.clear()
        with place:
            if problem:
                notice(problem, level="bad")
            elif self.reported:
                show_report(self.reported[1])

    def _show_saving(self) -> None:
        concepts = self.known.concepts
        name = "-".join(concept.file.stem for concept in concepts) + ("" if len(concepts) > 1 else "-cleaned")
        with ui.element("div").classes("bar"):
            field = ui.input("Name of the merged concept", value=name).props("outlined dense").mark("merge-name")
            ui.button("Save the merge", on_click=lambda: self._save(field.value or "")).mark("save-merge")

        def command() -> Command:
            out = self.studio.places.concepts / f"{file_name(field.value or 'merged')}{CONCEPT}"
            return merge_command(self.known.concepts, out)

        command_line(command)

    def _save(self, name: str) -> None:
        with errors_shown():
            out = free_name(self.studio.places, name)
            self.studio.commands.start(merge_command(self.known.concepts, out), name=f"merge-{out.stem}")
            ui.notify(f"{out.stem} is being written. It will appear above and in the library.")

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _show_drawing(self) -> None:
        known = self.known
        offered = templates(len(self.words))
        with ui.element("div").classes("fields"):
            ui.select(offered, label="Template", with_input=True, on_change=self._take_template).props("outlined").mark(
                "template"
            )
            self._number("Seed of the first picture", "seed", 0, 2**31)
            self._number("Pictures", "count", 1, MAX_COUNT)
            self._number("Denoising steps", "steps", 1, 1000)
        if not known.prompt or (known.prompt not in offered and known.prompt in (*templates(1), *templates(2))):
            self._change(replace(known, prompt=offered[0]), anew=False)
            known = self.known
        self.prompt = ui.input("Prompt ({} or {0}, {1} stand for the concepts)", value=known.prompt)
        self.prompt.props("outlined").classes("wide").mark("prompt").on_value_change(self._take_prompt)
        self.reads = paragraph("", quiet=True)
        self._say_prompt()
        if len(known.concepts) > 1:
            self._show_ways()
        RegionEditor(self.words, dict(known.regions), self._take_regions).build()
        ui.button("Draw", icon="brush", on_click=self._draw).mark("draw")
        for way in known.ways if len(known.concepts) > 1 else ("alone",):
            command_line(partial(self._command, way))

    def _number(self, label: str, name: str, low: int, high: int) -> None:
        def take(event: events.ValueChangeEventArguments[Any]) -> None:
            if event.value is not None and low <= event.value <= high:
                values: dict[str, Any] = {name: int(event.value)}
                self._change(replace(self.known, **values), anew=False)

        field = ui.number(label, value=getattr(self.known, name), min=low, max=high, precision=0, on_change=take)
        field.props("outlined").mark(name)

    def _take_template(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value:
            self.prompt.value = event.value

    def _take_prompt(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._change(replace(self.known, prompt=event.value or ""), anew=False)
        self._say_prompt()

    def _say_prompt(self) -> None:
        try:
            text = f"Draws: {filled(self.known.prompt, self.words)}"
        except OptionError as error:
            text = str(error)
        self.reads.set_text(text)

    def _show_ways(self) -> None:
        with ui.element("fieldset").classes("bar"):
            Words("legend", "Side by side")
            for way, meaning in WAYS.items():
                box = ui.checkbox(
                    f"{way}: {meaning}", value=way in self.known.ways, on_change=partial(self._choose, way)
                )
                box.mark(f"way-{way}")
        if "joint" in self.known.ways and not self.known.joint_file(self.studio.places).exists():
            with ui.element("div").classes("bar"):
                paragraph("To teach jointly, train on all photos first.", quiet=True)
                ui.button("Teach jointly", on_click=self._teach).props("outline").mark("teach-jointly")

    def _choose(self, way: str, event: events.ValueChangeEventArguments[Any]) -> None:
        ways = [each for each in WAYS if (each in self.known.ways and each != way) or (each == way and event.value)]
        self._change(replace(self.known, ways=tuple(ways)))

    def _take_regions(self, regions: Any) -> None:
        self._change(replace(self.known, regions=regions), anew=False)

    def _teach(self) -> None:
        with errors_shown():
            job = joint_job(self.known, self.chosen, self.studio.places, model=self.studio.model)
            self.studio.trainings.add(job)
            ui.notify(f"{job['name']} waits in the queue on the page Teach. Draw again when it is done.")

    def _command(self, way: str) -> Command:
        """Return the command that draws in one way, into the folder that is free now."""
        try:
            return self.known.drawing(self.words, self.studio.places)[1][way]
        except (OptionError, KeyError):
            return Command(("generate",))

    def _draw(self) -> None:
        with errors_shown():
            folder, found = self.known.drawing(self.words, self.studio.places)
            if "joint" in found and not self.known.joint_file(self.studio.places).exists():
                raise OptionError("The joint concept is not taught yet. Teach it first, or leave it out.")
            folder.mkdir(parents=True)  # or the next drawing would take it, if this one still waits for its turn
            for way, command in found.items():
                self.studio.commands.start(command, name=f"draw-{folder.name}-{way}", takes_turns=True)
            self._change(replace(self.known, drawn=folder.name))
