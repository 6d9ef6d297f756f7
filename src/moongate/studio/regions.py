"""Regions as a part of a page: rectangles drawn on a canvas with the pointer, or typed as numbers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import events, ui

from moongate.studio.composition import Box
from moongate.studio.widgets import paragraph

__all__ = ["RegionEditor"]

SIDE_PX = 320
"""Side of the canvas, on which the whole picture is meant."""
SMALLEST = 0.05
"""Rectangles of smaller sides were clicks and not drawn."""
EDGES = ("left", "top", "right", "bottom")


class RegionEditor:
    """Where each subject belongs in the picture."""

    def __init__(self, words: Sequence[str], regions: dict[str, Box], on_change: Callable[[Mapping[str, Box]], None]):
        """Edit the regions of some words.

        Args:
            words: The words of all subjects.
            regions: The rectangle by words; none for those that act everywhere.
            on_change: Called with the regions after each change.
        """
        self.words = list(dict.fromkeys(words))
        self.regions = {word: box for word, box in regions.items() if word in self.words}
        self.on_change = on_change
        self.active = self.words[0] if self.words else ""
        self.begun: tuple[float, float] | None = None

    def build(self) -> None:
        """Add the part to the page."""
        with ui.expansion("Regions: where each belongs", value=bool(self.regions)).classes("regions").mark("regions"):
            paragraph(
                "Choose a subject and draw its rectangle, or type the edges in percent. A subject without a region "
                "may be anywhere.",
                quiet=True,
            )
            with ui.element("div").classes("bar"):
                choice = ui.radio(self.words, value=self.active, on_change=self._choose).props("inline")
                choice.props('aria-label="Subject whose region is drawn"')
            with ui.element("div").classes("canvas"):
                self.canvas = ui.interactive_image(
                    size=(SIDE_PX, SIDE_PX), on_mouse=self._mouse, events=["mousedown", "mousemove", "mouseup"]
                ).mark("canvas")
            self.fields = ui.element("div")
            with ui.element("div").classes("bar"):
                ui.button("Side by side", on_click=self._columns).props("outline dense").mark("columns")
                ui.button("No regions", on_click=lambda: self._set({})).props("outline dense").mark("no-regions")
            self._show()

    def _choose(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self.active = event.value

    def _columns(self) -> None:
        count = len(self.words)
        self._set({word: (n / count, 0.0, (n + 1) / count, 1.0) for n, word in enumerate(self.words)})

    def _set(self, regions: Mapping[str, Box]) -> None:
        self.regions = dict(regions)
        self._show()
        self.on_change(dict(self.regions))

    def _mouse(self, event: events.MouseEventArguments) -> None:
        at = tuple(min(max(value / SIDE_PX, 0.0), 1.0) for value in (event.image_x, event.image_y))
        if event.type == "mousedown":
            self.begun = (at[0], at[1])
        elif self.begun:
            (x, y), (other_x, other_y) = self.begun, at
            box = tuple(round(e, 2) for e in (min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)))
            is_large = box[2] - box[0] >= SMALLEST and box[3] - box[1] >= SMALLEST
            drawn: Box = (box[0], box[1], box[2], box[3])
            if event.type == "mousemove":
                self.canvas.content = self._content({**self.regions, self.active: drawn})
                return
            self.begun = None
            self._set({**self.regions, self.active: drawn} if is_large else self.regions)

    def _show(self) -> None:
        self.canvas.content = self._content(self.regions)
        self.fields.clear()
        with self.fields:
            for word in self.words:
                with ui.element("div").classes("bar"):
                    paragraph(f"{self.words.index(word) + 1}: {word}")
                    box = self.regions.get(word)
                    for n, edge in enumerate(EDGES):
                        value = None if box is None else round(100 * box[n])
                        field = ui.number(f"{edge} %", value=value, min=0, max=100, precision=0)
                        field.props("outlined dense").classes("edge").mark(f"{edge}-{self.words.index(word)}")
                        field.on("change", partial(self._type, word, n, field))

    def _type(self, word: str, edge: int, field: ui.number) -> None:
        """Take an edge that was typed; one that would leave no rectangle is not taken."""
        box = list(self.regions.get(word, (0.0, 0.0, 1.0, 1.0)))
        box[edge] = min(max((field.value if field.value is not None else 100 * box[edge]) / 100, 0.0), 1.0)
        is_box = box[0] < box[2] and box[1] < box[3]
        self._set({**self.regions, word: (box[0], box[1], box[2], box[3])} if is_box else self.regions)

    def _content(self, regions: Mapping[str, Box]) -> str:
        """Return the SVG of the rectangles, which holds numbers alone."""
        parts = []
        for number, word in enumerate(self.words):
            if word in regions:
                left, top, right, bottom = (SIDE_PX * edge for edge in regions[word])
                parts.append(
                    f'<rect class="region-{number % 6}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                    f'height="{bottom - top:.1f}"/><text class="region-name" x="{left + 8:.1f}" y="{top + 24:.1f}">'
                    f"{number + 1}</text>"
                )
        return "".join(parts)
