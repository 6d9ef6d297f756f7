"""Compare the time to train one concept with that of a plain loop that works as the public diffusers example does.

    python benchmarks/one_concept.py [--model FOLDER | --model sd15-random] [--json]

Three sides train with eight pictures a step: `ours` as `moongate train` does by default, `exact` the same in float32,
and `plain`. The plain loop runs the autoencoder, the text encoder and the denoiser on all eight pictures in every step,
in float32, with diffusers' own attention processors for Custom Diffusion, the whole embedding table in the optimizer,
and one wait for the loss. Its pictures are ready in memory, because the example loads them in other processes.

The sides take turns, round by round, each time in a separate child process, so that one model is in memory at a time.
A round is a whole training of 250 steps. The time of `ours` includes what is computed before the first step. In shorter
rounds, the time to encode pictures is divided by the steps of the round, which has as many regularization pictures for
each step as a training with 200 pictures, and that of what a training does once, such as reading neutral captions, by
250 steps. The first step of each round, which prepares kernels, is left out, except of `sd15-random` on a CPU, where a
round has one step. Memory is the peak above what the child held after loading the model, added up over its processes.
Where `ours` computes in float32 anyway, `exact` is the same and not run. With --json the last line is one JSON object.
"""

import contextlib
import json as jsonlib
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from full_size import full_size_backbone
from processes import in_child, memory_now, memory_peak
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moongate.backbone import Backbone, usual_dtype
from moongate.data import Regularization, Subject, square
from moongate.pocket import example, pool_folder
from moongate.training import Plan, TrainOptions, train
from moongate.training.batches import Batches
from moongate.training.method import method_for
from moongate.training.processes import processes_for, together
from moongate.training.speed import matmul_peak

SUBJECT, TOKEN = "drawn-house", "<house>"
RANDOM = "sd15-random"
"""Stable Diffusion 1.5 in full size, with random weights."""
STEPS, REGULARIZATION = 250, 200
"""Length of the paper's training of one concept, and its number of regularization pictures."""
TARGETS = 4
"""Target pictures of a step; as many regularization pictures join them."""
FEW_STEPS = 1
"""Timed steps in a round of a large model on a CPU, whose parts are not measured."""
SIDES = ("ours", "exact", "plain")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all sides train in each round."""

    model: str
    side_px: int
    steps: int
    """Timed steps of a side."""
    warm: int = 1
    """Steps before the timed ones."""
    has_parts: bool = False
    """Whether operations and parts of a step are measured too, after the timed steps."""


@dataclass(frozen=True)
class Spent:
    """Time that passed, in seconds."""

    wall: float = 0.0
    cpu: float = 0.0
    """CPU time of all processes, which other programs disturb less."""

    @classmethod
    def so_far(cls) -> "Spent":
        """Return the time until now; only differences mean anything."""
        return cls(time.perf_counter(), cpu_seconds())

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall - other.wall, self.cpu - other.cpu)

    def __truediv__(self, count: int) -> "Spent":
        return Spent(self.wall / count, self.cpu / count)


@dataclass(kw_only=True)
class Round:
    """What a child measured."""

    step: Spent = Spent()
    """A step, without what comes before the first one."""
    encoding: Spent = Spent()
    """What encodes pictures before the first step; it grows with the number of steps."""
    once: Spent = Spent()
    """All else before the first step, once in a run however long it is."""
    steps: int
    """Steps whose pictures were encoded."""
    peak_bytes: int = 0
    """Peak above what the child held after loading the model."""
    flops: int = 0
    """Floating-point operations of a step."""
    matmul_flops: float = 0.0
    """Measured peak of a matrix product in the precision of this side, in operations per second."""
    parts: dict[str, float] = field(default_factory=dict)
    """Share of each part in a step's time."""

    @property
    def whole(self) -> Spent:
        """A step with its share of what comes before the first one, in a run of the usual length."""
        return self.step + self.encoding / self.steps + self.once / STEPS


Rounds = dict[str, list[Round]]
"""The rounds of each side."""


def main(
    *, model: str = "pocket", side_px: int | None = None, steps: int | None = None, rounds: int = 2, json: bool = False
) -> None:
    """Measure and print.

    Args:
        model: `pocket`, a folder in diffusers' layout, or `sd15-random`: SD 1.5 of full size with random weights.
        side_px: Side of the pictures for `sd15-random`; 512 on a GPU and 128 on a CPU by default.
        steps: Timed steps of each side in a round; 250, or 1 for `sd15-random` on a CPU.
        rounds: Number of rounds; the sides take turns.
        json: End with one line of JSON.
    """
    on_gpu = torch.cuda.is_available()
    is_large = model == RANDOM and not on_gpu
    steps = steps or (FEW_STEPS if is_large else STEPS)
    side_px = side_px or (512 if on_gpu else 128)
    setup = Setup(model=model, side_px=side_px, steps=steps, warm=0 if is_large else 1)
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    print(f"{model}, {rounds} rounds of {setup.steps} steps of {2 * TARGETS} pictures on {device}", flush=True)
    found = measured(setup, rounds, has_parts=not is_large)
    show(found)
    if json:
        print(jsonlib.dumps(figures(found)))


