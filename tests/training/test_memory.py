from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from conftest import all_weights
from moongate.backbone import Backbone
from moongate.data import Regularization, Subject
from moongate.errors import MoongateWarning, OptionError
from moongate.training import Plan, TrainOptions, memory
from moongate.training.memory import Need, Setting, available_memory, check_fits, needed, remedies
from moongate.training.method import METHODS

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


def planned(
    backbone: Backbone, subject: Subject, prior: Regularization, method: str = METHOD.name, **options: object
) -> Plan:
    chosen = METHODS[method]
    priors = [prior] if chosen.prior_weight else []
    return Plan.of(backbone, [subject], priors, chosen, options=TrainOptions(**{"batch": 2, **options}))


def saved_bytes(backbone: Backbone, plan: Plan) -> int:
    """Return the bytes that a real forward pass keeps for the backward pass, without the model's weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in all_weights(backbone).values()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    names = backbone.weights("cross-attention-kv")
    for weight in names.values():
        weight.requires_grad_(True)
    row = plan.first_rows["<bear>"].clone().requires_grad_(True)
    with backbone.tokens({"<bear>": row}), saved_tensors_hooks(pack, lambda tensor: tensor):
        text = backbone.encode_text(["photo of <bear>"] * 2)
        text = type(text).cat([text, backbone.encode_text(["photo of <bear>"] * 2)])
        backbone.predict(torch.zeros(4, 4, 8, 8), torch.zeros(4, dtype=torch.long), text).square().mean()
    for weight in names.values():
        weight.requires_grad_(False)
    return sum(storages.values())


def test_the_peak_of_a_step_holds_what_a_real_pass_keeps_and_little_else(
    each: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plan = planned(each, make_subject(), prior)
    kept = saved_bytes(each, plan)
    assert kept <= needed(plan).step <= 1.5 * kept


def test_weights_and_optimizer_are_counted_by_hand(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    trained = sum(weight.numel() for weight in tiny.weights("cross-attention-kv").values())
    base = sum(weight.numel() for part in (tiny.unet, tiny.vae, tiny.text_encoder) for weight in part.parameters())
    plan = planned(tiny, make_subject(), prior)
    need = needed(plan)
    assert need.weights == 4 * (base + trained)
    assert need.optimizer == 8 * (trained + 16)
    small = needed(plan, replace(Setting.of(plan), dtype=torch.float16, optimizer="adamw8bit"))
    assert small.weights == 2 * base + 4 * 2 * trained
    assert small.optimizer == 2 * (trained + 16)
    tokens = needed(planned(tiny, make_subject(), prior, "textual-inversion"))
    assert (tokens.weights, tokens.optimizer) == (4 * base, 8 * 16)


def test_what_saves_memory_lowers_the_peak_and_more_pictures_raise_it(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plan = planned(tiny, make_subject(), prior)
    usual, peak = Setting.of(plan), needed(plan).step
    assert needed(plan, replace(usual, recompute=True)).step < peak
    assert needed(plan, replace(usual, dtype=torch.bfloat16)).step < peak
    assert needed(plan, replace(usual, targets_per_step=1, pictures_per_step=2)).step < peak
    assert needed(plan, replace(usual, resolution_px=128)).step > 2 * peak
    assert not tiny.unet.down_blocks[0].gradient_checkpointing


def test_at_most_sixteen_pictures_are_encoded_at_once_before_the_memory_of_a_step_is_taken(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plan = planned(tiny, make_subject(), prior)
    usual, picture = needed(plan).encoding, 4 * 3 * 64 * 64
    more = needed(plan, replace(Setting.of(plan), targets_per_step=32, pictures_per_step=64))
    assert usual > 16 * picture
    assert more.encoding == usual
    need = Need(weights=100, optimizer=20, step=30, encoding=60)
    assert (need.tensors, need.total) == (100 + 60, 100 + 66)
    need = replace(need, step=50)
    assert (need.tensors, need.total) == (100 + 20 + 50, 100 + 20 + 55)


def test_a_method_that_trains_the_denoiser_needs_more(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    wide, usual = (needed(planned(tiny, make_subject(), prior, name)) for name in ("fine-tune-all", METHOD.name))
    assert wide.optimizer > 5 * usual.optimizer
    assert wide.step > usual.step


@pytest.fixture
def by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training take 1 GB for each picture, halved by a half precision and by recomputation."""

    def rule(_plan: Plan, setting: Setting) -> Need:
        factor = (0.5 if setting.dtype == torch.bfloat16 else 1) * (0.5 if setting.recompute else 1)
        return Need(weights=round(setting.pictures_per_step * 1e9 * factor), optimizer=0, step=0)

    monkeypatch.setattr(memory, "needed", rule)


@pytest.mark.usefixtures("by_rule")
def test_options_that_make_it_fit_are_named_alone_or_together(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plan = planned(tiny, make_subject(), prior)
    alone = ["--dtype bfloat16 (or float16) (2.0 GB)", "--recompute (2.0 GB)", "--batch 1 (2.0 GB)"]
    assert remedies(plan, 2_000_000_000) == alone
    assert remedies(plan, 1_000_000_000) == ["--dtype bfloat16 (or float16) --recompute (1.0 GB)"]
    assert remedies(plan, 100_000_000) == []
    in_shards = planned(tiny, make_subject(), prior, batch=4, shards=2)
    assert remedies(in_shards, 2_000_000_000)[-1] == "--batch 2 (2.0 GB)", "one target picture for each shard"


@pytest.mark.usefixtures("by_rule")
def test_what_does_not_fit_is_refused_and_what_may_not_fit_is_warned_of(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plan = planned(tiny, make_subject(), prior)
    need = Need(weights=1_000_000_000, optimizer=0, step=2_000_000_000)
    check_fits(plan, need, available=3_200_000_000)
    with pytest.warns(MoongateWarning, match=r"takes about 3.2 GB, but 3.1 GB are there. It would fit with --dtype"):
        check_fits(plan, need, available=3_100_000_000)
    with pytest.raises(OptionError, match=r"but 0.1 GB are there. No option.*To try all the same, add --ignore-memory"):
        check_fits(plan, need, available=100_000_000)


def test_memory_is_compared_on_cuda_alone() -> None:
    assert available_memory(torch.device("cpu")) is None
