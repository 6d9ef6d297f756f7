"""The page Library: concepts as cards; search, rename, delete, restore, export and import."""

import shutil
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import events, ui

from moongate.errors import ConceptFileError, OptionError
from moongate.files import file_name, free_path
from moongate.limits import MAX_UPLOAD_BYTES
from moongate.studio.commands import Command
from moongate.studio.composition import Composition
from moongate.studio.places import CONCEPT
from moongate.studio.shelf import Card, Deleted, cards, delete, deleted, free_name, rename, restore
from moongate.studio.state import Studio
from moongate.studio.widgets import (
    busy,
    command_line,
    dialog,
    drop_zone,
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

PATH, TITLE = "/library", "Library"
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".json")
"""Endings of files that may be imported; which format a file has is decided by its content."""
FORMATS = {
    "kohya": "A1111, ComfyUI, kohya",
    "diffusers": "diffusers, Custom Diffusion",
    "lora": "diffusers, LoRA",
    "embedding": "embedding alone",
    "compvis": "Custom Diffusion, CompVis",
    "adobe": "Custom Diffusion, first release",
    "moongate": "Moongate",
}
"""The formats of `moongate convert --to`, with what reads them."""


def show(studio: Studio) -> None:
    """Build the page."""
    _Library(studio).build()


