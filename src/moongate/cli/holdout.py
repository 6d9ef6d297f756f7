"""The option --holdout of `moongate train`: pictures of the subjects that judge what was learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.cli.subjects import SubjectOptions
    from moongate.data import Preset, Subject

__all__ = ["Holdout", "holdouts"]


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """The pictures of one subject that are held out: its last ones, or those of a folder."""

    count: int = 0
    folder: Path | None = None

    def load(self, chosen: "SubjectOptions", preset: "Preset") -> "Subject | None":
        """Read the held-out pictures with their captions; None if none are held out."""
        from moongate.data import Subject
        from moongate.data.folders import gather

        if not (self.count or self.folder):
            return None
        pictures = self.folder or gather(chosen.pictures).photos[-self.count :]
        return Subject.load(pictures, category=chosen.category, token=chosen.token, preset=preset)


def holdouts(values: Sequence[str], subjects: int, *, are_judging: bool) -> list[Holdout]:
    """Read the values of --holdout.

    Args:
        values: Numbers or folders: none, one for all subjects, or one for each.
        subjects: Number of subjects.
        are_judging: Whether concepts are kept, which the pictures of a folder could judge.

    Raises:
        OptionError: The number of values does not fit, or a value is neither a number nor a folder that can judge.
    """
    if len(values) not in (0, 1, subjects) or (len(values) == 1 < subjects and not values[0].isdecimal()):
        raise OptionError(
            f"{subjects} subjects need one number for all as --holdout, or one number or folder for each, but "
            f"{' and '.join(values)} was given."
        )
    each = values if len(values) == subjects else [*values, "0"][:1] * subjects
    return [_holdout(value, are_judging) for value in each]


def _holdout(value: str, are_judging: bool) -> Holdout:
    if value.isdecimal():
        return Holdout(count=int(value))
    if not Path(value).is_dir():
        raise OptionError(f"--holdout {value} is neither a number of pictures nor a folder. Check it.")
    if not are_judging:
        raise OptionError(
            f"--holdout {value} would be ignored: the pictures of a folder judge the concepts that --save-every keeps. "
            "Add it, or leave the folder out."
        )
    return Holdout(folder=Path(value))
