"""Full weights: W0 + change for formats that store W, and W - W0 when such a file is read.

The formats `adobe`, `compvis` and `diffusers` store W and do not name their base, so reading and writing them needs the
model. The compressed variants of the first two store low-rank factors `u` and `v` of the change instead.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank, mismatches
from moongate.errors import BaseMismatchError, ConceptFileError, OptionError, listed
from moongate.interop.content import flat_tensors

__all__ = ["TEXT_PREFIX", "changes_against", "float32_base", "left_out_note", "split_compressed", "whole_weights"]

TEXT_PREFIX = "text_model."
"""What transformers wrote before every name of a text encoder until version 5."""
LARGEST_CHANGE = 0.5
"""The largest difference from the base, relative to the base's norm, that is taken for fine-tuning. The formats do not
name their base: fine-tuning moves the weights by a few per cent, another model's weights differ by 140 %."""


def whole_weights(concept: Concept, base: Backbone | None) -> tuple[dict[str, Tensor], list[str]]:
    """Return W0 + change of the cross-attention weights.

    Args:
        concept: The concept to write.
        base: Its base model in float32.

    Returns:
        The full keys and values by our name, or all cross-attention weights when the concept changes others too; and
        the names of changed weights outside cross-attention, which are not among them.

    Raises:
        OptionError: There is no base, or it is loaded in another precision.
        BaseMismatchError: The concept was made for another base.
    """
    base = float32_base(base)
    concept.check_base(base)
    cross_attention = base.weights("cross-attention")
    wanted = base.weights("cross-attention-kv")
    if any(name in cross_attention and name not in wanted for name in concept.deltas):
        wanted = cross_attention
    weights = {}
    for name, weight in wanted.items():
        change = concept.deltas.get(name)
        before = weight.detach().float().cpu()
        weights[name] = before if change is None else before + change.full()
    return weights, [name for name in concept.deltas if name not in weights]


def float32_base(base: Backbone | None) -> Backbone:
    """Return the base.

    Raises:
        OptionError: It is None, or loaded in another precision than float32.
    """
    if base is None:
        raise OptionError("This format stores full weights, which need the base model. Name it with --base.")
    if base.dtype != torch.float32:
        raise OptionError(
            f"Full weights are written in float32, but the base is loaded in {base.dtype}. Load it in float32."
        )
    return base


def changes_against(base: Backbone, weights: Mapping[str, Tensor], path: Path) -> dict[str, Dense]:
    """Return W - W0 in float32 for the full weights of a file, without those that are equal to the base's.

    Args:
        base: The base model, with the weights W0.
        weights: The full weights W by our name.
        path: The file, which errors name.

    Raises:
        OptionError: The base is not loaded in float32.
        BaseMismatchError: The base has other weights, or they differ by more than `LARGEST_CHANGE`.
    """
    if base.dtype != torch.float32:
        raise OptionError(
            f"{path} stores full weights, whose change is computed in float32, but {base.name!r} is loaded in "
            f"{base.dtype}. Load it in float32 (--dtype float32), or convert the file first."
        )
    weights = dict(_as_the_base_has_it(name, weight, base) for name, weight in weights.items())
    wrong = mismatches(base, {name: tuple(weight.shape) for name, weight in weights.items()})
    if wrong:
        raise BaseMismatchError(f"{path} does not fit {base.name!r}: {listed(wrong)}. Name the right base.")
    changes, change_squared, base_squared = {}, 0.0, 0.0
    for name, weight in weights.items():
        before = base.parameter(name).detach().float().cpu()
        delta = weight - before
        change_squared += float(delta.double().square().sum())
        base_squared += float(before.double().square().sum())
        if delta.any():
            changes[name] = Dense(delta=delta)
    if change_squared > LARGEST_CHANGE**2 * base_squared:
        share = (change_squared / base_squared) ** 0.5
        raise BaseMismatchError(
            f"The weights of {path} differ from those of {base.name!r} by {share:.0%}; fine-tuning changes them by a "
            "few per cent. Name the base that they were trained from."
        )
    return changes


def split_compressed(values: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, LowRank]]:
    """Return the full weights, and the factors `{"u", "v"}` of compressed changes, by the names they have in `values`.

    The public compression leaves factors of rank 0 where a change is small; these layers are omitted.

    Raises:
        ConceptFileError: A value is neither a tensor nor a pair of factors that fit together.
    """
    pairs = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    weights = flat_tensors({name: value for name, value in values.items() if name not in pairs})
    changes = {}
    for name, pair in pairs.items():
        factors = flat_tensors(pair)
        u, v = factors.get("u"), factors.get("v")
        if u is None or v is None or u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0]:
            shapes = {key: tuple(factor.shape) for key, factor in factors.items()}
            raise ConceptFileError(f"The factors of {name!r} do not fit together: {shapes}.")
        if u.shape[1]:
            changes[name] = LowRank(up=u, down=v)
    return weights, changes


def left_out_note(names: Sequence[str]) -> tuple[str, ...]:
    """Return a note about changes that a format cannot hold, or nothing when there are none."""
    return (f"The format cannot hold the changes of {listed(names)}; they are left out.",) if names else ()


def _as_the_base_has_it(name: str, weight: Tensor, base: Backbone) -> tuple[str, Tensor]:
    """Return a text encoder's weight under the name that this version of transformers gives it.

    A table of embeddings is cut to the base's own words: training code appends the new tokens to it.
    """
    part, _, rest = name.partition(".")
    for spelling in (name, f"{part}.{TEXT_PREFIX}{rest}"):
        with contextlib.suppress(KeyError):
            own = base.parameter(spelling)
            is_table = name.endswith("token_embedding.weight")
            return spelling, weight[: len(own)] if is_table else weight
    return name, weight
