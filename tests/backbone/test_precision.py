import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone, precision
from moongate.backbone.precision import set_precision, usual_dtype
from moongate.data import Subject
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS


@pytest.mark.parametrize(
    ("listed", "seconds", "expected"),
    [
        pytest.param("avx512_bf16 amx_bf16", None, torch.bfloat16, id="matrix units"),
        pytest.param("avx512_bf16 amx_tile", {torch.bfloat16: 0.5, torch.float32: 1.0}, torch.bfloat16, id="fast"),
        pytest.param("avx512_bf16", {torch.bfloat16: 0.9, torch.float32: 1.0}, torch.float32, id="no gain"),
        pytest.param("avx2", None, torch.float32, id="no instructions"),
        pytest.param(None, None, torch.float32, id="nothing known"),
    ],
)
def test_bfloat16_is_usual_on_cpus_that_gain_by_it_alone(
    listed: str | None, seconds: dict[torch.dtype, float] | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: listed is not None)
    monkeypatch.setattr(Path, "read_text", lambda _: f"flags\t: fpu {listed} sse2\n")
    monkeypatch.setattr(precision, "_product_s", lambda dtype: seconds[dtype] if seconds else pytest.fail("not timed"))
    precision._gains_by_bfloat16.cache_clear()
    assert usual_dtype("cpu") == expected
    assert usual_dtype("cuda") == torch.float32
    precision._gains_by_bfloat16.cache_clear()


def test_a_product_is_timed_in_both_precisions_within_a_second() -> None:
    assert all(0 < precision._product_s(dtype) < 1 for dtype in (torch.float32, torch.bfloat16))


@pytest.fixture
def _switches_kept() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_switches_kept")
def test_who_names_float32_gets_no_tf32() -> None:
    found = {}
    for name in ("auto", "bfloat16", "float16", "float32"):
        dtype = set_precision(name, "cuda")
        found[name] = (dtype, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert found == {
        "auto": (torch.float32, True, True),
        "bfloat16": (torch.bfloat16, True, True),
        "float16": (torch.float16, True, True),
        "float32": (torch.float32, False, False),
    }


def test_attention_in_bfloat16_on_a_cpu_is_the_fused_one_up_to_rounding(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Backbone.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    monkeypatch.setattr("moongate.backbone.faster_attention", lambda _denoiser, _encoders: None)
    fused = Backbone.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    exact = Backbone.load(tiny_folder, device="cpu")
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    found = []
    for backbone in (quick, fused, exact):
        with torch.no_grad():
            found.append(backbone.predict(noisy, timesteps, backbone.encode_text(["photo of a dog", "a bear"])))
    errors = [float((one - found[2]).norm() / found[2].norm()) for one in found[:2]]
    assert errors[0] < 0.03
    assert errors[0] < 2 * errors[1]
    names = {type(module.processor).__name__ for module in quick.cross_attentions().values()}
    assert names == {"AttnProcessor"}
    names = {type(module.processor).__name__ for module in exact.cross_attentions().values()}
    assert names == {"AttnProcessor2_0"}
    assert [backbone.text_encoder.config._attn_implementation for backbone in (quick, exact)] == ["eager", "sdpa"]


def test_self_attention_of_large_pictures_stays_fused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SMALL_LATENTS", 8 * 8 - 1)
    backbone = Backbone.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    kinds = {name[-5:]: type(processor).__name__ for name, processor in _processors(backbone)}
    assert kinds == {"attn1": "AttnProcessor2_0", "attn2": "AttnProcessor"}


def _processors(backbone: Backbone) -> list[tuple[str, object]]:
    return [(name, part.processor) for name, part in backbone.unet.named_modules() if name.endswith(("attn1", "attn2"))]


@pytest.mark.parametrize("method", ["custom-diffusion-without-regularization", "fine-tune-all"])
def test_channels_last_where_they_are_faster_give_the_same_concept_up_to_rounding(
    method: str, tiny_folder: Path, make_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = []
    for capability, is_last in (("AVX2", True), ("AVX512", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        backbone = Backbone.load(tiny_folder, device="cpu")
        weights = [weight for weight in backbone.unet.parameters() if weight.dim() == 4 and weight.shape[-1] == 3]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights) == is_last
        chosen = dataclasses.replace(METHODS[method], prior_weight=0.0)
        concept = train(backbone, [make_subject()], [], chosen, options=TrainOptions(steps=2, batch=2))
        changes.append({name: change.full() for name, change in concept.deltas.items()})
    for name, change in changes[0].items():
        # Adam's first steps are nearly signs of gradients, which amplify rounding in the smallest of them.
        assert (change - changes[1][name]).norm() <= 0.1 * change.norm(), name


def test_a_wide_denoiser_keeps_its_layout(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(precision, "NARROW", 1)
    before = tiny.unet.conv_in.weight.stride()
    assert precision.faster_layout(tiny.unet).conv_in.weight.stride() == before
