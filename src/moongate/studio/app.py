"""The server: its pages, the frame around them, the files that it hands out, and how it starts."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from types import ModuleType

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from moongate.errors import OptionError
from moongate.pages import style
from moongate.studio import compose, gallery, judge, library, teach, watch
from moongate.studio.gate import Gate
from moongate.studio.places import PICTURES
from moongate.studio.state import Studio
from moongate.studio.widgets import Words, heading

__all__ = ["PAGES", "build", "listen", "register", "serve"]

PAGES: tuple[ModuleType, ...] = (teach, watch, library, compose, gallery, judge)
"""Each has a `TITLE`, a `PATH`, and a function `show(studio)` that builds the page."""


def build(studio: Studio, *, password: str | None = None) -> ASGIApp:
    """Return the application, behind its gate.

    Args:
        studio: What the pages show.
        password: What browsers must know; None answers this computer alone.
    """
    application = FastAPI(lifespan=_lifespan(studio), docs_url=None, redoc_url=None, openapi_url=None)
    register(studio)
    ui.run_with(application, title="Moongate", dark=None, tailwind=False, show_welcome_message=False)
    return Gate(app=application, password=password)


def register(studio: Studio) -> None:
    """Let NiceGUI know the pages and the files of a studio."""
    nicegui_app.add_api_route("/files/{number}/{path:path}", _handing_out(studio), methods=["GET"])
    for page in PAGES:
        ui.page(page.PATH, title=f"{page.TITLE} - Moongate")(_framed(studio, page))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on which a server may listen.

    Raises:
        OptionError: The port is taken or not allowed, or this computer does not have the address.
    """
    if not 1 <= port <= 65535:
        raise OptionError(f"--port {port} is not a port. Give a number from 1 to 65535, such as 8080.")
    listening = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, UnicodeError) as error:  # a name such as a..b cannot be encoded
        if listening:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"The studio cannot listen on {host}, port {port} ({reason}). Choose another --port, or "
            "end the program that uses it."
        ) from error
    return listening


def serve(application: ASGIApp, listening: socket.socket) -> None:
    """Serve until the process is stopped."""
    config = uvicorn.Config(
        application, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listening])


def _lifespan(studio: Studio) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_application: FastAPI) -> AsyncIterator[None]:
        async with studio.trainings.tended():
            try:
                yield
            finally:
                await studio.desk.close()
                await studio.lens.close()

    return lifespan


def _framed(studio: Studio, page: ModuleType) -> Callable[[], None]:
    """Return the function that builds a page within the frame of all."""

    def build_page() -> None:
        ui.add_head_html(f"<style>{_style()}</style><script>{_own('studio.js')}</script>")
        Words("a", "Skip to the page").props('href="#main"').classes("skip")
        with ui.element("header"), ui.element("nav").props('aria-label="Pages"'):
            Words("span", "Moongate").classes("name")
            for other in PAGES:
                link = Words("a", other.TITLE).props(f'href="{other.PATH}"')
                if other is page:
                    link.props('aria-current="page"')
        with ui.element("div").props('id="main" tabindex="-1"').classes("page"):
            heading(page.TITLE, level=1)
            page.show(studio)

    return build_page


def _style() -> str:
    return style("colors", "charts") + _own("studio.css")


def _own(name: str) -> str:
    return files("moongate.studio").joinpath(name).read_text(encoding="utf-8")


def _handing_out(studio: Studio) -> Callable[[int, str], Response]:
    def hand_out(number: int, path: str) -> Response:
        """Return a file below the chosen folders: pictures to be shown, all else to be saved."""
        try:
            file = studio.places.located(number, path)
        except OptionError as error:
            return PlainTextResponse(str(error), 404)
        kind = PICTURES.get(file.suffix.lower())
        kept = {"cache-control": "private, max-age=31536000, immutable"}  # another version has another address
        if kind:
            return FileResponse(file, media_type=kind, headers=kept)
        return FileResponse(file, media_type="application/octet-stream", filename=file.name)

    return hand_out
