"""The page Library."""

from moongate.studio.state import Studio
from moongate.studio.widgets import paragraph

__all__ = ["PATH", "TITLE", "show"]

PATH, TITLE = "/library", "Library"


def show(studio: Studio) -> None:
    """Build the page."""
    paragraph(f"{studio.places.root}")
