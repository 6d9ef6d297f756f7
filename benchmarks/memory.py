"""Derive the memory and the time of training Stable Diffusion on a GPU from the models' configurations; none is needed.

    python benchmarks/memory.py [--teraflops 12]

The denoiser runs one training step on PyTorch's meta device, where tensors have shapes and no numbers. All memory that
the step holds at once is counted, and so are its multiplications. Attention counts as CUDA's fused kernels work: they
keep no matrix of all pairs. Added are the weights of the other parts, and for each trained number its value, its
gradient and the optimizer's state. Not counted are what CUDA itself takes and what its allocator wastes, about 1 GB.
Minutes are those of 250 steps at a sustained speed, by default about half of what an RTX 3060 does in half precision.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro
from diffusers import UNet2DConditionModel
from full_size import UNET
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SDXL = {
    **UNET,
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
STEPS = 250
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Model:
    """A family in full size."""

    unet: Mapping[str, Any]
    other_parameters: int
    """Numbers in the text encoders and the autoencoder."""


MODELS = {
    "SD 1.5, 512 px": Model(unet=UNET, other_parameters=123_060_480 + 83_653_863),
    "SDXL, 1024 px": Model(unet=SDXL, other_parameters=123_060_480 + 694_659_840 + 83_653_863),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the training is run."""

    options: str
    pictures: int
    """Target and regularization pictures of a step."""
    dtype: torch.dtype
    recompute: bool = False
    optimizer_bytes: int = 8
    """For each trained number: two moments in float32, or in 8 bits each."""
    trains_weights: bool = True
    """Whether keys and values are trained, and not the token alone."""
    scale: float = 1.0
    """Side of the pictures, relative to the model's own."""


SETTINGS = (
    Setting(options="(none)", pictures=8, dtype=torch.float32),
    Setting(options="--dtype bfloat16", pictures=8, dtype=torch.bfloat16),
    Setting(options="--dtype bfloat16 --recompute", pictures=8, dtype=torch.bfloat16, recompute=True),
    Setting(options="--dtype bfloat16 --recompute --batch 1", pictures=2, dtype=torch.bfloat16, recompute=True),
    Setting(
        options="the same with --optimizer adamw8bit",
        pictures=2,
        dtype=torch.bfloat16,
        recompute=True,
        optimizer_bytes=2,
    ),
    Setting(
        options="--method textual-inversion at half the side",
        pictures=2,
        dtype=torch.bfloat16,
        recompute=True,
        trains_weights=False,
        scale=0.5,
    ),
)


class FusedAttention(torch.autograd.Function):
    """Attention as fused kernels hold it: inputs and output are kept, no matrix of all pairs."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return an output of the right shape."""
        output = torch.empty_like(query)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, _gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of the right shapes."""
        query, key, value, _ = context.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@dataclass
class Attentions:
    """Stands in for PyTorch's attention, and counts its multiplications."""

    flops: float = 0.0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *_arguments: Any, **_options: Any) -> Tensor:
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.flops += 4 * pairs * query.shape[-1] * (3.5 if torch.is_grad_enabled() else 1)
        apply: Any = FusedAttention.apply
        return apply(query, key, value)


@dataclass
class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that exist at once, without those of the weights, of which steps make views."""

    weights: Sequence[Tensor]
    now: int = 0
    peak: int = 0
    known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known |= {weight.untyped_storage()._cdata for weight in self.weights}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def denoiser(model: Model, setting: Setting) -> tuple[Any, int]:
    """Return the denoiser without numbers, and how many of them are trained."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**model.unet).to(setting.dtype).requires_grad_(False)
    trained = [
        weight
        for name, weight in unet.named_parameters()
        if setting.trains_weights and name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    ]
    for weight in trained:
        weight.requires_grad_(True)
    return unet, sum(weight.numel() for weight in trained)


def step(model: Model, setting: Setting) -> tuple[float, float]:
    """Return the memory of a training in bytes, and the floating-point operations of a step."""
    unet, trained = denoiser(model, setting)
    if setting.recompute:
        unet.enable_gradient_checkpointing()
    side, count = int(model.unet["sample_size"] * setting.scale), setting.pictures
    how: dict[str, Any] = {"device": "meta", "dtype": setting.dtype}
    latents = torch.empty(count, 4, side, side, **how)
    text = torch.empty(count, 77, model.unet["cross_attention_dim"], **how, requires_grad=True)
    added = None
    if "addition_embed_type" in model.unet:
        added = {"text_embeds": torch.empty(count, 1280, **how), "time_ids": torch.empty(count, 6, **how)}
    timesteps = torch.zeros(count, dtype=torch.long, device="meta")
    usual, attentions = functional.scaled_dot_product_attention, Attentions()
    functional.scaled_dot_product_attention = attentions
    try:
        with FlopCounterMode(display=False) as flops, LiveMemory([*unet.parameters()]) as memory:
            predicted = unet(latents, timesteps, text, added_cond_kwargs=added).sample
            predicted.float().square().mean().backward()
    finally:
        functional.scaled_dot_product_attention = usual
    size = setting.dtype.itemsize
    weights = (sum(weight.numel() for weight in unet.parameters()) - trained + model.other_parameters) * size
    state = trained * (4 + 4 + setting.optimizer_bytes)
    gradients = trained * size  # are counted in the step already
    return weights + state + memory.peak - gradients, flops.get_total_flops() + attentions.flops


def main(*, teraflops: float = 12.0) -> None:
    """Derive and print.

    Args:
        teraflops: Sustained speed of the GPU in half precision, in 10^12 floating-point operations per second. In
            float32 half of it is assumed.
    """
    print(f"{'':18s}{'options':46s}{'GB':>6}{'minutes':>9}")
    for name, model in MODELS.items():
        for setting in SETTINGS:
            memory, flops = step(model, setting)
            speed = teraflops * (0.5 if setting.dtype == torch.float32 else 1)
            minutes = STEPS * flops / (speed * 1e12) / 60
            print(f"{name:18s}{setting.options:46s}{memory / GB:6.1f}{minutes:9.0f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
