"""Masks of photos: drawn with a brush, or loaded. White is what is learned, as in `photo.mask.png`."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from nicegui import events, ui
from PIL import Image, ImageDraw

from moongate.errors import PictureError
from moongate.files import write_atomically
from moongate.limits import MAX_DOWNLOAD_BYTES
from moongate.pages import png_bytes
from moongate.studio.drafts import Photo
from moongate.studio.state import Studio
from moongate.studio.widgets import busy, dialog, errors_shown, heading, paragraph

__all__ = ["Stroke", "draw_mask", "painted"]

BRUSH_SHARE = 0.12
"""Width of the brush at first, as a share of the photo's longer side."""
MAX_POINTS = 20_000
"""Points of all strokes of a mask; more are not taken."""


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One movement of the brush."""

    points: list[tuple[float, float]]
    """Places in pixels of the photo on which it is drawn."""
    width_px: float
    erases: bool = False

    @property
    def svg(self) -> str:
        """The stroke as it is shown over the photo. Its numbers are formatted here, so nothing else gets in."""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*self.points, *self.points[-1:]])
        color = "#000" if self.erases else "#fff"
        return (
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-opacity="0.65" '
            f'style="stroke-width: {self.width_px:.1f}" stroke-linecap="round" stroke-linejoin="round" />'
        )


def painted(strokes: Sequence[Stroke], size_px: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Return the mask of strokes: 255 where the brush was, 0 elsewhere.

    Args:
        strokes: In the order in which they were made.
        size_px: Width and height of the photo that they were drawn on.

    Raises:
        PictureError: Nothing is white.
    """
    image = Image.new("L", size_px)
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        color, radius = (0 if stroke.erases else 255), stroke.width_px / 2
        draw.line(stroke.points, fill=color, width=max(1, round(stroke.width_px)), joint="curve")
        for x, y in stroke.points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    pixels = np.array(image.convert("RGB"))
    if not pixels.any():
        raise PictureError("Nothing is painted, so nothing would be learned. Paint what is to be learned.")
    return pixels


def draw_mask(studio: Studio, photo: Photo, shown: Path) -> None:
    """Open a dialog in which a mask is drawn, loaded or removed.

    Args:
        studio: The studio.
        photo: The photo whose mask it is.
        shown: The photo upright and small enough to be shown.
    """
    with dialog(classes="mask") as opened:
        _Brush(studio, photo, shown, opened)


@dataclass
class _Brush:
    """What is drawn so far."""

    studio: Studio
    photo: Photo
    shown: Path
    dialog: ui.dialog
    strokes: list[Stroke] = field(default_factory=list)
    is_down: bool = False

    def __post_init__(self) -> None:
        with Image.open(self.shown) as image:
            self.size_px = image.size
        heading(f"Mask of {self.photo.file.name}")
        paragraph("Paint what is to be learned. Without a mask, all of the photo is learned.", quiet=True)
        self.image = ui.interactive_image(
            self.studio.places.address(self.shown),
            on_mouse=self.move,
            events=["mousedown", "mousemove", "mouseup", "mouseleave"],
            sanitize=False,  # it shows numbers alone
        ).mark("canvas")
        with ui.element("div").classes("bar"):
            self.width = ui.slider(min=2, max=40, value=100 * BRUSH_SHARE).props('aria-label="Width of the brush"')
            self.erases = ui.checkbox("Erase")
            ui.button("Undo", on_click=self.undo).props("outline dense")
        ui.upload(label="Or load a mask", auto_upload=True, max_files=1, on_upload=self.load).props("flat bordered")
        with ui.element("div").classes("bar"):
            self.save = ui.button("Keep the mask", on_click=self.keep).mark("keep-mask")
            if self.photo.mask:
                ui.button("Remove the mask", on_click=self.remove).props("outline")
            ui.button("Close", on_click=self.dialog.close).props("outline")

    def move(self, event: events.MouseEventArguments) -> None:
        place = (float(event.image_x), float(event.image_y))
        if event.type == "mousedown":
            self.is_down = True
            width_px = float(self.width.value) / 100 * max(self.size_px)
            self.strokes.append(Stroke(points=[place], width_px=width_px, erases=bool(self.erases.value)))
        elif event.type == "mousemove" and self.is_down and event.buttons:
            if sum(len(stroke.points) for stroke in self.strokes) < MAX_POINTS:
                self.strokes[-1].points.append(place)
        else:
            self.is_down = False
            return
        self.show()

    def show(self) -> None:
        self.image.set_content("".join(stroke.svg for stroke in self.strokes))

    def undo(self) -> None:
        self.strokes = self.strokes[:-1]
        self.show()

    async def keep(self) -> None:
        async with busy(self.save):
            drawn = self._arriving()
            write_atomically(drawn, png_bytes(painted(self.strokes, self.size_px)))
            await self._take(drawn)

    async def load(self, event: events.UploadEventArguments) -> None:
        async with busy(self.save):
            if event.file.size() > MAX_DOWNLOAD_BYTES:
                raise PictureError(f"{event.file.name} has more than {MAX_DOWNLOAD_BYTES // 10**6} MB. Shrink it.")
            loaded = self._arriving()
            await event.file.save(loaded)
            await self._take(loaded)

    def remove(self) -> None:
        with errors_shown():
            if self.photo.mask:
                self.photo.mask.unlink(missing_ok=True)
            self.dialog.close()

    def _arriving(self) -> Path:
        """Return a file of its own for a mask: of another thing a photo of the same name may get one now."""
        return self.studio.places.previews / f".arriving-{secrets.token_hex(8)}"

    async def _take(self, file: Path) -> None:
        try:
            await self.studio.lens.ask("check_mask", photo=str(self.photo.file), mask=str(file))
            self.dialog.close()
        finally:
            file.unlink(missing_ok=True)
