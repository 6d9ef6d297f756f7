"""Make a concept small: keep the largest singular values of each change (paper, App. B).

The change of a matrix, W - W0, has nearly low rank. It is taken from the concept, which stores it in float32, so no
rounding of the base model gets into it. The module knows nothing of models.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.concept import Concept, Dense, LowRank
from moongate.errors import OptionError

__all__ = [
    "Compressed",
    "CompressionReport",
    "LayerCompression",
    "check_energy",
    "compress",
    "low_rank",
    "norm_of",
    "rank_of",
    "usual_energy",
]

LARGE = 100_000_000
"""Changes of more numbers than this (400 MB) are cut to low rank by default; only SDXL has as many."""
LARGE_ENERGY = 0.6
"""The share of the singular values that is then kept, as in the paper (App. B)."""
ROUNDING = 1e-5
"""By this much the kept share of the singular values may be below `energy`, because sums of them are rounded."""


@dataclass(frozen=True, kw_only=True)
class LayerCompression:
    """How the change of one matrix was compressed."""

    rank: int
    full_rank: int
    """The largest possible rank of a matrix of this shape."""
    error: float
    """Frobenius norm of what was cut away, relative to that of the change."""


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """Sizes and errors, in total and by layer. Sizes are those of float32 changes, in bytes."""

    energy: float
    bytes_before: int
    bytes_after: int
    layers: Mapping[str, LayerCompression]
    """By name of the matrix."""
    error: float
    """Frobenius norm of all that was cut away, relative to that of all changes."""
    unchanged: tuple[str, ...]
    """Weights whose change was exactly zero; they are no longer stored."""
    kept_whole: tuple[str, ...]
    """Weights that are stored as before: they are not matrices, or low-rank factors would be larger."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Compressed:
    """The smaller concept and the report on it."""

    concept: Concept
    report: CompressionReport


def compress(concept: Concept, *, energy: float = 0.6) -> Compressed:
    """Store each change of a matrix as low-rank factors, keeping its largest singular values.

    For each matrix the smallest rank is taken whose singular values sum to at least `energy` of all of them, and at
    least 1, so no layer that changed is lost. The paper keeps 60 % for a fifth of the size.

    Args:
        concept: A concept with changes of any kind. Changes that are not matrices, such as biases, stay as they are.
        energy: Share of the sum of singular values to keep, above 0 and at most 1. With 1 a change is kept up to
            rounding, at its own rank.

    Returns:
        The smaller concept and the report.

    Raises:
        OptionError: `energy` is out of range.
    """
    check_energy(energy)
    unchanged = tuple(name for name, change in concept.deltas.items() if not norm_of(change))
    changed = {name: change for name, change in concept.deltas.items() if name not in unchanged}
    weights = {name: _compressed(change, energy) for name, change in changed.items()}
    deltas = {name: weight.change for name, weight in weights.items()}
    squares = sum(weight.squares for weight in weights.values())
    squares_cut = sum(weight.squares_cut for weight in weights.values())
    report = CompressionReport(
        energy=energy,
        bytes_before=sum(map(_size, concept.deltas.values())),
        bytes_after=sum(map(_size, deltas.values())),
        layers={name: weight.report for name, weight in weights.items() if weight.report},
        error=(squares_cut / squares) ** 0.5 if squares else 0.0,
        unchanged=unchanged,
        kept_whole=tuple(name for name, change in changed.items() if deltas[name] is change),
    )
    record = {**concept.record, "energy": energy}
    return Compressed(concept=dataclasses.replace(concept, deltas=deltas, record=record, kept={}), report=report)


def check_energy(energy: float) -> None:
    """Check a share of singular values.

    Raises:
        OptionError: `energy` is not above 0 and at most 1.
    """
    if not 0 < energy <= 1:
        raise OptionError(f"energy is {energy}; it must be above 0 and at most 1, such as 0.6.")


def usual_energy(concept: Concept) -> float:
    """Return the share of the singular values that the file of a trained concept keeps unless another one is chosen."""
    return LARGE_ENERGY if sum(math.prod(change.shape) for change in concept.deltas.values()) > LARGE else 1.0


def low_rank(change: Dense | LowRank, rank: int) -> tuple[LowRank, float]:
    """Return the change of a matrix as low-rank factors of at most a given rank.

    Args:
        change: The change of a matrix.
        rank: The largest rank, at least 1. Factors of this rank or a lower one are returned unchanged.

    Returns:
        The factors, and the sum of squares of the singular values that were cut away.
    """
    if isinstance(change, LowRank) and change.rank <= rank:
        return change, 0.0
    return _cut(_decomposed(change), rank)


def norm_of(change: Dense | LowRank) -> float:
    """Return the Frobenius norm of a change; low-rank factors are not multiplied out."""
    return float((change.core() if isinstance(change, LowRank) else change.delta.double()).norm())


def _decomposed(change: Dense | LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of a change in float64; low-rank factors are not multiplied out."""
    if isinstance(change, Dense):
        return tuple(torch.linalg.svd(change.full().double(), full_matrices=False))
    (left, upper), (right, lower) = torch.linalg.qr(change.up.double()), torch.linalg.qr(change.down.double().T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return left @ inner_left, values, inner_right @ right.T


def rank_of(values: Float[Tensor, " values"], energy: float) -> int:
    """Return how many of the singular values, largest first, sum to at least `energy` of all."""
    return int((values.cumsum(0) / values.sum() < energy - ROUNDING).sum()) + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weight:
    """The compressed change of one weight."""

    change: Dense | LowRank
    report: LayerCompression | None = None
    """For matrices only."""
    squares: float = 0.0
    """Squared Frobenius norm of the change."""
    squares_cut: float = 0.0
    """Squared Frobenius norm of what was cut away."""


def _compressed(change: Dense | LowRank, energy: float) -> _Weight:
    norm = norm_of(change)
    if len(change.shape) != 2:
        return _Weight(change=change, squares=norm**2)
    kept: Dense | LowRank
    kept, squares_cut = _truncated(change, energy)
    if _size(kept) >= _size(change):
        kept, squares_cut = change, 0.0
    full_rank = min(change.shape)
    report = LayerCompression(rank=kept.rank or full_rank, full_rank=full_rank, error=squares_cut**0.5 / norm)
    return _Weight(change=kept, report=report, squares=norm**2, squares_cut=squares_cut)


def _truncated(change: Dense | LowRank, energy: float) -> tuple[LowRank, float]:
    """Return the factors that keep `energy` of the singular values, and the sum of squares of the others."""
    decomposition = _decomposed(change)
    values = decomposition[1]
    floor = values[0] * max(change.shape) * torch.finfo(torch.float32).eps  # values below are the rounding of float32
    return _cut(decomposition, min(rank_of(values, energy), max(1, int((values > floor).sum()))))


def _cut(decomposition: tuple[Tensor, Tensor, Tensor], rank: int) -> tuple[LowRank, float]:
    left, values, right = decomposition
    root = values[:rank].sqrt()
    factors = LowRank(up=(left[:, :rank] * root).float(), down=(root[:, None] * right[:rank]).float())
    return factors, float(values[rank:].square().sum())


def _size(change: Dense | LowRank) -> int:
    """Return the size of a change in bytes of float32."""
    return sum(tensor.numel() * 4 for tensor in change.tensors().values())
