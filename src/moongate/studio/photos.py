"""The photos of a draft as a part of the page Teach: as the model sees them, with captions and masks."""

import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import events, ui

from moongate.data.captions import PRESETS, Preset
from moongate.errors import MoongateError, PictureError
from moongate.limits import MAX_DOWNLOAD_BYTES
from moongate.studio.drafts import Draft, Photo
from moongate.studio.masks import draw_mask
from moongate.studio.state import Studio
from moongate.studio.widgets import drop_zone, errors_shown, live, notice, paragraph, picture, section

__all__ = ["show_photos"]

SYNC_EVERY_S = 1.0


def show_photos(studio: Studio, draft: Draft) -> None:
    """Add the photos of a draft, and where more are dropped."""
    with section("Photos"):
        paragraph("Three to ten photos, from different sides and in different places, teach most.", quiet=True)
        drop_zone(
            f"Drop photos here (up to {MAX_DOWNLOAD_BYTES // 10**6} MB each)",
            choose="Choose photos",
            accept="image/*,.heic,.heif",
            max_file_size=MAX_DOWNLOAD_BYTES,
            on_upload=partial(_take, studio, draft),
            on_rejected=lambda: ui.notify("A file is too large, no photo, or dropped already.", type="negative"),
        )
        live(partial(_known, draft), partial(_show, studio, draft))


async def _take(studio: Studio, draft: Draft, event: events.UploadEventArguments) -> None:
    """Keep an uploaded photo if it is one."""
    with errors_shown():
        if event.file.size() > MAX_DOWNLOAD_BYTES:
            raise PictureError(f"{event.file.name} has more than {MAX_DOWNLOAD_BYTES // 10**6} MB. Shrink it.")
        draft.place_for(event.file.name)  # refused before anything is written
        arriving = draft.teach / f".arriving-{secrets.token_hex(8)}"
        await event.file.save(arriving)
        try:
            await studio.lens.ask("check_photo", file=str(arriving), name=event.file.name)
            arriving.rename(draft.place_for(event.file.name))  # without a pause, in which another might take the name
        finally:
            arriving.unlink(missing_ok=True)


def _known(draft: Draft) -> list[Photo]:
    """Return what the cards depend on: not the captions, which one may be typing."""
    return [replace(photo, caption="") for photo in draft.photos()]


def _show(studio: Studio, draft: Draft, _known: Any) -> None:
    photos = draft.photos()
    if not photos:
        paragraph("There are no photos yet.")
        return
    with ui.element("div").classes("cards"):
        cards = [_Card(studio, draft, photo) for photo in photos]
    ui.timer(0, partial(_look, studio, photos, cards), once=True)
    ui.timer(SYNC_EVERY_S, lambda: _sync(draft, cards))


async def _look(studio: Studio, photos: list[Photo], cards: "list[_Card]") -> None:
    """Let the worker crop the photos and judge them, and show what it found."""
    try:
        side_px = await studio.side_px()
        found = await studio.lens.ask(
            "look_at_photos",
            photos=[str(photo.file) for photo in photos],
            masks=[str(photo.mask) if photo.mask else None for photo in photos],
            side_px=side_px,
            previews=str(studio.places.previews),
        )
    except (MoongateError, OSError) as error:
        found = [{"error": str(error)}] * len(photos)
    for card, one in zip(cards, found, strict=True):
        card.fill(one)


def _sync(draft: Draft, cards: "list[_Card]") -> None:
    """Show captions that were changed elsewhere, but not over one that is being typed, and the words they will have."""
    captions = {photo.file: photo.caption for photo in draft.photos()}
    for card in cards:
        card.sync(captions.get(card.photo.file, ""))


class _Card:
    """One photo."""

    def __init__(self, studio: Studio, draft: Draft, photo: Photo) -> None:
        self.studio, self.draft, self.photo, self.kept, self.whole = studio, draft, photo, photo.caption, ""
        name = photo.file.name
        with section(name, level=3) as card:
            card.classes("card")
            self.shown = ui.element("div")
            with self.shown:
                paragraph("Looking at it.", quiet=True)
            self.input = ui.input("Caption", value=photo.caption).props("outlined dense")
            self.input._props["aria-label"] = f"Caption of {name}"
            self.input.mark(f"caption-{name}")
            self.input.on("blur", self.keep).on("keydown.enter", self.keep)
            self.reads = paragraph("", quiet=True)
            with ui.element("div").classes("bar"):
                box = ui.checkbox("Only to judge", value=photo.is_held_out, on_change=self.hold_out)
                box.props("dense").mark(f"judge-{name}")
                box._props["aria-label"] = f"Only to judge: {name}"
                mask = ui.button("Mask", icon="brush", on_click=self.mask).props("outline dense")
                mask.mark(f"mask-{name}")._props["aria-label"] = f"Mask of {name}"
                remove = ui.button("Remove", icon="delete", on_click=self.remove).props("outline dense")
                remove.mark(f"remove-{name}")._props["aria-label"] = f"Remove {name}"
        self.sync(photo.caption)

    def fill(self, found: dict[str, Any]) -> None:
        """Show the photo as the model sees it."""
        if self.shown.is_deleted:
            return
        self.shown.clear()
        with self.shown:
            if "error" in found:
                notice(found["error"], level="bad")
                return
            self.whole = found["whole"]
            picture(self.studio.places, Path(found["preview"]), alt=f"{self.photo.file.name} as the model sees it")
            for remark in found["remarks"]:
                notice(remark, level="fair")

    def keep(self) -> None:
        """Write the caption."""
        with errors_shown():
            self.draft.caption(self.photo.file, self.input.value or "")
            self.kept = " ".join((self.input.value or "").split())

    def sync(self, caption: str) -> None:
        """Show a caption that was changed elsewhere, and how it reads with the words of the subject."""
        if caption != self.kept:
            self.kept = caption
            self.input.set_value(caption)
        chosen = self.draft.settings
        own = " ".join((self.input.value or "").split())
        template = own or PRESETS.get(chosen.preset, PRESETS["object"]).caption
        words = chosen.words or "..."
        text = f"Reads: {Preset(caption=template).describe(words)}"
        if chosen.token and chosen.token not in template and "{}" not in template:
            text = f"It lacks {{}}, which stands for {words}."
        self.reads.set_text(text)

    def hold_out(self, event: events.ValueChangeEventArguments[bool | None]) -> None:
        with errors_shown():
            self.draft.hold_out(self.photo.file, is_held_out=bool(event.value))

    def remove(self) -> None:
        with errors_shown():
            self.draft.remove(self.photo.file, self.studio.places.trash)
            ui.notify(f"{self.photo.file.name} is in the trash, {self.studio.places.trash}.")

    def mask(self) -> None:
        with errors_shown():
            if not self.whole:
                raise PictureError("The photo is still being looked at. Try again in a moment.")
            draw_mask(self.studio, self.photo, Path(self.whole))
