"""How much memory a training takes, computed before it begins.

Weights, gradients and the optimizer's state follow from the model and the method. The peak of a step is that of a trial
of its forward and backward pass on tensors without numbers (PyTorch's fake tensors): each has the shape, precision and
lifetime of the real one, so that attention, half precision and recomputed activations count as they are. The trial
takes seconds and no memory. What kernels and the allocator take in addition is unknown; `ALLOWANCE` stands for it.
"""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moongate.backbone import Backbone, Conditioning
from moongate.errors import OptionError, warn
from moongate.training.batches import encoded_at_once
from moongate.training.optimizer import OPTIMIZERS
from moongate.training.plan import Plan

__all__ = ["Need", "Setting", "available_memory", "check_fits", "needed", "remedies"]

ALLOWANCE = 1.1
"""Factor for what kernels and the allocator take in addition to the tensors."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the memory of a training depends on, apart from the model."""

    targets_per_step: int
    """Target pictures that are computed together: those of a shard of a step."""
    pictures_per_step: int
    """The same with regularization pictures."""
    resolution_px: int
    dtype: torch.dtype
    optimizer: str
    recompute: bool

    @classmethod
    def of(cls, plan: Plan) -> "Setting":
        """Return the setting of a plan."""
        return cls(
            targets_per_step=plan.targets_per_step // plan.shards,
            pictures_per_step=plan.pictures_per_step // plan.shards,
            resolution_px=plan.resolution_px,
            dtype=plan.backbone.dtype,
            optimizer=plan.options.optimizer,
            recompute=plan.options.recompute,
        )


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a training takes at its peak."""

    weights: int
    """The model, and float32 copies of what is trained: those that move and the pretrained ones."""
    optimizer: int
    step: int
    """Gradients, activations and all else that lives at the peak of a step."""
    encoding: int = 0
    """What lives at the peak of the autoencoder, which encodes the pictures before the first step."""

    @property
    def tensors(self) -> int:
        """All of it, with nothing for kernels and the allocator."""
        return self.weights + max(self.encoding, self.optimizer + self.step)

    @property
    def total(self) -> int:
        """All of it, with an allowance."""
        return self.weights + round(max(ALLOWANCE * self.encoding, self.optimizer + ALLOWANCE * self.step))


def needed(plan: Plan, setting: Setting | None = None) -> Need:
    """Return how much memory the training of a plan takes.

    Args:
        plan: The training.
        setting: Changes to the plan; None is the plan as it is.
    """
    setting = setting or Setting.of(plan)
    backbone = plan.backbone
    names = backbone.weights(plan.method.weights) if plan.method.weights else {}
    trained = sum(weight.numel() for weight in names.values())
    rows = sum(row.numel() for row in plan.first_rows.values()) if plan.method.trains_tokens else 0
    modules: list[nn.Module] = [backbone.unet, backbone.vae, *(encoder.model for encoder in backbone.encoders)]
    base = sum(
        weight.numel() * (setting.dtype.itemsize if weight.is_floating_point() else weight.element_size())
        for module in modules
        for weight in module.parameters()
    )
    # The base's own values of trained weights stay next to the copy that moves and, unless it shares them, the copy
    # that changes are measured from.
    copies = trained * 4 * (1 if setting.dtype == torch.float32 else 2)
    return Need(
        weights=base + copies,
        optimizer=(trained + rows) * OPTIMIZERS[setting.optimizer],
        step=_peak(plan, setting, set(names)),
        encoding=_peak_of_encoding(backbone, setting),
    )


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that a training could take on a CUDA device, the loaded model included; None on others."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def check_fits(plan: Plan, need: Need, available: int) -> None:
    """Check that a training fits; warn if it may not.

    Args:
        plan: The training.
        need: What it takes.
        available: Bytes that there are.

    Raises:
        OptionError: The tensors alone are larger; the message names the options that would make it fit.
    """
    if need.total <= available:
        return
    ways = remedies(plan, available)
    advice = (
        f"It would fit with {', or with '.join(ways)}." if ways else "No option makes it fit: take a smaller model."
    )
    text = f"The training takes about {need.total / 1e9:.1f} GB, but {available / 1e9:.1f} GB are there. {advice}"
    if need.tensors > available:
        raise OptionError(f"{text} To try all the same, add --ignore-memory.")
    warn(text)


def remedies(plan: Plan, available: int) -> list[str]:
    """Return the options that would make a training fit, alone or added up, each with what it would take.

    Args:
        plan: The training.
        available: Bytes that there are.

    Returns:
        Such as "--recompute (7.9 GB)"; empty if nothing makes it fit.
    """
    setting = Setting.of(plan)
    side = plan.backbone.resolution_px
    one_target = {"targets_per_step": 1, "pictures_per_step": plan.pictures_per_step // plan.targets_per_step}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("--dtype bfloat16 (or float16)", {"dtype": torch.bfloat16}),
        ("--recompute", {"recompute": True}),
        (f"--batch {plan.shards}", one_target),
        ("--optimizer adamw8bit", {"optimizer": "adamw8bit"}),
        (f"--resolution {side // 2}", {"resolution_px": side // 2}),
    ]
    changes = [(name, change) for name, change in changes if replace(setting, **change) != setting]
    found, together = [], setting
    for name, change in changes:
        need = needed(plan, replace(setting, **change)).total
        if need <= available:
            found.append(f"{name} ({need / 1e9:.1f} GB)")
    if found:
        return found
    for index, (_, change) in enumerate(changes):
        together = replace(together, **change)
        need = needed(plan, together).total
        if index and need <= available:
            return [" ".join(name for name, _ in changes[: index + 1]) + f" ({need / 1e9:.1f} GB)"]
    return []


def _peak(plan: Plan, setting: Setting, trained: set[str]) -> int:
    """Return the most bytes that are alive at once in a forward and backward pass, without the weights."""
    backbone = plan.backbone
    trial = _Trial(backbone, setting)
    recomputed = backbone.activations_recomputed() if setting.recompute else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), recomputed:
        fakes = {}
        for name, weight in trial.named_parameters():
            kind = torch.float32 if name in trained or not weight.is_floating_point() else setting.dtype
            fake = torch.empty(weight.shape, dtype=kind, device=weight.device)
            fakes[name] = fake.requires_grad_(name in trained)
        leaves = [fakes[name] for name in sorted(trained)]
        rows = [
            torch.empty(row.shape, device=row.device).requires_grad_(plan.method.trains_tokens)
            for row in plan.first_rows.values()
        ]
        leaves += [row for row in rows if row.requires_grad]
        with backbone.tokens(dict(zip(plan.first_rows, rows, strict=True))), _Live() as live:
            functional_call(trial, fakes, (_captions(plan, setting), leaves), strict=False)
    return live.peak


def _peak_of_encoding(backbone: Backbone, setting: Setting) -> int:
    """Return the most bytes that are alive at once while pictures are encoded."""
    vae = backbone.vae
    is_upcast = setting.dtype == torch.float16 and vae.config.get("force_upcast", False)  # as in `Backbone`
    kind = torch.float32 if is_upcast else setting.dtype
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fakes = {
            name: torch.empty(weight.shape, dtype=kind, device=weight.device) for name, weight in vae.named_parameters()
        }
        side = setting.resolution_px
        images = torch.empty(encoded_at_once(side), 3, side, side, dtype=kind, device=vae.device)
        with _Live() as live:
            functional_call(_Encoding(vae), {f"vae.{name}": fake for name, fake in fakes.items()}, (images,))
    return live.peak


class _Encoding(nn.Module):
    """The autoencoder's first half."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, images: Tensor) -> Any:
        return self.vae.encode(images)