def measured(setup: Setup, rounds: int, *, has_parts: bool) -> Rounds:
    """Let the sides train in turns, each in a new child process, and print each round; the last one may show parts."""
    sides = [side for side in SIDES if side != "exact" or usual_dtype() != torch.float32]
    found: Rounds = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            one = in_child(child, side, replace(setup, has_parts=has_parts and number == rounds))
            found[side].append(one)
            print(
                f"round {number} {side:6s}{one.whole.wall:9.3f} s a step ({one.whole.cpu:.3f} s of the processor; "
                f"before the first {one.encoding.cpu:.1f} s for pictures and {one.once.cpu:.1f} s once), "
                f"{one.peak_bytes / 1e6:.0f} MB",
                flush=True,
            )
    return found if "exact" in found else {"ours": found["ours"], "exact": found["ours"], "plain": found["plain"]}


def figures(found: Rounds) -> dict[str, float]:
    """Return the figures of --json; seconds are medians of the rounds, because other programs disturb some of them."""
    seconds = {side: statistics.median(one.whole.wall for one in rounds) for side, rounds in found.items()}
    cpu = {side: statistics.median(one.whole.cpu for one in rounds) for side, rounds in found.items()}
    peaks = {side: max(one.peak_bytes for one in rounds) for side, rounds in found.items()}
    return {
        "seconds_per_step": seconds["ours"],
        "plain_seconds_per_step": seconds["plain"],
        "ratio": seconds["ours"] / seconds["plain"],
        "ratio_same_precision": seconds["exact"] / seconds["plain"],
        "cpu_seconds_per_step": cpu["ours"],
        "plain_cpu_seconds_per_step": cpu["plain"],
        "cpu_ratio": cpu["ours"] / cpu["plain"],
        "cpu_ratio_same_precision": cpu["exact"] / cpu["plain"],
        "peak_bytes": peaks["ours"],
        "plain_peak_bytes": peaks["plain"],
    }


def show(found: Rounds) -> None:
    """Print the speed of all sides, the parts of each, and the ratios."""
    for side, rounds in found.items():
        one, seconds = rounds[-1], statistics.median(one.whole.wall for one in rounds)
        print(f"{side:6s}{seconds:9.4f} s a step, {2 * TARGETS / seconds:.1f} pictures/s", end="")
        if one.parts:
            print(f", {one.flops / seconds / 1e12:.3f} TFLOP/s, MFU {one.flops / seconds / one.matmul_flops:.0%}")
            print("       " + ", ".join(f"{part} {share:.0%}" for part, share in one.parts.items()), end="")
        print()
    numbers = figures(found)
    for side, suffix in (("ours", ""), ("exact", "_same_precision")):
        wall, cpu = numbers[f"ratio{suffix}"], numbers[f"cpu_ratio{suffix}"]
        print(f"{side} takes {wall:.2f} of plain's time, and {cpu:.2f} of its processor time")
    print(f"ours takes {numbers['peak_bytes'] / numbers['plain_peak_bytes']:.2f} of plain's memory")


# --- a child ----------------------------------------------------------------------------------------------------------


def child(side: str, setup: Setup) -> Round:
    """Load the model, train one round, and return what was measured."""
    backbone, report = loaded(setup, exact=side != "ours"), Round(steps=setup.steps + setup.warm)
    work = plain_training if side == "plain" else our_training
    held = memory_held(backbone.device)
    began = Spent.so_far()
    marks: dict[int, Spent] = {}

    def mark(index: int = 0) -> None:
        """Note the time when the first step begins (0), and after steps."""
        if index in (0, setup.warm, report.steps):
            marks[index] = Spent.so_far()
        if index == report.steps:
            report.peak_bytes = added_peak(backbone.device, held)

    with encoding_measured(report):
        work(backbone, setup, report.steps, mark, mark)
    report.once = marks[0] - began - report.encoding
    report.step = (marks[report.steps] - marks[setup.warm]) / setup.steps
    if setup.has_parts:
        whole = plain_training if side == "plain" else partial(our_training, processes=1)
        trace(report, backbone, partial(whole, backbone, setup))
    return report


