"""How the trained parameters move: AdamW, its 8-bit form, and loss scaling for a base in float16.

A gradient in float16 that is below 6e-8 becomes zero. The loss is therefore multiplied by a large factor before the
backward pass and the gradients are divided by it before the step (Micikevicius et al., Mixed Precision Training, ICLR
2018). A step whose gradients overflow is left out and the factor halved. The module knows nothing of what is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moongate.extras import library

__all__ = ["OPTIMIZERS", "Optimizer", "OptimizerName", "check_optimizer"]

OptimizerName = Literal["adamw", "adamw8bit"]
OPTIMIZERS: Mapping[str, int] = {"adamw": 8, "adamw8bit": 2}
"""For each optimizer the bytes that it keeps for each trained number."""
SMALLEST_SCALE = 1e-6
"""A loss scale below this says that the gradients overflow whatever the scale."""


@dataclass(kw_only=True, eq=False)
class Optimizer:
    """An optimizer with its loss scale. `Optimizer.of` makes one."""

    _inner: torch.optim.Optimizer
    _scaler: torch.amp.GradScaler
    _broken: Float[Tensor, ""]
    """1 as soon as a loss was not finite, else 0; kept where the parameters are."""
    skipped_steps: int = 0
    """Steps so far that were left out because their gradients overflowed float16."""

    @classmethod
    def of(cls, learning_rates: Mapping[nn.Parameter, float], *, name: OptimizerName, dtype: torch.dtype) -> Self:
        """Return an optimizer without weight decay, which the caller applies.

        Args:
            learning_rates: What is trained, float32, with the step size of AdamW for each.
            name: A key of `OPTIMIZERS`.
            dtype: Precision of the base. Float16 needs loss scaling, other precisions do not.

        Raises:
            MissingLibrary: The optimizer needs bitsandbytes, which is not installed.
        """
        kind = (
            library("bitsandbytes").optim.AdamW8bit if name == "adamw8bit" else partial(torch.optim.AdamW, fused=True)
        )
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter, rate in learning_rates.items():
            groups.setdefault(rate, []).append(parameter)
        device = next(iter(learning_rates)).device
        return cls(
            _inner=kind([{"params": group, "lr": rate} for rate, group in groups.items()], weight_decay=0.0),
            _broken=torch.zeros((), device=device),
            _scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        )

    @property
    def scales_loss(self) -> bool:
        """Whether a loss or gradient that is not finite leaves its step out and the run goes on."""
        return self._scaler.is_enabled()

    @property
    def overflows(self) -> bool:
        """Whether gradients have overflowed float16 again and again, however small the loss scale."""
        return self.scales_loss and self._scaler.get_scale() < SMALLEST_SCALE

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of a loss, multiplied by the loss scale."""
        self._scaler.scale(loss).backward()

    def step(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Move the parameters by the gradients added up so far, and clear these.

        Without loss scaling nothing moves from the first loss on that is not finite, so that the parameters stay those
        before it until the loss is read. Only AdamW can do so without waiting for the device; its 8-bit form moves.

        Args:
            loss: The loss of the step.

        Returns:
            1 if the parameters moved, and 0 if not.
        """
        if self._scaler.is_enabled():
            return self._scaled_step()
        self._broken = torch.maximum(self._broken, (~loss.isfinite()).float())
        if isinstance(self._inner, torch.optim.AdamW):
            self._inner.found_inf = self._broken  # type: ignore[attr-defined]
        self._inner.step()
        self._inner.zero_grad(set_to_none=True)
        return 1 - self._broken

    def _scaled_step(self) -> Float[Tensor, ""]:
        scale = self._scaler.get_scale()
        self._scaler.step(self._inner)
        self._scaler.update()
        self._inner.zero_grad(set_to_none=True)
        is_moved = self._scaler.get_scale() >= scale
        self.skipped_steps += not is_moved
        return torch.full_like(self._broken, is_moved)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes."""
        state: dict[str, Any] = {"optimizer": self._inner.state_dict()}
        if self._scaler.is_enabled():
            state |= {"loss_scale": self._scaler.state_dict(), "skipped_steps": self.skipped_steps}
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._inner.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["loss_scale"])
            self.skipped_steps = int(state["skipped_steps"])


def check_optimizer(name: OptimizerName) -> None:
    """Check that an optimizer can be used on this machine.

    Raises:
        MissingLibrary: It needs bitsandbytes, which is not installed; the message has the command that installs it.
    """
    if name == "adamw8bit":
        library("bitsandbytes")
