"""The command `moongate studio`."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import (
    WITHOUT_DEFAULT,
    Flag,
    Model,
    ModelOptions,
    OptionalPath,
    Output,
    OutputOptions,
    cache_folder,
)
from moongate.cli.terminal import say
from moongate.errors import OptionError

__all__ = ["Studio"]

FOLDER, DEMO_FOLDER = Path("moongate-studio"), Path("moongate-studio-demo")
PASSWORD = "MOONGATE_PASSWORD"


@dataclass(frozen=True, kw_only=True)
class Studio:
    """Teach, compose and judge in the browser."""

    folder: OptionalPath = None
    """Folder for photos, concepts, pictures and studies. Nothing else is read or written.
    Default: moongate-studio, or moongate-studio-demo with --demo."""
    watch: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, WITHOUT_DEFAULT] = ()
    """Another folder whose trainings, concepts and photos are read, but not changed; may be repeated."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this computer's own needs a password.
    It is read from the environment variable MOONGATE_PASSWORD, or asked for."""
    port: int = 8080
    """Port to listen on."""
    demo: Flag = False
    """Begin with three taught concepts of pocket, a finished training and some pictures."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.extras import library

        library("nicegui")
        from moongate.studio.app import build, listen, serve
        from moongate.studio.desk import Desk
        from moongate.studio.places import Places
        from moongate.studio.state import Studio as State

        self.model.check()
        folder = self.folder or (DEMO_FOLDER if self.demo else FOLDER)
        password = self._password()
        with listen(self.host, self.port) as listening:
            places = Places.open(folder, self.watch)
            if self.demo:
                from moongate.studio.demo import fill

                fill(places)
            model, loading = self.model.model or "pocket", self.model.loading
            setup = {
                "model": model,
                "config": str(loading.config) if loading.config else None,
                "device": loading.device,
                "cache": str(cache_folder()),
            }
            desks = Desk(setup=setup), Desk(setup=setup)
            studio = State(places=places, model=model, device=loading.device, desk=desks[0], lens=desks[1])
            name = f"[{self.host}]" if ":" in self.host else self.host
            say(console, f"The studio in {places.root} is at http://{name}:{self.port}/ (Ctrl-C ends it).")
            serve(build(studio, password=password), listening)
        return {"folder": str(places.root)}

    def _password(self) -> str | None:
        """Return the password that browsers must know; None where only this computer can reach the studio.

        Raises:
            OptionError: There is none, but other computers could reach it.
        """
        from moongate.studio.gate import is_loopback

        given = os.environ.get(PASSWORD)
        if given or (given is None and is_loopback(self.host)):
            return given
        if given is None and sys.stdin.isatty():
            from getpass import getpass

            given = getpass("Password for the studio: ")
        if not given and is_loopback(self.host):
            raise OptionError(f"The environment variable {PASSWORD} is empty. Give it a password, or unset it.")
        if not given:
            raise OptionError(
                f"Other computers can reach {self.host}, so the studio needs a password. Set the environment variable "
                f"{PASSWORD}, or leave out --host."
            )
        return given