def loaded(setup: Setup, *, exact: bool) -> Backbone:
    """Return the model, in the precision that `moongate train` takes by default or in float32."""
    dtype = torch.float32 if exact else usual_dtype()
    if setup.model == RANDOM:
        return full_size_backbone(side_px=setup.side_px, has_full_autoencoder=True, dtype=dtype)
    return Backbone.load(setup.model, dtype=dtype)


def taught(backbone: Backbone, setup: Setup) -> tuple[Subject, Regularization]:
    """Return the subject, and as many regularization pictures for each step as in a run of the usual length."""
    chosen = example(SUBJECT)
    subject = Subject.load(chosen.training, category=chosen.category, token=TOKEN)
    pool = Regularization.load(pool_folder(), category=chosen.category, only_category=True)
    wanted = max(TARGETS, round(REGULARIZATION * (setup.steps + setup.warm) / STEPS))
    pool = Regularization(pictures=pool.pictures[:wanted], captions=pool.captions[:wanted])
    return subject, pool


def our_training(
    backbone: Backbone,
    setup: Setup,
    steps: int,
    on_step: Callable[[int], None],
    on_first: Callable[[], None],
    *,
    processes: int | None = None,
) -> None:
    """Train as `moongate train` does; `on_first` is called when the first step begins."""
    subject, pool = taught(backbone, setup)
    method, options = method_for(backbone), TrainOptions(steps=steps, batch=TARGETS)
    count = processes_for(Plan.of(backbone, [subject], [pool], method, options=options), processes)
    work = partial(train, backbone, [subject], [pool], method, options=options)
    with called_first(backbone, "predict", on_first):
        together(partial(work, on_step=lambda step: on_step(step.index)), processes=count)


@contextlib.contextmanager
def encoding_measured(report: Round) -> Iterator[None]:
    """Add to a round the time in which `Batches` encodes pictures."""
    made = Batches.__init__

    def timed_making(*arguments: Any, **named: Any) -> None:
        began = Spent.so_far()
        made(*arguments, **named)
        report.encoding += Spent.so_far() - began

    Batches.__init__ = timed_making  # type: ignore[method-assign]
    try:
        yield
    finally:
        Batches.__init__ = made  # type: ignore[method-assign]


@contextlib.contextmanager
def called_first(owner: Any, name: str, action: Callable[[], None]) -> Iterator[None]:
    """Do something before a method is called for the first time."""
    method, calls = getattr(owner, name), count()

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 0:
            action()
        return method(*arguments, **named)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, method)


# --- the plain loop ---------------------------------------------------------------------------------------------------


def plain_training(
    backbone: Backbone, setup: Setup, steps: int, on_step: Callable[[int], None], on_first: Callable[[], None]
) -> None:
    """Train as the public example does; `backbone` only holds the parts of the model."""
    unet, vae, text_encoder = backbone.unet, backbone.vae, backbone.text_encoder
    layers = processors_added(unet)
    tokenizer = backbone.tokenizer
    if TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([TOKEN])
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    token_id = tokenizer.convert_tokens_to_ids(TOKEN)
    table = text_encoder.get_input_embeddings().weight.requires_grad_(True)
    moving = [table, *layers.parameters()]
    optimizer = torch.optim.AdamW(moving, lr=8e-5, weight_decay=1e-2)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    others = torch.arange(len(tokenizer), device=backbone.device) != token_id
    batches = pictures_and_ids(backbone, setup)
    on_first()
    for index in range(1, steps + 1):
        pixels, ids, masks = (part.to(backbone.device) for part in next(batches))
        latents = latents_of(vae, pixels) * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, backbone.train_timesteps, (len(latents),), device=latents.device)
        noisy = backbone.schedule.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, text_encoder(ids)[0]).sample
        target = backbone.target(latents, noise, timesteps)
        (mine, prior), (wanted, wanted_prior) = predicted.chunk(2), target.chunk(2)
        error = F.mse_loss(mine, wanted, reduction="none") * masks
        loss = (error.sum([1, 2, 3]) / masks.sum([1, 2, 3])).mean() + F.mse_loss(prior, wanted_prior)
        loss.backward()
        assert table.grad is not None
        table.grad[others] = 0
        nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        constant.step()
        optimizer.zero_grad()
        loss.item()
        on_step(index)


