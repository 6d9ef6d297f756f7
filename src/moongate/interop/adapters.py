"""Adapters: LoRA, and LyCORIS' LoHa and LoKr, which add a product of small matrices to a weight.

Of an adapter only the keys and values of cross-attention are read. Every other layer reads no text, so that a merge,
which constrains what captions say, would have to refuse the concept; such layers are listed instead.

Factors are written with a scale of exactly 1: folding another scale into a factor would round it.
"""

import re
from collections.abc import Callable, Mapping
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
from moongate.interop.lycoris import LYCORIS_KEYS, loha, lokr
from moongate.interop.tokens import BUNDLED

__all__ = ["ADAPTER_KEY", "DEFAULT_RANK", "Adapter", "factors_of", "padded", "read_adapter", "unscaled"]

DEFAULT_RANK = 32
"""The rank to which dense changes are cut when no rank is given."""
ROUNDING = 1e-6
"""The relative error of low-rank factors that is only the rounding of float32."""
DORA = "DoRA"
"""The part of a layer that is also scaled by the norms of its columns, so that no factors describe its change."""
FACTORS: Mapping[str | None, str] = {"A": "down", "down": "down", "B": "up", "up": "up"}
ADAPTER_KEY = re.compile(
    rf"(?:[._]lora[._](?P<factor>A|B|down|up)(?:\.default)?\.weight|(?:_lora)?\.(?P<other>alpha|diff|{LYCORIS_KEYS})"
    r"|\.(?:dora_scale|lora_magnitude_vector)(?:\.default)?(?:\.weight)?)$"
)
"""The end of a key that belongs to an adapter, after the name of its layer."""


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
        ConceptFileError: A layer lacks a factor, its factors do not fit together, or its alpha is not a number.
    """
    per_level = inferred_blocks_per_level(map(str, values))
    layers: dict[str, dict[str, Any]] = {}
    bundled: dict[str, Any] = {}
    left_out = []
    others: dict[str, list[str]] = {}
    for key, value in ((str(key), value) for key, value in values.items()):
        name, part = kv_layer(key, per_level), ADAPTER_KEY.search(key)
        if name and part:
            layers.setdefault(name, {})[FACTORS.get(part["factor"], part["other"] or DORA)] = value
        elif name:
            others.setdefault(name, []).append(key)
        elif key.startswith(BUNDLED):
            bundled[key] = value
        else:
            left_out.append(key)
    left_out += [key for keys in others.values() for key in keys]
    changes = {}
    for name, layer in layers.items():
        if DORA in layer:
            left_out.append(f"{name} ({DORA})")
        elif set(layer) != {"alpha"} or name not in others:  # an alpha alone belongs to a layer of another kind
            changes[name] = _change(name, layer, scale_of)
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
    if not any(change.rank != 0 for change in matrices.values()):
        raise OptionError("The concept changes no weights, so that there is no LoRA to write. Write --to embedding.")
    if rank is not None and rank < 1:
        raise OptionError(f"The rank is {rank}; it must be at least 1, such as {DEFAULT_RANK}.")
    factors, notes = _cut(matrices, rank)
    left_out = [name for name in concept.deltas if name not in matrices]
    if left_out:
        notes.append(f"A LoRA cannot hold the changes of {listed(left_out)}; they are left out.")
    return {name: change for name, change in factors.items() if change.rank}, tuple(notes)


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


def _change(name: str, layer: Mapping[str, Any], scale_of: Callable[[str, int | None], float]) -> Dense | LowRank:
    """Return one layer's change, with its scale multiplied in."""
    tensors = flat_tensors({kind: value for kind, value in layer.items() if kind != "alpha"})
    if "diff" in tensors:
        return Dense(delta=tensors["diff"])
    change: Dense | LowRank
    rank: int | None
    if any(kind.startswith("hada_") for kind in tensors):
        change, rank = loha(name, tensors)
    elif any(kind.startswith("lokr_") for kind in tensors):
        change, rank = lokr(name, tensors)
    else:
        up, down = _factors(name, tensors)
        rank = up.shape[1]
        change = _without_padding(up, down)
    alpha = layer.get("alpha")
    if alpha is not None and not (isinstance(alpha, Tensor) and alpha.numel() == 1):
        raise ConceptFileError(f"The alpha of {name!r} is not one number.")
    if alpha is None:
        return _scaled(change, scale_of(name, rank))
    return _scaled(change, float(alpha) / rank if rank else 1.0)


def _scaled(change: Dense | LowRank, scale: float) -> Dense | LowRank:
    return change if scale == 1 else change.scaled(scale)


def _factors(name: str, tensors: Mapping[str, Tensor]) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    if not {"up", "down"} <= set(tensors):
        parts = " and ".join(sorted(tensors)) or "only an alpha"
        raise ConceptFileError(f"The file holds {parts} of {name!r}, but not both factors.")
    up, down = (
        factor[:, :, 0, 0] if factor.shape[2:] == (1, 1) else factor for factor in (tensors["up"], tensors["down"])
    )
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise ConceptFileError(f"The factors of {name!r} have the shapes {shapes}, which do not fit together.")
    return up, down


def _without_padding(up: Float[Tensor, "out rank"], down: Float[Tensor, "rank in"]) -> LowRank:
    """Return the factors without the zeros that fill them up to a larger rank."""
    used = (up.any(0) & down.any(1)).nonzero()
    rank = int(used[-1]) + 1 if len(used) else 0
    return LowRank(up=up[:, :rank], down=down[:rank])
