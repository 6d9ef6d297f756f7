"""What a merge kept of each subject and what it cost, measured on the features of text; no picture is drawn."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import LowRank, SubjectRecord
from moongate.merging.closed_form import Factorized
from moongate.merging.constraints import Constraints, KeptSubject, filled, value_change, word_features
from moongate.merging.neutral import held_out_features

__all__ = ["INFEASIBLE", "Conflict", "MergeReport", "SubjectFit", "measure"]

INFEASIBLE = 1e-6
"""A relative residual above this means that constraints contradict one another."""
LOST = 0.5
"""A subject is predicted to be lost when a joint prompt loses this share of what its concept changed."""
HELD_OUT_CONTEXTS = ("photo of a {} in the snow", "a red {} in a garden", "drawing of a {} at night")
JOINT_CONTEXT = "photo of a {} and a {}"
PARTNERS = 4
"""Largest number of other subjects that each subject is combined with to measure its joint error."""
CONFLICT_COSINE = 0.95
"""Two constraints above this cosine are nearly the same feature."""


@dataclass(frozen=True, kw_only=True)
class SubjectFit:
    """How well a merge kept one subject; errors are relative to how far its own concept moves the same features."""

    words: str
    contexts: int
    """Number of contexts in which the subject keeps its values."""
    constraints: int
    """Number of features that are constrained for it."""
    residual: Mapping[str, float]
    """Relative error of the prescribed values, by name of the matrix."""
    held_out_error: float
    """Relative error in contexts that were no constraints."""
    joint_error: float
    """Relative error in captions that name another subject as well; 0 if there is none."""
    drift_alone: float
    """Drift on held-out neutral captions if the subject's own concept is applied alone."""

    @property
    def worst_residual(self) -> float:
        """The largest residual of a matrix."""
        return max(self.residual.values())


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two subjects that prescribe different values for nearly the same feature."""

    first: str
    second: str
    cosine: float
    """Cosine between the two constraints in the metric of the cost."""
    difference: float
    """Distance between the prescribed values, relative to the larger one."""
    advice: str


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge kept and what it cost."""

    subjects: tuple[SubjectFit, ...]
    conflicts: tuple[Conflict, ...]
    drift: float
    """Change of the keys and values of held-out neutral captions, relative to the keys and values."""
    condition: float
    """Condition number of the independent constraints."""
    rank: int
    """Number of independent constraints."""
    capacity: int
    """Number of further independent constraints that would fit."""
    neutral_captions: int
    renamed: tuple[tuple[str, str], ...] = ()
    """Tokens that an earlier concept uses too, as pairs (old, new)."""

    @property
    def feasible(self) -> bool:
        """Whether all constraints hold together."""
        return all(fit.worst_residual <= INFEASIBLE for fit in self.subjects)

    @property
    def predicted_to_lose(self) -> str | None:
        """The words of the subject that joint prompts lose most of, if that is more than half of it."""
        worst = max(self.subjects, key=lambda fit: max(fit.joint_error, fit.worst_residual))
        return worst.words if max(worst.joint_error, worst.worst_residual) > LOST else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        verdict = {"feasible": self.feasible, "predicted_to_lose": self.predicted_to_lose}
        return dataclasses.asdict(self) | verdict


def measure(
    backbone: Backbone,
    constraints: Constraints,
    factorized: Factorized,
    deltas: Mapping[str, LowRank],
    *,
    captions: Sequence[str],
    renamed: Sequence[tuple[str, str]] = (),
) -> MergeReport:
    """Measure what a merge kept of each subject and how far neutral captions moved.

    Args:
        backbone: The base model with the tokens of all subjects in use.
        constraints: The constraints of the merge.
        factorized: The same constraints, factorized.
        deltas: The merged change of each matrix, float64.
        captions: All neutral captions; drift is measured on those that the cost leaves out.
        renamed: Tokens that were renamed, for the report.
    """
    neutral = held_out_features(backbone, captions)
    size = sum(float((neutral @ _weight(backbone, layer).T).square().sum()) for layer in constraints.values)
    moved = sum(float(value_change(change, neutral).square().sum()) for change in deltas.values())
    drift_alone = [(_squares_moved(kept, neutral) / size) ** 0.5 for kept in constraints.subjects]
    return MergeReport(
        subjects=tuple(_fit(backbone, constraints, deltas, *pair) for pair in enumerate(drift_alone)),
        conflicts=tuple(_conflicts(constraints, factorized.cosines)),
        drift=(moved / size) ** 0.5,
        condition=factorized.condition,
        rank=factorized.rank,
        capacity=factorized.width - factorized.rank,
        neutral_captions=len(captions),
        renamed=tuple(renamed),
    )