def processors_added(unet: Any) -> nn.ModuleList:
    """Give each attention of the denoiser diffusers' processor for Custom Diffusion; return those with own weights."""
    processors = {}
    for name, module in unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            is_cross = name.endswith(".attn2")
            processor = CustomDiffusionAttnProcessor2_0(
                train_kv=is_cross,
                train_q_out=False,
                hidden_size=module.to_k.out_features,
                cross_attention_dim=module.to_k.in_features if is_cross else None,
            ).to(unet.device)
            if is_cross:
                processor.to_k_custom_diffusion.load_state_dict(module.to_k.state_dict())
                processor.to_v_custom_diffusion.load_state_dict(module.to_v.state_dict())
            processors[f"{name}.processor"] = processor
    unet.set_attn_processor(dict(processors))
    return nn.ModuleList(processors.values())


def pictures_and_ids(backbone: Backbone, setup: Setup) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches without end: pictures, token ids, and masks in which all cells count."""
    subject, pool = taught(backbone, setup)
    halves = []
    for pictures, captions in ((subject.pictures, subject.captions), (pool.pictures, pool.captions)):
        pixels = torch.stack([square(picture, backbone.resolution_px) for picture in pictures])
        halves.append((pixels, ids_of(backbone, captions)))
    cells = backbone.resolution_px // backbone.latent_scale
    masks = torch.ones(TARGETS, 1, cells, cells)
    for index in count():
        rows = [torch.arange(index * TARGETS, (index + 1) * TARGETS) % len(pixels) for pixels, _ in halves]
        chosen = [(pixels[row], ids[row]) for (pixels, ids), row in zip(halves, rows, strict=True)]
        yield torch.cat([pixels for pixels, _ in chosen]), torch.cat([ids for _, ids in chosen]), masks


def ids_of(backbone: Backbone, captions: Sequence[str]) -> Tensor:
    """Return the token ids of captions, as long as the text encoder reads."""
    tokenizer = backbone.tokenizer
    padded = tokenizer(list(captions), padding="max_length", truncation=True,
                       max_length=tokenizer.model_max_length, return_tensors="pt")  # fmt: skip
    return padded.input_ids


def latents_of(vae: Any, pixels: Tensor) -> Tensor:
    """Encode pictures as the example does: by a sample of the posterior, if the autoencoder has one."""
    with torch.no_grad():
        encoded = vae.encode(pixels)
        return encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latents


# --- measuring --------------------------------------------------------------------------------------------------------


def trace(report: Round, backbone: Backbone, work: Callable[..., None]) -> None:
    """Train a little more, and fill in a step's operations and the share of its parts."""
    counter = FlopCounterMode(display=False)
    seen: list[int] = []

    def count_one(index: int) -> None:
        if index == 1:
            counter.__enter__()
        elif index == 2:
            counter.__exit__(None, None, None)
            seen.append(counter.get_total_flops())

    work(2, count_one, lambda: None)
    report.flops = seen[0]
    timers: dict[str, float] = {}
    began, ended = [], []

    def time_steps(index: int) -> None:
        synchronize(backbone.device)
        if index == 1:
            timers.clear()
            began.append(time.perf_counter())
        elif index == 3:
            ended.append(time.perf_counter())

    with contextlib.ExitStack() as stack:
        for owner, name, part in (
            (backbone.vae, "encode", "autoencoder"),
            (backbone.text_encoder, "forward", "text encoder"),
            (backbone.unet, "forward", "denoiser"),
            (torch.Tensor, "backward", "backward pass"),
            (torch.optim.AdamW, "step", "optimizer"),
        ):
            stack.enter_context(timed(owner, name, part, timers, backbone.device))
        work(3, time_steps, lambda: None)
    whole = ended[0] - began[0]
    timers["the rest"] = whole - sum(timers.values())
    report.parts = {part: seconds / whole for part, seconds in timers.items()}
    report.matmul_flops = matmul_peak(backbone.device, backbone.dtype)


@contextlib.contextmanager
def timed(owner: Any, name: str, part: str, timers: dict[str, float], device: torch.device) -> Iterator[None]:
    """Add the time of each call of a method to a part."""
    method = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        synchronize(device)
        began = time.perf_counter()
        result = method(*arguments, **named)
        synchronize(device)
        timers[part] = timers.get(part, 0.0) + time.perf_counter() - began
        return result

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, method)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory_held(device: torch.device) -> int:
    """Return the bytes that this process holds now, and begin to look for the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        return memory_now()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def added_peak(device: torch.device, held: int) -> int:
    """Return the most bytes that this process and those forked from it held since `memory_held`, beyond `held`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() - held
    with contextlib.suppress(OSError):
        return sum(memory_peak(process) - held for process in family())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those forked from it so far."""
    ticks = 0
    for process in family():
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system time
    return ticks / os.sysconf("SC_CLK_TCK")


def family() -> list[int]:
    """Return this process and those that were forked from it."""
    return [os.getpid(), *(process.pid for process in multiprocessing.active_children() if process.pid)]


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
