"""What a merge kept of each subject and what it cost, measured on the features of text; no picture is drawn."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Dense, LowRank, SubjectRecord
from moongate.merging.closed_form import Factorized
from moongate.merging.constraints import Constraints, KeptSubject, value_change
from moongate.merging.edits import Edit, features_of, fitting_both
from moongate.merging.features import filled, fits, word_features
from moongate.merging.neutral import empty_prompt_features, held_out_rows

__all__ = ["INFEASIBLE", "Conflict", "EditFit", "MergeReport", "SubjectFit", "measure"]

INFEASIBLE = 1e-6
"""A relative residual above this means that constraints contradict one another."""
LOST = 0.5
"""A subject is predicted to be lost when a joint prompt loses this share of what its concept changed."""
HELD_OUT_CONTEXTS = ("photo of a {} in the snow", "a red {} in a garden", "drawing of a {} at night")
SHORT_CONTEXTS = ("my {}", "one {}")
"""Held-out contexts for words that do not fit into the others."""
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
    """Relative error in captions that name another subject as well; 0 if there is none, or both fit into none."""
    beside: Mapping[str, float]
    """The same for each other subject that was tried, by its words."""
    drift_alone: float
    """Drift on held-out neutral captions with the subject's own concept alone, in the matrices that are merged."""

    @property
    def worst_residual(self) -> float:
        """The largest residual of a matrix."""
        return max(self.residual.values())

    @property
    def worst_beside(self) -> tuple[str, float]:
        """The other subject next to which most is lost, and how much; no words and 0 if there is none."""
        return max(self.beside.items(), key=lambda pair: pair[1], default=("", 0.0))

    @property
    def share_kept(self) -> float:
        """How much of what its concept changed is kept where it is named, from 0 to 1: next to others, if there are."""
        lost = max(self.joint_error if self.beside else self.held_out_error, self.worst_residual)
        return max(0.0, 1 - lost)


@dataclass(frozen=True, kw_only=True)
class EditFit:
    """How well an edit of the base was made."""

    name: str
    """"snowman=>object", or the protected words."""
    is_erased: bool
    constraints: int
    residual: float
    """The largest residual of a matrix."""
    held_out_error: float
    """In contexts that were no constraints: how far erased words are from the other words' keys and values, relative to
    where they began; how far protected words moved, relative to their keys and values."""


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
    edits: tuple[EditFit, ...]
    conflicts: tuple[Conflict, ...]
    drift: float
    """Change of the keys and values of held-out neutral captions, relative to the keys and values."""
    unconditional: float
    """The same change for the empty prompt, which guidance subtracts."""
    condition: float
    """Condition number of the independent constraints; the largest of all matrices."""
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
        residuals = [fit.worst_residual for fit in self.subjects] + [edit.residual for edit in self.edits]
        return all(residual <= INFEASIBLE for residual in residuals)

    @property
    def predicted_to_lose(self) -> str | None:
        """The words of the subject that joint prompts lose most of, if that is more than half of it."""
        if not self.subjects:
            return None
        worst = max(self.subjects, key=lambda fit: max(fit.joint_error, fit.worst_residual))
        return worst.words if max(worst.joint_error, worst.worst_residual) > LOST else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        verdict = {"feasible": self.feasible, "predicted_to_lose": self.predicted_to_lose}
        return dataclasses.asdict(self) | verdict


def measure(
    backbone: Backbone,
    constraints: Constraints,
    factorized: Mapping[str, Factorized],
    deltas: Mapping[str, LowRank],
    *,
    captions: Sequence[str],
    cache: Path | None = None,
    renamed: Sequence[tuple[str, str]] = (),
) -> MergeReport:
    """Measure what a merge kept of each subject and how far neutral captions moved.

    Args:
        backbone: The base model with the tokens of all subjects in use.
        constraints: The constraints of the merge.
        factorized: The same constraints, factorized, by name of the matrix.
        deltas: The merged change of each matrix, float64.
        captions: All neutral captions; drift is measured on those that the cost leaves out.
        cache: Folder in which what is read of neutral captions is kept (`regularization_gram`).
        renamed: Tokens that were renamed, for the report.
    """
    neutral = held_out_rows(backbone, captions, cache=cache)
    size = _squares(_weights(backbone, deltas), neutral)
    own = [
        [change for layer, change in kept.concept.deltas.items() if layer in deltas] for kept in constraints.subjects
    ]
    drift_alone = [(_squares(changes, neutral) / size) ** 0.5 for changes in own]
    empty = empty_prompt_features(backbone)
    hardest = max(factorized.values(), key=lambda problem: problem.condition)
    return MergeReport(
        subjects=tuple(_fit(backbone, constraints, deltas, *pair) for pair in enumerate(drift_alone)),
        edits=tuple(
            _edit_fit(backbone, constraints, deltas, index)
            for index in range(len(constraints.subjects), len(constraints.blocks))
        ),
        conflicts=tuple(_conflicts(constraints, hardest.cosines)),
        drift=(_squares(deltas.values(), neutral) / size) ** 0.5,
        unconditional=(_squares(deltas.values(), empty) / _squares(_weights(backbone, deltas), empty)) ** 0.5,
        condition=hardest.condition,
        rank=hardest.rank,
        capacity=hardest.capacity,
        neutral_captions=len(captions),
        renamed=tuple(renamed),
    )


