"""Adapters: LoRA, and LyCORIS' LoHa and LoKr, which add a product of small matrices to a weight.

Only the keys and values of cross-attention are read from an adapter. Every other layer reads no text, so that a merge,
which constrains what captions say, would have to refuse the concept; such layers are listed instead.

Factors are written with a scale of exactly 1: folding another scale into a factor would round it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from moongate.compression import low_rank
from moongate.concept import Concept, Dense, LowRank
from moongate.errors import ConceptFileError, OptionError, listed
from moongate.interop.content import flat_tensors
from moongate.interop.layers import inferred_blocks_per_level, kv_layer
from moongate.interop.lycoris import LYCORIS_KEYS, loha, lokr, numbers_of
from moongate.interop.tokens import BUNDLED
from moongate.limits import MAX_FILE_NUMBERS

__all__ = ["ADAPTER_KEY", "DEFAULT_RANK", "Adapter", "check_rank", "factors_of", "padded", "read_adapter", "unscaled"]

DEFAULT_RANK = 32
"""The rank to which dense changes are cut when no rank is given."""
ROUNDING = 1e-6
"""The relative error of low-rank factors that is only the rounding of float32."""
FACTORS: Mapping[str | None, str] = {"A": "down", "down": "down", "B": "up", "up": "up"}
ADAPTER_KEY = re.compile(
    r"(?:[._]lora(?:_linear)?(?:_layer)?[._](?P<factor>A|B|down|up)(?:\.[^.]+)?\.weight"
    rf"|(?:_lora)?\.(?P<other>alpha|diff|{LYCORIS_KEYS})"
    r"|\.(?P<unread>dora_scale|lora_magnitude_vector|lora_mid|hada_t[12]|lokr_t2|scalar"
    r"|scale|set_weight|bias_(?:indices|values|size))(?:\.[^.]+){0,2})$"
)
"""The end of a key that belongs to an adapter, after the name of its layer. PEFT may put the adapter's name before
`weight`. Beside an unread part, such as DoRA's norms of columns, factors alone do not describe a layer's change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """What an adapter file holds."""

    changes: Mapping[str, Dense | LowRank]
    """Changes by our parameter name, with their scale multiplied in."""
    bundled: Mapping[str, Any]
    """The values of token embeddings stored in the same file, by key."""
    left_out: tuple[str, ...]
    """Keys of layers that cannot be taken."""


def unscaled(_name: str, _rank: int | None) -> float:
    """Return 1: the scale of a layer for which a file gives no alpha."""
    return 1.0


def read_adapter(values: Mapping[Any, Any], *, scale_of: Callable[[str, int | None], float] = unscaled) -> Adapter:
    """Return the changes of keys and values in an adapter file.

    Args:
        values: The file's values by key.
        scale_of: Returns the scale of a layer without an alpha of its own, given our name of its weight and its rank,
            which is None where the file does not show it.

    Raises:
        ConceptFileError: A layer lacks a factor or has it twice, its factors do not fit together, or its alpha is not a
            number.
    """
    per_level = inferred_blocks_per_level(map(str, values))
    layers: dict[str, dict[str, Any]] = {}
    bundled: dict[str, Any] = {}
    left_out: list[str] = []
    unread: set[str | None] = set()
    others: set[str | None] = set()
    for key, value in ((str(key), value) for key, value in values.items()):
        name, part = kv_layer(key, per_level), ADAPTER_KEY.search(key)
        if name and part and not part["unread"]:
            layer, kind = layers.setdefault(name, {}), FACTORS.get(part["factor"], part["other"])
            if kind in layer:
                raise ConceptFileError(
                    f"The file holds two tensors {kind!r} of {name!r}, one of them as {key!r}. Give a file with one "
                    "LoRA."
                )
            layer[kind] = value if kind == "alpha" else flat_tensors({key: value})[key]
        elif key.startswith(BUNDLED) and not name:
            bundled[key] = value
        else:
            left_out.append(key)
            (unread if part else others).add(name)
    taken = {
        name: layer
        for name, layer in layers.items()
        if name not in unread and (set(layer) != {"alpha"} or name not in others)  # the alpha of a layer of other kind
    }
    _check_numbers(taken.values())
    changes = {name: _change(name, layer, scale_of) for name, layer in taken.items()}
    return Adapter(changes=changes, bundled=bundled, left_out=tuple(left_out))


def factors_of(concept: Concept, rank: int | None) -> tuple[dict[str, LowRank], tuple[str, ...]]:
    """Return the low-rank factors of a concept's changes in the denoiser, and notes about what they do not hold.

    Args:
        concept: The concept to write.
        rank: The maximum rank. None keeps existing factors and cuts dense changes to `DEFAULT_RANK`.

    Raises:
        OptionError: The concept changes no matrix of the denoiser, or the rank is below 1.
    """
    matrices = {n: c for n, c in concept.deltas.items() if n.startswith("unet.") and len(c.shape) == 2}
    check_rank(rank)
    factors, notes = _cut(matrices, rank)
    factors = {name: change for name, change in factors.items() if change.rank}
    if not factors:
        raise OptionError("The concept changes no weights, so that there is no LoRA to write. Write --to embedding.")
    left_out = [name for name in concept.deltas if name not in matrices]
    if left_out:
        notes.append(f"A LoRA cannot hold the changes of {listed(left_out)}; they are left out.")
    return factors, tuple(notes)


