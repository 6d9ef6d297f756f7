"""The page Teach: photos, captions and settings of a subject, what its training takes, and the queue of trainings."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from moongate.data.captions import PRESETS
from moongate.errors import MoongateError, OptionError
from moongate.fleet import Job, check_names
from moongate.pocket import example, examples
from moongate.run_page import duration
from moongate.studio.drafts import Draft, Settings, drafts, looks_every
from moongate.studio.estimate import Facts, estimated, measured_speed, size
from moongate.studio.photos import show_photos
from moongate.studio.queue import show_queue
from moongate.studio.state import Studio
from moongate.studio.widgets import busy, command_line, errors_shown, live, notice, paragraph, section

__all__ = ["PATH", "TITLE", "of_example", "show"]

PATH, TITLE = "/", "Teach"
REGULARIZATION = {
    "auto": "what suits the model",
    "pool": "pocket's own pictures",
    "generated": "pictures that the model draws",
    "none": "none",
}
SYNC_EVERY_S = 1.0


def show(studio: Studio) -> None:
    """Build the page."""
    name = ui.context.client.request.query_params.get("draft", "")
    chosen = next((draft for draft in drafts(studio.places.photos) if draft.name == name), None)
    _show_choice(studio, chosen)
    if chosen:
        show_photos(studio, chosen)
        _Form(studio, chosen)
    show_queue(studio)


def of_example(name: str) -> tuple[Path, Settings, tuple[Path, ...]]:
    """Return the training photos of an example, its settings, and some photos to judge with."""
    chosen = example(name)
    judges = tuple(sorted(path for path in chosen.evaluation.iterdir() if path.suffix == ".webp")[:4])
    token = f"<{name.split('-')[-1][:8].lower()}1>"
    return chosen.training, Settings(category=chosen.category, token=token), judges


def _show_choice(studio: Studio, chosen: Draft | None) -> None:
    """Add what is taught: a draft that exists, a new one, an example, or a copy of a folder."""
    names = [draft.name for draft in drafts(studio.places.photos)]
    with section("What do you teach?"), ui.element("div").classes("bar"):
        if names:
            ui.select(
                names,
                label="Begun here",
                value=chosen.name if chosen else None,
                on_change=lambda event: _go(str(event.value)),
            ).props("outlined dense").classes("field").mark("drafts")
        new = ui.input("Name of a new subject").props("outlined dense").classes("field").mark("new-name")
        ui.button("Begin", on_click=lambda: _begin(studio, new.value or "")).mark("begin")
        known = ui.select([*examples()], label="An example of pocket").props("outlined dense").classes("field")
        known.mark("example")
        copy = ui.button("Use the example").props("outline").mark("use-example")
        copy.on_click(lambda: _bring(studio, copy, example=known.value))
        place = ui.input("A folder below the chosen ones").props("outlined dense").classes("field").mark("folder")
        copy_folder = ui.button("Copy the folder").props("outline").mark("copy-folder")
        copy_folder.on_click(lambda: _bring(studio, copy_folder, folder=place.value))


def _go(name: str) -> None:
    ui.navigate.to(f"{PATH}?{urlencode({'draft': name})}")


async def _begin(studio: Studio, name: str) -> None:
    with errors_shown():
        settings = Settings(steps=await studio.usual_steps())
        _go(Draft.create(studio.places.photos, name, settings).name)


async def _bring(studio: Studio, button: ui.button, *, example: str | None = None, folder: str | None = None) -> None:
    """Begin with the photos of an example or of a folder."""
    async with busy(button):
        if example:
            source, settings, held_out = of_example(example)
        else:
            source, settings, held_out = studio.places.inside(folder or ""), Settings(), ()
            if not folder or not source.is_dir():
                raise OptionError(f"There is no folder {folder!r} in {studio.places.root}. Check the path.")
        settings = replace(settings, steps=await studio.usual_steps())
        draft = await asyncio.to_thread(Draft.create, studio.places.photos, example or source.name, settings)
        notes = await studio.lens.ask("bring_photos", source=str(source), target=str(draft.teach))
        for photo in held_out:
            await studio.lens.ask("bring_photos", source=str(photo), target=str(draft.held_out), prefix="judge-")
        for note in notes:
            ui.notify(note, type="warning", multi_line=True, timeout=10_000)
        _go(draft.name)


class _Form:
    """What is chosen for a training, what it takes, and its start."""

    def __init__(self, studio: Studio, draft: Draft) -> None:
        self.studio, self.draft, self.seen = studio, draft, draft.settings
        with section("The subject and its training"):
            with ui.element("div").classes("fields"):
                self.fields = self._fields(draft.settings)
            self.checked = ui.element("div")
            with ui.element("div").classes("bar"):
                self.name = ui.input("Name of the concept", value=draft.name).props("outlined dense").mark("name")
            live(self._takes, self._show_takes)
            live(self._entry, self._show_start)
        ui.timer(SYNC_EVERY_S, self._sync)
        ui.timer(0, self._check_token, once=True)

    def _fields(self, chosen: Settings) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "category": ui.input("Category: what it is, in a word or two", value=chosen.category),
            "token": ui.input("Token: the new word, such as <bear>", value=chosen.token),
            "preset": ui.select([*PRESETS], label="Kind of subject", value=chosen.preset),
            "steps": ui.number("Steps", value=chosen.steps, min=1, max=100_000, precision=0),
            "regularization": ui.select(REGULARIZATION, label="Regularization", value=chosen.regularization),
            "rare_token": ui.number("Rare token (differs for each)", value=chosen.rare_token, min=0, precision=0),
            "seed": ui.number("Seed", value=chosen.seed, min=0, precision=0),
        }
        for name, field in fields.items():
            field.props("outlined dense").mark(name)
            field.on_value_change(partial(self._choose, name))
        return fields

    def _choose(self, name: str, _event: Any) -> None:
        kind = type(getattr(self.seen, name))
        value = self.fields[name].value
        with errors_shown():
            self.draft.choose(**{name: kind(value if value is not None else kind())})
        self.seen = self.draft.settings
        if name == "token":
            ui.timer(0, self._check_token, once=True)

    def _sync(self) -> None:
        """Show what was chosen in another browser."""
        now = self.draft.settings
        if now != self.seen:
            self.seen = now
            for name, field in self.fields.items():
                field.set_value(getattr(now, name))

    async def _check_token(self) -> None:
        """Ask whether the token can be used, while it is being typed."""
        token, text = self.draft.settings.token.strip(), ""
        if token:
            try:
                await self.studio.desk.ask("check_token", replaces=f"token-{self.name.id}", token=token)
            except MoongateError as error:
                text = str(error)
            except asyncio.CancelledError:
                return
        if not self.checked.is_deleted:
            self.checked.clear()
            with self.checked:
                if text:
                    notice(text, level="bad").mark("token-error")
                elif token:
                    notice(f"The token {token} can be used.", level="good")

    def _entry(self) -> tuple[dict[str, Any] | None, str]:
        """Return the job as it is now, and why it cannot begin; empty if it can."""
        try:
            entry = self.draft.job((self.name.value or "").strip(), model=self.studio.model)
            check_names([Job(name=entry["name"], settings={})])
        except MoongateError as error:
            return None, str(error)
        return entry, self.studio.trainings.obstacle(entry["name"])

    async def _takes(self) -> str:
        """Return what the training takes, as a sentence."""
        chosen = self.draft.settings
        facts = await self.studio.model_facts()
        runs = await asyncio.to_thread(self.studio.places.runs)
        measured = await asyncio.to_thread(measured_speed, runs, self.studio.model)
        speed, source = measured or (await self.studio.measured_speed(), "measured just now by a few steps")
        known = Facts(
            resolution_px=facts["resolution_px"], change_bytes=facts["change_bytes"], pictures_per_second=speed
        )
        steps = max(1, chosen.steps)
        looks = steps // looks_every(steps)
        takes = estimated(known, steps=steps, looks=looks, regularizes=chosen.regularization != "none")
        return (
            f"It takes about {duration(takes.training_s)} of training and {duration(takes.drawing_s)} for pictures, at "
            f"{speed:.1f} pictures a second ({source}), and {size(takes.disk_bytes)} of disk."
        )

    def _show_takes(self, takes: str) -> None:
        paragraph(takes).mark("takes")

    def _show_start(self, found: tuple[dict[str, Any] | None, str]) -> None:
        entry, obstacle = found
        if obstacle:
            notice(obstacle, level="fair")
        if entry:
            command_line(self.studio.trainings.command(entry))
        start = ui.button("Start the training", icon="play_arrow").mark("start")
        start.on_click(partial(self._start, start))
        start.set_enabled(entry is not None and not obstacle)

    async def _start(self, button: ui.button) -> None:
        async with busy(button):
            if self.draft.settings.token.strip():
                await self.studio.desk.ask("check_token", token=self.draft.settings.token.strip())
            entry = await asyncio.to_thread(self.draft.job, (self.name.value or "").strip(), model=self.studio.model)
            await asyncio.to_thread(self.studio.trainings.add, entry)
