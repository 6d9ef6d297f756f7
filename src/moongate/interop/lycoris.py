"""The changes of LyCORIS' LoHa and LoKr layers, which PEFT stores in the same tensors.

LoHa (Hadamard product):   W - W0 = (w1_a w1_b) * (w2_a w2_b), number by number.
LoKr (Kronecker product):  W - W0 = kron(w1, w2), where w1 and w2 are matrices, or products `_a _b` of factors.

Both are multiplied by a scale that depends on the file. Convolutions, which have a further core tensor, are not read.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.concept import Dense, LowRank
from moongate.errors import ConceptFileError
from moongate.limits import MAX_WEIGHT_NUMBERS

__all__ = ["LYCORIS_KEYS", "loha", "lokr", "numbers_of"]

LYCORIS_KEYS = "hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b"
"""The names of the tensors of a layer, as alternatives of a regular expression."""


def loha(name: str, tensors: Mapping[str, Tensor]) -> tuple[Dense | LowRank, int]:
    """Return a LoHa layer's change before scaling, and the rank by which its alpha is divided.

    Column (i, j) of the change's factor is the product of column i of w1_a and column j of w2_a, so its rank is at most
    the product of both ranks.

    Args:
        name: Our name of the weight, for errors.
        tensors: The layer's tensors by the names in `LYCORIS_KEYS`.

    Raises:
        ConceptFileError: A tensor is missing, or the shapes do not fit together.
    """
    up1, down1 = _pair(name, tensors, "hada_w1")
    up2, down2 = _pair(name, tensors, "hada_w2")
    if len(up1) != len(up2) or down1.shape[1] != down2.shape[1]:
        raise ConceptFileError(f"The two matrices of the LoHa layer {name!r} have different shapes.")
    rank = down1.shape[0]
    if _pays_off(rank * down2.shape[0], len(up1), down1.shape[1]):
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
        return LowRank(up=up, down=down), rank
    _check_size(name, len(up1), down1.shape[1])
    return Dense(delta=(up1 @ down1) * (up2 @ down2)), rank


def lokr(name: str, tensors: Mapping[str, Tensor]) -> tuple[Dense | LowRank, int | None]:
    """Return a LoKr layer's change before scaling, and the rank by which its alpha is divided.

    Args:
        name: Our name of the weight, for errors.
        tensors: The layer's tensors by the names in `LYCORIS_KEYS`.

    Returns:
        The change; and the rank, which is None when both matrices are stored whole: LyCORIS then ignores the alpha.

    Raises:
        ConceptFileError: A tensor is missing, or the shapes do not fit together.
    """
    w1, rank1 = _matrix(name, tensors, "lokr_w1")
    rank = rank1
    if "lokr_w2" not in tensors:
        up, down = _pair(name, tensors, "lokr_w2")
        rank = down.shape[0]
        if _pays_off(w1.shape[1] * rank, len(w1) * len(up), w1.shape[1] * down.shape[1]):
            _check_size(name, len(w1) * len(up), w1.shape[1] * rank)
            _check_size(name, w1.shape[1] * rank, w1.shape[1] * down.shape[1])
            return LowRank(up=torch.kron(w1, up), down=torch.kron(torch.eye(w1.shape[1]), down)), rank
    w2, _ = _matrix(name, tensors, "lokr_w2")
    _check_size(name, len(w1) * len(w2), w1.shape[1] * w2.shape[1])
    return Dense(delta=torch.kron(w1, w2)), rank


def numbers_of(tensors: Mapping[str, Any]) -> int:
    """Return how many numbers a layer has, by the shapes of its tensors; 0 if they are not those of a layer."""
    rows = columns = 1
    for part in ("hada_w1",) if "hada_w1_a" in tensors else ("lokr_w1", "lokr_w2"):
        whole = tensors.get(part)
        up, down = (tensors.get(f"{part}_{end}", whole) for end in "ab")
        if up is None or down is None or not up.ndim == down.ndim == 2:
            return 0
        rows, columns = rows * up.shape[0], columns * down.shape[1]
    return rows * columns


def _matrix(name: str, tensors: Mapping[str, Tensor], part: str) -> tuple[Float[Tensor, "out in"], int | None]:
    """Return a matrix that is stored whole, or as two factors with their rank."""
    if part in tensors:
        return _of_two_dimensions(name, part, tensors[part]), None
    up, down = _pair(name, tensors, part)
    _check_size(name, len(up), down.shape[1])
    return up @ down, down.shape[0]


def _pair(
    name: str, tensors: Mapping[str, Tensor], part: str
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    missing = [key for key in (f"{part}_a", f"{part}_b") if key not in tensors]
    if missing:
        raise ConceptFileError(f"The file holds {' and '.join(sorted(tensors))} of {name!r}, but not {missing[0]}.")
    up, down = (_of_two_dimensions(name, key, tensors[key]) for key in (f"{part}_a", f"{part}_b"))
    if up.shape[1] != down.shape[0]:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise ConceptFileError(f"The factors {part} of {name!r} have the shapes {shapes}, which do not fit together.")
    return up, down


def _of_two_dimensions(name: str, part: str, tensor: Tensor) -> Float[Tensor, "out in"]:
    if tensor.ndim != 2:
        raise ConceptFileError(f"{part} of {name!r} has {tensor.ndim} dimensions; a matrix has two.")
    return tensor


def _check_size(name: str, rows: int, columns: int) -> None:
    """Raise ConceptFileError if a product would have more than `MAX_WEIGHT_NUMBERS`."""
    if rows * columns > MAX_WEIGHT_NUMBERS:
        raise ConceptFileError(f"The matrices of {name!r} stand for {rows} x {columns} numbers. No model has them.")


def _pays_off(rank: int, rows: int, columns: int) -> bool:
    """Return whether factors of this rank hold fewer numbers than the matrix."""
    return rank * (rows + columns) < rows * columns
