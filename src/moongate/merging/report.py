"""What a merge kept of each subject and what it cost, as measured by `merging`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["INFEASIBLE", "Conflict", "MergeReport", "SubjectFit"]

INFEASIBLE = 1e-6
"""A relative residual above this means that constraints contradict one another."""
LOST = 0.5
"""A subject is predicted to be lost when a joint prompt loses this share of what its concept changed."""


@dataclass(frozen=True, kw_only=True)
class SubjectFit:
    """How well one subject survived; errors are relative to how far its own concept moves the same features."""

    words: str
    contexts: int
    constraints: int
    residual: Mapping[str, float]
    """By layer: how far the constraints are missed."""
    held_out_error: float
    """In contexts that were no constraint."""
    joint_error: float
    """Beside other subjects; 0 when there is none."""
    drift_alone: float
    """Drift on held-out neutral captions when the subject's concept is applied alone."""

    @property
    def worst_residual(self) -> float:
        """The largest residual of a layer."""
        return max(self.residual.values())


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two subjects that prescribe different values for almost the same features."""

    first: str
    second: str
    cosine: float
    """Of the two most similar rows, as the cost sees them."""
    difference: float
    """Between the values they ask for, relative to the larger."""
    advice: str


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge kept and what it cost."""

    subjects: tuple[SubjectFit, ...]
    conflicts: tuple[Conflict, ...]
    drift: float
    """Change of keys and values on held-out neutral captions, relative to the keys and values."""
    condition: float
    rank: int
    capacity: int
    """Independent constraints that there is still room for."""
    neutral_captions: int
    renamed: tuple[tuple[str, str], ...] = ()
    """Tokens that an earlier concept used too, and what they are called now."""

    @property
    def feasible(self) -> bool:
        """Whether all constraints hold together."""
        return all(fit.worst_residual <= INFEASIBLE for fit in self.subjects)

    @property
    def predicted_to_lose(self) -> str | None:
        """The subject that joint prompts lose most of, when that is more than half of it."""
        worst = max(self.subjects, key=lambda fit: max(fit.joint_error, fit.worst_residual))
        return worst.words if max(worst.joint_error, worst.worst_residual) > LOST else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        verdict = {"feasible": self.feasible, "predicted_to_lose": self.predicted_to_lose}
        return dataclasses.asdict(self) | verdict
