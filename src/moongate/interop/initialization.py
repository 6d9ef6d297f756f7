"""What PEFT subtracts from the base model when it loads a LoRA that was initialized from the base's own weights.

PiSSA (arXiv:2404.02948) starts the factors at the largest singular values of W0, and OLoRA (arXiv:2406.01775) at the
first columns of its QR decomposition. Both subtract that part from W0, so that the model is unchanged at the start of
the training. Such a file holds the factors after the training; its change is their product minus the subtracted part.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.concept import Dense, LowRank

__all__ = ["INITIALIZATIONS", "subtracted"]


def subtracted(change: Dense | LowRank, part: LowRank) -> Dense | LowRank:
    """Return a change minus a part of the base, as factors when the change is."""
    if isinstance(change, Dense):
        return Dense(delta=change.delta - part.full())
    return LowRank(up=torch.cat([change.up, -part.up], dim=1), down=torch.cat([change.down, part.down]))


def _pissa(weight: Float[Tensor, "out in"], rank: int, scale: float) -> LowRank:
    """Return the part of the `rank` largest singular values; `scale` cancels."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return LowRank(up=(left[:, :rank] * values[:rank]).float(), down=right[:rank].float())


def _olora(weight: Float[Tensor, "out in"], rank: int, scale: float) -> LowRank:
    """Return `scale` times the product of the first columns of Q and the first rows of R."""
    q, r = torch.linalg.qr(weight.double())
    return LowRank(up=(scale * q[:, :rank]).float(), down=r[:rank].float())


INITIALIZATIONS: Mapping[str, Callable[..., LowRank]] = {
    "pissa": _pissa,
    "olora": _olora,
}
"""The function from W0, the rank and the scale of a layer to the subtracted part, by `init_lora_weights`."""
