"""Full weights: W0 + change for formats that store W, and W - W0 when such a file is read.

The formats `adobe`, `compvis` and `diffusers` store W and do not name their base, so reading and writing them needs the
model. The compressed variants of the first two store low-rank factors `u` and `v` of the change instead.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.text_only import TEXT_PREFIX
from moongate.concept import Concept, Dense, LowRank, mismatches
from moongate.errors import BaseMismatchError, ConceptFileError, OptionError, listed
from moongate.interop.content import flat_tensors
from moongate.tensor_files import check_finite

__all__ = ["changes_against", "float32_base", "left_out_note", "split_compressed", "whole_weights"]

FINE_TUNING = 0.5
"""Differences of at most this share of the base's norm need no further evidence: fine-tuning moves weights by a few per
cent. Larger ones are no evidence against the base, because a merge may move weights by many times their norm."""
AGREEMENT = 0.05
"""In the directions in which file and base differ least, the largest difference that counts as agreement, relative to
the base. Those of a merge are rounding (1e-7, or 1e-2 in float16), those of another model at least 0.1."""
UNRELATED = 0.1
"""Weights of two models that were trained apart correlate by less than this."""


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
        raise OptionError("This format stores full weights, which need the base model. Name it with --model.")
    if base.dtype != torch.float32:
        raise OptionError(
            f"Full weights are written in float32, but the base is loaded in {base.dtype}. Load it in float32."
        )
    return base


def changes_against(
    base: Backbone, weights: Mapping[str, Tensor], path: Path, *, names_its_base: bool = False
) -> tuple[dict[str, Dense], tuple[str, ...]]:
    """Return W - W0 in float32 for the full weights of a file, without those that are equal to the base's.

    Args:
        base: The base model, with the weights W0.
        weights: The full weights W by our name.
        path: The file, which errors name.
        names_its_base: Whether the file holds a fingerprint of its base, so that no other evidence is needed.

    Returns:
        The changes by our name; and a note when nothing shows whether the file belongs to this base.

    Raises:
        ConceptFileError: A number is not finite.
        OptionError: The base is not loaded in float32.
        BaseMismatchError: The base has other weights, or is a model that was trained apart from the file's.
    """
    if base.dtype != torch.float32:
        raise OptionError(
            f"{path} stores full weights, whose change is computed in float32, but {base.name!r} is loaded in "
            f"{base.dtype}. Load it in float32 (--dtype float32), or convert the file first."
        )
    check_finite(weights, path)
    weights = dict(_as_the_base_has_it(name, weight, base) for name, weight in weights.items())
    wrong = mismatches(base, {name: tuple(weight.shape) for name, weight in weights.items()})
    if wrong:
        raise BaseMismatchError(f"{path} does not fit {base.name!r}: {listed(wrong)}. Name the right base.")
    pairs = {name: (weight, base.parameter(name).detach().float().cpu()) for name, weight in weights.items()}
    notes = () if names_its_base else _check_base(base.name, pairs, path)
    deltas = {name: weight - before for name, (weight, before) in pairs.items()}
    return {name: Dense(delta=delta) for name, delta in deltas.items() if delta.any()}, notes


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


def _check_base(name: str, pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path) -> tuple[str, ...]:
    """Check by their values that full weights belong to a base, because their formats do not name it.

    The size of the change says little. Evidence for the base are equal matrices, an embedding table that is almost
    equal, and differences of low rank, as a merge makes them. Evidence against it is a lack of any correlation.

    Args:
        name: The name of the base.
        pairs: W and W0 by parameter name.
        path: The file, which messages name.

    Returns:
        A note when nothing shows whether the base is the right one.

    Raises:
        BaseMismatchError: The weights are those of another model.
    """
    denoiser = {key: pair for key, pair in pairs.items() if key.startswith("unet.")} or pairs
    difference, correlation = _compared(denoiser)
    matrices = [(weight, before) for weight, before in pairs.values() if weight.ndim == 2 and before.any()]
    tables = {key: pair for key, pair in pairs.items() if key.endswith("token_embedding.weight")}
    if (
        difference <= FINE_TUNING
        or any(torch.equal(weight, before) for weight, before in matrices)
        or (tables and _compared(tables)[0] <= AGREEMENT)
        or all(_agree_in_some_directions(weight, before) for weight, before in denoiser.values() if weight.ndim == 2)
    ):
        return ()
    if correlation < UNRELATED:
        raise BaseMismatchError(
            f"The weights of {path} differ from those of {name!r} by {difference:.0%} and have nothing in common with "
            f"them (correlation {correlation:.2f}). Name the base that they were trained from."
        )
    return (
        f"The weights of {path.name} differ from those of {name!r} by {difference:.0%}, and nothing in the file shows "
        "whether this is the base that they were trained from. If the pictures look wrong, name another base.",
    )


def _compared(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the norm of W - W0 relative to that of W0, and the correlation of W with W0, over all pairs together."""
    difference, product, weight_squared, base_squared = 0.0, 0.0, 0.0, 0.0
    for weight, before in pairs.values():
        w, w0 = weight.double(), before.double()
        difference += float((w - w0).square().sum())
        product += float((w * w0).sum())
        weight_squared += float(w.square().sum())
        base_squared += float(w0.square().sum())
    tiny = torch.finfo(torch.float64).tiny
    root = max(weight_squared * base_squared, tiny) ** 0.5
    return (difference / max(base_squared, tiny)) ** 0.5, product / root


def _agree_in_some_directions(weight: Float[Tensor, "out in"], before: Float[Tensor, "out in"]) -> bool:
    """Return whether W and W0 agree in an eighth of all directions, which only weights of one origin do."""
    delta = (weight - before).double()
    gram = delta @ delta.T if delta.shape[0] < delta.shape[1] else delta.T @ delta
    squares = torch.linalg.eigvalsh(gram).clamp(min=0)  # of the singular values, smallest first
    smallest = squares[: max(1, len(squares) // 8)].mean()
    return bool(smallest <= AGREEMENT**2 * before.double().square().sum() / len(squares))