def _weight(backbone: Backbone, layer: str) -> Float[Tensor, "out width"]:
    return backbone.parameter(layer).detach().cpu().double()


def _squares_moved(kept: KeptSubject, features: Float[Tensor, "features width"]) -> float:
    """Return the sum of squares of how a subject's own concept changes keys and values."""
    return sum(float(value_change(change, features).square().sum()) for change in kept.concept.deltas.values())


def _fit(
    backbone: Backbone, constraints: Constraints, deltas: Mapping[str, LowRank], index: int, drift_alone: float
) -> SubjectFit:
    kept, features = constraints.subjects[index], constraints.features[index]
    elsewhere = [filled(context, kept.words) for context in HELD_OUT_CONTEXTS]
    elsewhere_features = word_features(backbone, kept, constraints.subjects, elsewhere, with_end=True)
    joint_error = 0.0
    if together := _joint_captions(constraints.subjects, index):
        joint_features = word_features(backbone, kept, constraints.subjects, together, with_end=False)
        joint_error = _error(kept, deltas, joint_features)
    return SubjectFit(
        words=kept.words,
        contexts=len(kept.contexts),
        constraints=len(features),
        residual={layer: _error(kept, {layer: deltas[layer]}, features) for layer in constraints.values},
        held_out_error=_error(kept, deltas, elsewhere_features),
        joint_error=joint_error,
        drift_alone=drift_alone,
    )


def _joint_captions(subjects: Sequence[KeptSubject], index: int) -> list[str]:
    """Return captions that name a subject together with each of the next few subjects, in both orders."""
    following = [*subjects[index + 1 :], *subjects[:index]][:PARTNERS]
    pairs = [pair for other in following for pair in permutations((subjects[index].words, other.words))]
    return [filled(JOINT_CONTEXT, *pair) for pair in pairs]


def _error(kept: KeptSubject, deltas: Mapping[str, LowRank], features: Float[Tensor, "features width"]) -> float:
    """Return how far the merged changes are from the subject's own on some features, relative to its own."""
    missed = moved = 0.0
    for layer, change in deltas.items():
        merged = value_change(change, features)
        own = kept.own_value_change(layer, features, out=merged.shape[1])
        moved += float(own.square().sum())
        missed += float((merged - own).square().sum())
    return (missed / moved) ** 0.5 if moved else missed**0.5


def _conflicts(constraints: Constraints, cosines: Float[Tensor, "constraints constraints"]) -> Iterator[Conflict]:
    """Yield the pairs of subjects that prescribe different values for nearly the same feature."""
    values = torch.cat([*constraints.values.values()], 1)
    for i, j in combinations(range(len(constraints.subjects)), 2):
        rows_i, rows_j = constraints.slice_of(i), constraints.slice_of(j)
        alike = cosines[rows_i, rows_j]
        difference = _relative_distances(values[rows_i], values[rows_j])
        worst = int(torch.where(alike >= CONFLICT_COSINE, difference, -1.0).argmax())
        if alike.flatten()[worst] >= CONFLICT_COSINE and difference.flatten()[worst] > INFEASIBLE:
            first, second = constraints.subjects[i].record, constraints.subjects[j].record
            yield Conflict(
                first=first.words,
                second=second.words,
                cosine=float(alike.flatten()[worst]),
                difference=float(difference.flatten()[worst]),
                advice=_advice(first, second),
            )


def _relative_distances(a: Float[Tensor, "n out"], b: Float[Tensor, "m out"]) -> Float[Tensor, "n m"]:
    """Return the distance between each row of `a` and each of `b`, relative to the longer of the two."""
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / torch.maximum(a.norm(dim=1)[:, None], b.norm(dim=1)).clamp(min=1e-30)


def _advice(first: SubjectRecord, second: SubjectRecord) -> str:
    if first.token and second.token:
        return (
            "Their tokens mean almost the same to the text encoder. Train one of them from another rare token "
            "(--rare-token 1), give it another category, or train both jointly."
        )
    return "Give one of them a token or another category, lower the strength of one, or train both jointly."