def _captions(plan: Plan, setting: Setting) -> list[str]:
    """Return a caption for each target picture; their words do not matter, but one must name the tokens."""
    named = " ".join(plan.first_rows)
    return [f"photo of {named}"] * setting.targets_per_step


class _Trial(nn.Module):
    """One step on pictures of no content, with the weights that `functional_call` puts in place."""

    def __init__(self, backbone: Backbone, setting: Setting) -> None:
        super().__init__()
        self.unet = backbone.unet
        self.texts = nn.ModuleList([encoder.model for encoder in backbone.encoders])
        self._backbone = backbone
        self._setting = setting

    def forward(self, captions: list[str], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        backbone, setting = self._backbone, self._setting
        cells = setting.resolution_px // backbone.latent_scale
        shape = (setting.pictures_per_step, int(backbone.unet.config.in_channels), cells, cells)
        text = backbone.encode_text(captions)
        if setting.pictures_per_step > setting.targets_per_step:
            pooled = None if text.pooled is None else text.pooled.detach()
            text = Conditioning.cat([text, Conditioning(features=text.features.detach(), pooled=pooled)])
        noisy = torch.empty(shape, device=backbone.device)
        timesteps = torch.zeros(shape[0], dtype=torch.long, device=backbone.device)
        loss = backbone.predict(noisy, timesteps, text).square().mean()
        return torch.autograd.grad(loss, list(leaves), allow_unused=True)


class _Live(TorchDispatchMode):
    """Adds up the bytes of tensors while they are alive. Tensors that are there already do not count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, counts=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, counts=True)
        return result

    def _meet(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
