"""Parts that pages are made of. Texts are always given as texts, so that nothing of a user becomes markup."""

import asyncio
import contextlib
import html
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from moongate.errors import MoongateError
from moongate.pages import Chart, Level
from moongate.studio.commands import Command
from moongate.studio.places import Places

__all__ = [
    "Words",
    "busy",
    "chart",
    "command_line",
    "dialog",
    "drop_zone",
    "errors_shown",
    "heading",
    "link",
    "live",
    "notice",
    "paragraph",
    "picture",
    "progress",
    "section",
]

_T = TypeVar("_T")
LOOK_EVERY_S = 1.0
"""How often a page looks whether something has changed."""


class Words(TextElement):
    """An element that holds text."""

    def __init__(self, tag: str, text: str) -> None:
        super().__init__(tag=tag, text=text)


def heading(text: str, *, level: int = 2) -> Words:
    """Add a heading, h1 to h4."""
    return Words(f"h{level}", text)


def paragraph(text: str, *, quiet: bool = False) -> Words:
    """Add a paragraph, in the quieter color if it only explains."""
    return Words("p", text).classes("quiet" if quiet else "")


def notice(text: str, *, level: Level) -> Words:
    """Add a paragraph that stands out, in the color of good or bad news; screen readers say it at once."""
    return Words("div", text).classes(f"notice {level}").props("role=status")


def link(text: str, address: str, *, download: str = "") -> Words:
    """Add a link.

    Args:
        text: What is shown.
        address: Where it leads.
        download: The name under which a browser saves what is there; it opens it if empty.
    """
    element = Words("a", text)
    element._props.update({"href": address, **({"download": download} if download else {})})
    return element


def progress(label: str, done: float, total: float) -> ui.element:
    """Add a bar that shows how much is done; screen readers say the label."""
    bar = ui.element("progress")
    bar._props.update({"max": total, "value": done, "aria-label": label})
    return bar


def picture(places: Places, file: Path, *, alt: str, caption: str = "") -> ui.element:
    """Add a picture file below the chosen folders, with a text below it.

    Args:
        places: The chosen folders.
        file: The picture.
        alt: What screen readers say instead.
        caption: The text below it.
    """
    with ui.element("figure").classes("picture") as figure:
        image = ui.element("img")
        image._props.update({"src": places.address(file), "alt": alt, "loading": "lazy"})
        if caption:
            Words("figcaption", caption)
    return figure


def chart(drawing: Chart) -> ui.element:
    """Add a chart of `moongate.pages`, which has escaped its texts."""
    return ui.html(drawing.html, sanitize=False).classes("drawing")


def command_line(command: Command | Callable[[], Command]) -> ui.element:
    """Add the shell line of a command, with a button that copies it.

    Args:
        command: The command, or a function that returns it as it is when the page looks.
    """
    now = command() if callable(command) else command
    with ui.element("div").classes("command") as box:
        code = Words("code", now.line)
        ui.button("Copy", icon="content_copy", on_click=lambda: ui.clipboard.write(code.text)).props("flat dense")
    if callable(command):
        ui.timer(LOOK_EVERY_S / 2, lambda: code.set_text(command().line))
    return box


def drop_zone(label: str, *, choose: str, accept: str, **options: Any) -> ui.upload:
    """Add a box into which files are dropped, with a button that opens the list of files.

    Args:
        label: What may be dropped.
        choose: The text of the button.
        accept: The file types that the browser offers, as in HTML.
        options: What `ui.upload` takes: the sizes, and what is done with the files.
    """
    zone = ui.upload(multiple=True, auto_upload=True, **options)
    zone.classes("upload").props(f'accept="{accept}" flat bordered')
    zone.add_slot(
        "header",
        f"""<div class="row items-center q-pa-sm q-gutter-sm">
        <div class="col q-uploader__title">{html.escape(label)}</div>
        <q-btn type="a" icon="add" label="{html.escape(choose)}" aria-label="{html.escape(choose)}"
        @click="props.pickFiles" dense no-caps><q-uploader-add-trigger /></q-btn></div>""",
    )
    return zone


@contextlib.contextmanager
def section(title: str, *, level: int = 2) -> Iterator[ui.element]:
    """Add a part of the page with a heading; what the block makes is in it."""
    with ui.element("section") as part:
        part._props["aria-label"] = title
        heading(title, level=level)
        yield part


@contextlib.contextmanager
def dialog(*, classes: str = "") -> Iterator[ui.dialog]:
    """Open a dialog and fill it with what the block makes; when it is closed, it is removed.

    It belongs to the whole page: what is typed into it stays when the part with its button is built anew.
    """
    with ui.context.client.layout:
        opened = ui.dialog(value=True)
    opened.on("hide", opened.delete)
    with opened, ui.card().classes(classes):
        yield opened


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Show an error of the library that the block raises as a message, and go on."""
    try:
        yield
    except (MoongateError, OSError) as error:
        ui.notify(str(error), type="negative", multi_line=True, timeout=10_000, close_button="Close")


@contextlib.asynccontextmanager
async def busy(*buttons: ui.button) -> AsyncIterator[None]:
    """Turn buttons off and show that they work until the block ends; show an error of the library as a message."""
    for button in buttons:
        button.props("loading").disable()
    try:
        with errors_shown():
            yield
    finally:
        for button in buttons:
            if not button.is_deleted:
                button.props(remove="loading").enable()


def live(look: Callable[[], _T | Awaitable[_T]], show: Callable[[_T], Any]) -> ui.element:
    """Add a part of the page that is built anew whenever what it shows has changed.

    Args:
        look: Returns what there is to show, as a value that can be compared. It may read files: it is called in a
            thread, unless it is a coroutine.
        show: Builds the part.

    Returns:
        The part.
    """
    part, seen = ui.element("div").classes("live"), list[_T]()
    with part:
        paragraph("One moment.", quiet=True)

    async def refresh() -> None:
        found: Any
        try:
            found = await look() if asyncio.iscoroutinefunction(look) else await asyncio.to_thread(look)
        except (MoongateError, OSError) as error:
            found = error
        if part.is_deleted or (seen and seen[0] == found) or (seen and str(seen[0]) == str(found)):
            return
        seen[:] = [found]
        part.clear()
        with part:
            try:
                if isinstance(found, Exception):
                    raise found
                show(found)
            except (MoongateError, OSError) as error:
                notice(str(error), level="bad")

    ui.timer(LOOK_EVERY_S, refresh)
    return part
