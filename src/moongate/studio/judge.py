"""The page Judge."""

from moongate.studio.state import Studio
from moongate.studio.widgets import paragraph

__all__ = ["PATH", "TITLE", "show"]

PATH, TITLE = "/judge", "Judge"


def show(studio: Studio) -> None:
    """Build the page."""
    paragraph(f"{studio.places.root}")