def _weights(backbone: Backbone, layers: Iterable[str]) -> Iterator[Dense]:
    return (Dense(delta=backbone.parameter(layer).detach().cpu()) for layer in layers)


def _squares(matrices: Iterable[Dense | LowRank], features: Float[Tensor, "features width"]) -> float:
    """Return the sum of squares of what matrices make of some features."""
    return sum(float(value_change(matrix, features).square().sum()) for matrix in matrices)


def _fit(
    backbone: Backbone, constraints: Constraints, deltas: Mapping[str, LowRank], index: int, drift_alone: float
) -> SubjectFit:
    kept, block = constraints.subjects[index], constraints.blocks[index]
    others = [other.words for other in constraints.subjects]
    elsewhere = _fitting(backbone, HELD_OUT_CONTEXTS, kept.words) or _fitting(backbone, SHORT_CONTEXTS, kept.words)
    elsewhere_features = word_features(backbone, kept.words, elsewhere or [kept.words], others=others, with_end=True)
    beside = {
        words: _errors(kept, deltas, word_features(backbone, kept.words, captions, others=others, with_end=False))
        for words, captions in _joint_captions(backbone, constraints.subjects, index)
    }
    return SubjectFit(
        words=kept.words,
        contexts=len(kept.contexts),
        constraints=block.exact,
        residual=_residual(constraints, deltas, index),
        held_out_error=_ratio(*_errors(kept, deltas, elsewhere_features)),
        joint_error=_ratio(*map(sum, zip(*beside.values(), strict=True))) if beside else 0.0,
        beside={words: _ratio(*errors) for words, errors in beside.items()},
        drift_alone=drift_alone,
    )


def _edit_fit(backbone: Backbone, constraints: Constraints, deltas: Mapping[str, LowRank], index: int) -> EditFit:
    edit = Edit.named(constraints.blocks[index].words)
    missed = began = 0.0
    contexts = fitting_both(backbone, edit, HELD_OUT_CONTEXTS) or fitting_both(backbone, edit, SHORT_CONTEXTS)
    features, wanted = features_of(backbone, edit, contexts)
    for matrix, change in zip(_weights(backbone, deltas), deltas.values(), strict=True):
        goal = value_change(matrix, wanted - features)
        missed += float((value_change(change, features) - goal).square().sum())
        began += float((value_change(matrix, features) if edit.becomes is None else goal).square().sum())
    return EditFit(
        name=edit.name,
        is_erased=edit.becomes is not None,
        constraints=constraints.blocks[index].exact,
        residual=max(_residual(constraints, deltas, index).values()),
        held_out_error=_ratio(missed, began),
    )


def _joint_captions(backbone: Backbone, subjects: Sequence[KeptSubject], index: int) -> Iterator[tuple[str, list[str]]]:
    """Yield each of the next few subjects with captions that name it and this one, in both orders, if they fit."""
    for other in [*subjects[index + 1 :], *subjects[:index]][:PARTNERS]:
        captions = [filled(JOINT_CONTEXT, *pair) for pair in permutations((subjects[index].words, other.words))]
        if all(fits(backbone, caption) for caption in captions):
            yield other.words, captions


def _fitting(backbone: Backbone, contexts: Iterable[str], words: str) -> list[str]:
    """Return contexts, filled in with words, that the text encoder reads whole."""
    return [caption for context in contexts if fits(backbone, caption := filled(context, words))]


def _residual(constraints: Constraints, deltas: Mapping[str, LowRank], index: int) -> dict[str, float]:
    """Return the relative error of the prescribed values of a block, by name of the matrix."""
    rows = constraints.slice_of(index)
    features = constraints.blocks[index].features[: constraints.blocks[index].exact]
    found = {}
    for layer, change in deltas.items():
        wanted = constraints.values[layer][rows]
        missed = value_change(change, features) - wanted
        found[layer] = _ratio(float(missed.square().sum()), float(wanted.square().sum()))
    return found


def _errors(
    kept: KeptSubject, deltas: Mapping[str, LowRank], features: Float[Tensor, "features width"]
) -> tuple[float, float]:
    """Return how far the merged changes are from the subject's own on some features, and the size of these, squared."""
    missed = moved = 0.0
    for layer, change in deltas.items():
        merged = value_change(change, features)
        own = kept.own_value_change(layer, features, out=merged.shape[1])
        moved += float(own.square().sum())
        missed += float((merged - own).square().sum())
    return missed, moved


def _ratio(missed: float, moved: float) -> float:
    """Return the root of a ratio of squares; of `missed` alone where nothing moved."""
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
