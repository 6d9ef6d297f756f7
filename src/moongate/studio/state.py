"""What all pages share: the folders, the commands that were started, the queue of trainings, and the desk."""

from dataclasses import dataclass, field
from functools import cached_property

from moongate.studio.commands import Commands
from moongate.studio.desk import Desk
from moongate.studio.places import Places
from moongate.studio.trainings import Trainings

__all__ = ["Studio"]


@dataclass(kw_only=True)
class Studio:
    """One studio; all browsers see the same."""

    places: Places
    model: str = "pocket"
    """The model that new trainings and pictures use, unless they say another."""
    device: str | None = None
    desk: Desk = field(default_factory=Desk)

    @cached_property
    def commands(self) -> Commands:
        """What was started and runs on its own."""
        return Commands(folder=self.places.commands)

    @cached_property
    def trainings(self) -> Trainings:
        """The queue of trainings."""
        return Trainings(places=self.places, commands=self.commands, device=self.device)