class _Library:
    """The page as one browser has it: what it searches is its own."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.query = studio, ""

    def build(self) -> None:
        ui.input("Search", on_change=self._search).props("outlined dense clearable type=search").mark("search")
        live(self._found, self._show_cards)
        with section("Import"):
            _Import(self.studio).build()
        live(partial(deleted, self.studio.places), self._show_trash)

    def _search(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self.query = event.value or ""

    def _found(self) -> tuple[str, list[Card]]:
        return self.query, [card for card in cards(self.studio.places) if card.matches(self.query)]

    def _show_cards(self, found: tuple[str, list[Card]]) -> None:
        query, shown = found
        if not shown and query:
            paragraph("No concept has all of these words.")
        elif not shown:
            paragraph("There are no concepts yet. Teach one, or import a file below.")
        with ui.element("div").classes("cards"):
            for card in shown:
                self._show_card(card)

    def _show_card(self, card: Card) -> None:
        with ui.element("article").classes("card").props(f'data-name="{file_name(card.name)}"'):
            if card.thumbnail:
                picture(self.studio.places, card.thumbnail, alt=f"A picture of {card.title}")
            heading(card.title, level=2)
            paragraph(_facts(card), quiet=True)
            if card.problem:
                notice(card.problem, level="fair")
            with ui.element("div").classes("bar"):
                if not card.problem:
                    _button("Compose", card, partial(self._compose, card))
                    _button("Export", card, partial(self._export, card))
                if card.is_own:
                    _button("Rename", card, partial(self._rename, card))
                    _button("Delete", card, partial(self._delete, card))

    def _compose(self, card: Card) -> None:
        Composition.read(self.studio.places).added(card.file).write(self.studio.places)
        ui.navigate.to("/compose")

    def _delete(self, card: Card) -> None:
        with errors_shown():
            delete(self.studio.places, card.file)
            ui.notify(f"{card.name} is in the trash, from which it can be restored.")

    def _rename(self, card: Card) -> None:
        with dialog() as opened:
            heading(f"Rename {card.name}")
            name = ui.input("New name", value=card.name).props("outlined autofocus").mark("new-name")

            def apply() -> None:
                with errors_shown():
                    rename(self.studio.places, card.file, name.value or "")
                    opened.close()

            name.on("keydown.enter", apply)
            with ui.element("div").classes("bar"):
                ui.button("Rename it", on_click=apply)
                ui.button("Cancel", on_click=opened.close).props("outline")

    def _export(self, card: Card) -> None:
        with dialog(classes="wide") as opened:
            heading(f"Export {card.name}")
            choice = ui.select(
                {name: f"{name}: {reads}" for name, reads in FORMATS.items()}, value="kohya", label="Format"
            )
            choice.props("outlined").mark("format")
            file = str(card.file)
            command_line(
                lambda: Command(("convert", file, "--to", choice.value, "--out", self._out(card, choice.value)))
            )
            result = ui.element("div")

            async def apply() -> None:
                async with busy(button):
                    out = self._out(card, choice.value)
                    written = await self.studio.desk.ask("export_concept", file=file, to=choice.value, out=out)
                    result.clear()
                    with result:
                        for note in written["notes"]:
                            notice(note, level="fair")
                        for path in map(Path, written["files"]):
                            self._link(path)

            with ui.element("div").classes("bar"):
                button = ui.button("Write the files", on_click=apply)
                ui.button("Close", on_click=opened.close).props("outline")

    def _out(self, card: Card, to: str) -> str:
        """Return the path of an export: a file, or a folder for the formats of several files."""
        ending = {"moongate": CONCEPT, "compvis": ".ckpt", "adobe": ".bin"}.get(to, "")
        return str(self.studio.places.exports / f"{card.name}-{to}{ending}")

    def _link(self, file: Path) -> None:
        with ui.element("p"):
            text = f"Download {file.name} ({file.stat().st_size / 1e6:.1f} MB)"
            link(text, self.studio.places.address(file), download=file.name)

    def _show_trash(self, found: list[Deleted]) -> None:
        if not found:
            return
        with section("Trash"):
            for one in found:
                with ui.element("div").classes("bar"):
                    paragraph(one.origin.stem)
                    button = ui.button("Restore", on_click=partial(self._restore, one)).props("outline dense")
                    button.props(f'aria-label="Restore {file_name(one.origin.stem)}"').mark(
                        f"restore-{one.origin.stem}"
                    )

    def _restore(self, one: Deleted) -> None:
        with errors_shown():
            file = restore(self.studio.places, one.folder)
            ui.notify(f"{file.stem} is restored.")


class _Import:
    """Files that are dropped together become one concept."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.name, self.tokens, self.categories = "", "", ""

    def build(self) -> None:
        paragraph(
            "A concept, LoRA, embedding or Custom Diffusion file of any program; its content says which. Drop files "
            "that belong together at once.",
            quiet=True,
        )
        with ui.element("div").classes("fields"):
            name = ui.input("Name, if not the file's").props("outlined dense").bind_value_to(self, "name")
            category = ui.input("Category, if it has none").props("outlined dense").bind_value_to(self, "categories")
            token = ui.input("New name for its token").props("outlined dense").bind_value_to(self, "tokens")
            for field, mark in ((name, "import-name"), (category, "import-category"), (token, "import-token")):
                field.mark(mark)
        self.upload = drop_zone(
            f"Drop files here (up to {MAX_UPLOAD_BYTES // 10**9} GB together)",
            choose="Choose files",
            accept=",".join(SUFFIXES),
            max_total_size=MAX_UPLOAD_BYTES,
            on_multi_upload=self.take,
            on_rejected=lambda: ui.notify(
                "The files are too large, of another kind, or dropped already.", type="negative"
            ),
        )
        self.upload._props[":field-name"] = "file => file.__key"  # by its name, one of two alike would not be received
        self.upload.mark("import")
        self.result = ui.element("div")

    async def take(self, event: events.MultiUploadEventArguments) -> None:
        """Import files that have arrived."""
        self.result.clear()
        with errors_shown():
            try:
                await self._imported(event)
            finally:
                self.upload.reset()

    async def _imported(self, event: events.MultiUploadEventArguments) -> None:
        wrong = [file.name for file in event.files if Path(file.name).suffix.lower() not in SUFFIXES]
        if wrong:
            raise ConceptFileError(f"{wrong[0]} is not a file of weights. These end in: {', '.join(SUFFIXES)}.")
        if sum(file.size() for file in event.files) > MAX_UPLOAD_BYTES:
            raise OptionError(f"The files have more than {MAX_UPLOAD_BYTES // 10**9} GB together.")
        out = free_name(self.studio.places, self.name or Path(event.files[0].name).stem)
        place = Path(tempfile.mkdtemp(prefix=".arriving-", dir=self.studio.places.exports))
        try:
            for file in event.files:
                named = place / f"{file_name(Path(file.name).stem)}{Path(file.name).suffix.lower()}"
                await file.save(free_path(named))
            (only, *others) = sorted(place.iterdir())
            found = await self.studio.desk.ask(
                "import_concept",
                source=str(place if others else only),
                out=str(out),
                tokens=self.tokens.split(),
                categories=self._categories(),
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)
        self._report(event.files[0].name, out, found)

    def _report(self, name: str, out: Path, found: dict[str, object]) -> None:
        with self.result:
            notice(f"{out.stem} was imported ({found['format']}).", level="good")
            for note in found["notes"]:  # type: ignore[attr-defined]
                notice(note, level="fair")
            words = ["convert", name, "--to", "moongate", "--out", str(out)]
            for token in self.tokens.split():
                words += ["--token", token]
            for category in self._categories():
                words += ["--category", category]
            command_line(Command(tuple(words)))

    def _categories(self) -> list[str]:
        return [category.strip() for category in self.categories.split(",") if category.strip()]


def _facts(card: Card) -> str:
    day = datetime.fromtimestamp(card.changed).strftime("%Y-%m-%d")
    parts = [card.name, card.model, card.method, f"{card.steps} steps" if card.steps else "", card.hash]
    return ", ".join([*filter(None, parts), f"{card.bytes / 1e6:.1f} MB", day])


def _button(text: str, card: Card, do: object) -> None:
    button = ui.button(text, on_click=do).props("outline dense")  # type: ignore[arg-type]
    button.props(f'aria-label="{text} {file_name(card.name)}"').mark(f"{text.lower()}-{card.name}")
