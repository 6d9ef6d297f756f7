"""Make a concept small: keep the largest singular values of each change (paper, Sec. 3.4 and App. C).

The change of a matrix, W - W0, is nearly of low rank. It is taken from the concept, which stores it in float32, so
that no rounding of the base gets into it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moongate.concept import Concept, Dense, LowRank
from moongate.errors import OptionError

__all__ = ["Compressed", "CompressionReport", "LayerCompression", "check_energy", "compress", "low_rank", "rank_of"]


@dataclass(frozen=True, kw_only=True)
class LayerCompression:
    """What became of one change."""

    rank: int
    full_rank: int
    """The most the shape allows."""
    error: float
    """Frobenius norm of what was cut away, relative to that of the change."""


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """Size and error, in all and by layer. Sizes are of float32 deltas, in bytes."""

    energy: float
    bytes_before: int
    bytes_after: int
    layers: Mapping[str, LayerCompression]
    error: float
    """Over all layers together."""
    unchanged: tuple[str, ...]
    """Layers whose change was exactly zero, and which are no longer stored."""
    kept_whole: tuple[str, ...]
    """Changes that are no matrices, or that two factors would only make larger."""


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The smaller concept and the report."""

    concept: Concept
    report: CompressionReport


def compress(concept: Concept, *, energy: float = 0.6) -> Compressed:
    """Keep for each matrix the fewest singular values whose sum is at least `energy` of all.

    The paper keeps 60 % for a fifth of the size. A layer that changed keeps at least one. 1 keeps the change to
    rounding, at its own rank. Raises OptionError when `energy` is not above 0 and at most 1.
    """
    check_energy(energy)
    deltas: dict[str, Dense | LowRank] = {}
    layers: dict[str, LayerCompression] = {}
    unchanged, whole, cut, total = [], [], 0.0, 0.0
    kept: Dense | LowRank
    for name, change in concept.deltas.items():
        delta = change.full()
        if not delta.any():
            unchanged.append(name)
            continue
        norm = float(delta.double().norm())
        total += norm**2
        if delta.ndim != 2:
            whole.append(name)
            deltas[name] = change
            continue
        small, squared = _truncated(delta, energy)
        if _size(small) >= _size(change):
            whole.append(name)
            kept, squared = change, 0.0
        else:
            kept = small
        full_rank = min(delta.shape)
        layers[name] = LayerCompression(rank=kept.rank or full_rank, full_rank=full_rank, error=squared**0.5 / norm)
        deltas[name] = kept
        cut += squared
    report = CompressionReport(
        energy=energy,
        bytes_before=sum(map(_size, concept.deltas.values())),
        bytes_after=sum(map(_size, deltas.values())),
        layers=layers,
        error=(cut / total) ** 0.5 if total else 0.0,
        unchanged=tuple(unchanged),
        kept_whole=tuple(whole),
    )
    record = {**concept.record, "energy": energy}
    return Compressed(concept=dataclasses.replace(concept, deltas=deltas, record=record), report=report)


def check_energy(energy: float) -> None:
    """Raise OptionError when `energy` is not above 0 and at most 1."""
    if not 0 < energy <= 1:
        raise OptionError(f"energy is {energy}; it must be above 0 and at most 1, such as 0.6.")


def low_rank(change: Dense | LowRank, rank: int) -> tuple[LowRank, float]:
    """Return a matrix's change as a product of at most `rank`, and the sum of squares of what was cut away.

    A product of no higher rank is returned as it is.
    """
    if isinstance(change, LowRank) and change.rank <= rank:
        return change, 0.0
    return _cut(torch.linalg.svd(change.full().double(), full_matrices=False), rank)


def rank_of(values: Tensor, energy: float) -> int:
    """Return the fewest of the singular values, largest first, whose sum is at least `energy` of all."""
    return int((values.cumsum(0) / values.sum() < energy - 1e-5).sum()) + 1


def _truncated(delta: Tensor, energy: float) -> tuple[LowRank, float]:
    """Return the change cut to its largest singular values, and the sum of squares of the others."""
    decomposition = torch.linalg.svd(delta.double(), full_matrices=False)
    values = decomposition.S
    floor = values[0] * max(delta.shape) * torch.finfo(torch.float32).eps  # below this is the rounding of float32
    return _cut(decomposition, min(rank_of(values, energy), max(1, int((values > floor).sum()))))


def _cut(decomposition: tuple[Tensor, Tensor, Tensor], rank: int) -> tuple[LowRank, float]:
    left, values, right = decomposition
    root = values[:rank].sqrt()
    small = LowRank(up=(left[:, :rank] * root).float(), down=(root[:, None] * right[:rank]).float())
    return small, float(values[rank:].square().sum())


def _size(change: Dense | LowRank) -> int:
    return sum(tensor.numel() * 4 for tensor in change.tensors().values())