def check_rank(rank: int | None) -> None:
    """Raise OptionError if a maximum rank is given that is below 1."""
    if rank is not None and rank < 1:
        raise OptionError(f"The rank is {rank}; it must be at least 1, such as {DEFAULT_RANK}.")


def padded(factors: Mapping[str, LowRank]) -> tuple[dict[str, LowRank], int]:
    """Return the factors padded with zeros to the largest rank, and that rank.

    Programs disagree about files whose ranks differ: diffusers takes the first layer's rank for all of them before
    version 0.40, and ignores alphas that differ between layers. Padding changes no product; reading removes it.
    """
    rank = max(change.rank for change in factors.values())
    return {
        name: LowRank(up=pad(change.up, (0, rank - change.rank)), down=pad(change.down, (0, 0, 0, rank - change.rank)))
        for name, change in factors.items()
    }, rank


def _cut(matrices: Mapping[str, Dense | LowRank], rank: int | None) -> tuple[dict[str, LowRank], list[str]]:
    """Return changes as factors of at most `rank`, and a note about the loss if it is more than rounding."""
    factors, cut_squared, whole_squared = {}, 0.0, 0.0
    for name, change in matrices.items():
        kept = min(change.rank, sum(change.shape)) if isinstance(change, LowRank) else DEFAULT_RANK
        most = rank or kept  # a rank beyond both sides says nothing, and all layers would be padded to it
        factors[name], lost_squared = low_rank(change, most)
        cut_squared += lost_squared
        matrix = change.core() if isinstance(change, LowRank) else change.delta.double()
        whole_squared += float(matrix.square().sum())
    if cut_squared <= ROUNDING**2 * whole_squared:
        return factors, []
    return factors, [
        f"The changes were cut to rank {rank or DEFAULT_RANK}, which loses {(cut_squared / whole_squared) ** 0.5:.1%} "
        "of them (Frobenius norm). A higher --rank keeps more."
    ]


def _check_numbers(layers: Iterable[Mapping[str, Any]]) -> None:
    """Raise ConceptFileError, before anything is multiplied out, if layers stand for more than `MAX_FILE_NUMBERS`."""
    if sum(map(numbers_of, layers)) > MAX_FILE_NUMBERS:
        raise ConceptFileError(
            f"The small matrices of the file stand for more than {MAX_FILE_NUMBERS // 10**6} million numbers, which "
            "are not computed: they might fill the memory. Give a file of fewer layers, such as keys and values."
        )


def _change(name: str, layer: Mapping[str, Any], scale_of: Callable[[str, int | None], float]) -> Dense | LowRank:
    """Return one layer's change, with its scale multiplied in."""
    tensors = {kind: value for kind, value in layer.items() if kind != "alpha"}
    families = {"lora" if kind in FACTORS.values() else kind.partition("_")[0] for kind in tensors}
    change: Dense | LowRank
    rank: int | None
    if len(families) > 1:
        raise ConceptFileError(f"The file holds {' and '.join(sorted(tensors))} of {name!r}, changes of two kinds.")
    if families == {"diff"}:
        return Dense(delta=_difference(name, tensors["diff"]))
    if families == {"hada"}:
        change, rank = loha(name, tensors)
    elif families == {"lokr"}:
        change, rank = lokr(name, tensors)
    else:
        up, down = _factors(name, tensors)
        rank = up.shape[1]
        change = _without_padding(up, down)
    if layer.get("alpha") is None:
        return _scaled(change, scale_of(name, rank))
    return _scaled(change, _number(name, layer["alpha"]) / rank if rank else 1.0)


def _number(name: str, alpha: Any) -> float:
    if not (isinstance(alpha, int | float) or (isinstance(alpha, Tensor) and alpha.numel() == 1)):
        raise ConceptFileError(f"The alpha of {name!r} is not one number.")
    try:
        number = float(alpha.detach() if isinstance(alpha, Tensor) else alpha)
    except OverflowError as error:
        raise ConceptFileError(f"The alpha of {name!r} is too large for any LoRA.") from error
    if not math.isfinite(number):
        raise ConceptFileError(f"The alpha of {name!r} is {number}, which is not a number to scale with.")
    return number


def _scaled(change: Dense | LowRank, scale: float) -> Dense | LowRank:
    return change if scale == 1 else change.scaled(scale)


def _factors(name: str, tensors: Mapping[str, Tensor]) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    if not {"up", "down"} <= set(tensors):
        parts = " and ".join(sorted(tensors)) or "only an alpha"
        raise ConceptFileError(f"The file holds {parts} of {name!r}, but not both factors.")
    up, down = _as_matrix(tensors["up"]), _as_matrix(tensors["down"])
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise ConceptFileError(f"The factors of {name!r} have the shapes {shapes}, which do not fit together.")
    return up, down


def _difference(name: str, tensor: Tensor) -> Float[Tensor, "out in"]:
    matrix = _as_matrix(tensor)
    if matrix.ndim != 2:
        raise ConceptFileError(f"The difference of {name!r} has the shape {tuple(tensor.shape)}; it must be a matrix.")
    return matrix


def _as_matrix(tensor: Tensor) -> Tensor:
    """Return a convolution over single pixels as the matrix that it is, and other tensors as they are."""
    return tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) else tensor


def _without_padding(up: Float[Tensor, "out rank"], down: Float[Tensor, "rank in"]) -> LowRank:
    """Return the factors without the zeros that fill them up to a larger rank."""
    used = (up.any(0) & down.any(1)).nonzero()
    rank = int(used[-1]) + 1 if len(used) else 0
    return LowRank(up=up[:, :rank], down=down[:rank])
