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
    """Computes with the model."""
    lens: Desk = field(default_factory=Desk)
    """Looks at photos and files, also while the desk draws; it loads no model."""
    _facts: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _speeds: list[float] = field(default_factory=list, init=False, repr=False)

    @cached_property
    def commands(self) -> Commands:
        """What was started and runs on its own."""
        return Commands(folder=self.places.commands)

    @cached_property
    def trainings(self) -> Trainings:
        """The queue of trainings."""
        return Trainings(places=self.places, commands=self.commands, device=self.device)

    async def model_facts(self) -> dict[str, int]:
        """Return the facts of the studio's model (`worker.teaching.model_facts`), which are asked for once.

        Raises:
            MoongateError: It cannot be loaded.
        """
        if not self._facts:
            self._facts = await self.desk.ask("model_facts")
        return self._facts

    async def side_px(self) -> int:
        """Return the side of the model's pictures in pixels, without loading it where its configuration is at hand.

        Raises:
            MoongateError: It cannot be loaded.
        """
        return await self.lens.ask("side_of", model=self.model) or (await self.model_facts())["resolution_px"]

    async def usual_steps(self) -> int:
        """Return the steps for a subject that suit the studio's model."""
        return int(await self.lens.ask("usual_steps", model=self.model))

    async def measured_speed(self) -> float:
        """Return the pictures per second of a training, measured once.

        Raises:
            MoongateError: The model cannot be trained here.
        """
        if not self._speeds:
            self._speeds.append(await self.desk.ask("measure_speed"))
        return self._speeds[-1]
