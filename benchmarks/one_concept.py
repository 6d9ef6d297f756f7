"""Time the training of one concept, beside a plain loop that works as the public diffusers example does.

    python benchmarks/one_concept.py [--model FOLDER | --model sd15-random] [--json]

Three sides train with eight pictures a step: `ours` as `moongate train` does by default, `exact` the same in float32,
and `plain`. The plain loop runs the autoencoder, the text encoder and the denoiser on all eight pictures in every step,
in float32, with diffusers' own attention processors for Custom Diffusion, the whole embedding table in the optimizer,
and one wait for the loss. Its pictures are ready in memory, because the example loads them in other processes.

Each side lives in a child process of its own, and they train in turns, round by round. The time of `ours` includes what
is computed before the first step, shared out over the steps of this run; it has as many regularization pictures for
each step as a run of 250 steps with 200 pictures. The first step of each side, which prepares kernels, is left out.
Memory is the peak above what the child held after loading the model. With --json the last line is one JSON object.
"""

import contextlib
import json as jsonlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from full_size import full_size_backbone
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moongate.backbone import Backbone, usual_dtype
from moongate.data import Regularization, Subject, square
from moongate.pocket import example, pool_folder
from moongate.training import TrainOptions, train
from moongate.training.speed import matmul_peak

SUBJECT, TOKEN = "drawn-house", "<house>"
RANDOM = "sd15-random"
"""Stable Diffusion 1.5 in full size, with random weights."""
STEPS, REGULARIZATION = 250, 200
"""Length of the paper's training of one concept, and its number of regularization pictures."""
TARGETS = 4
"""Target pictures of a step; as many regularization pictures join them."""
FEW_STEPS = 6
"""Timed steps of a large model on a CPU."""
SIDES = ("ours", "exact", "plain")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all sides train."""

    model: str
    side_px: int
    steps: int
    """Timed steps of each side, in all rounds together."""
    rounds: int

    @property
    def round_steps(self) -> int:
        """Steps of a round."""
        return self.steps // self.rounds


@dataclass(kw_only=True)
class Report:
    """What a child measured."""

    seconds: list[float] = field(default_factory=list)
    """Of each round."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor time of each round, which other programs disturb less."""
    preparation_s: float = 0.0
    """Time before the first step."""
    peak_bytes: int = 0
    """Peak above what the child held after loading the model."""
    flops: int = 0
    """Floating-point operations of a step."""
    matmul_flops: float = 0.0
    """Measured peak of a matrix product in the precision of this side, in operations per second."""
    parts: dict[str, float] = field(default_factory=dict)
    """Share of each part in a step's time."""

    def per_step(self, setup: Setup) -> float:
        """Return the seconds of a step, with its share of the preparation.

        It is the median of the rounds, because other programs disturb some of them.
        """
        return self.preparation_s / setup.steps + statistics.median(self.seconds) / setup.round_steps


def main(
    *, model: str = "pocket", side_px: int | None = None, steps: int | None = None, rounds: int = 5, json: bool = False
) -> None:
    """Measure and print.

    Args:
        model: `pocket`, a folder in diffusers' layout, or `sd15-random`: SD 1.5 of full size with random weights.
        side_px: Side of the pictures for `sd15-random`; 512 on a GPU and 128 on a CPU by default.
        steps: Timed steps of each side; 250, or 6 for `sd15-random` on a CPU.
        rounds: Number of rounds; the sides take turns.
        json: End with one line of JSON.
    """
    on_gpu = torch.cuda.is_available()
    is_large = model == RANDOM and not on_gpu
    rounds = min(rounds, 3) if is_large else rounds
    steps = steps or (FEW_STEPS if is_large else STEPS)
    rounds = min(rounds, steps)
    setup = Setup(
        model=model, side_px=side_px or (512 if on_gpu else 128), steps=steps // rounds * rounds, rounds=rounds
    )
    reports = measured(setup)
    show(setup, reports)
    if json:
        ours, exact, plain = (reports[side].per_step(setup) for side in SIDES)
        figures = {
            "seconds_per_step": ours,
            "plain_seconds_per_step": plain,
            "ratio": ours / plain,
            "ratio_same_precision": exact / plain,
            "peak_bytes": reports["ours"].peak_bytes,
            "plain_peak_bytes": reports["plain"].peak_bytes,
        }
        print(jsonlib.dumps(figures))


def measured(setup: Setup) -> dict[str, Report]:
    """Let the sides train in turns, each in its child process, and return what they report."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        children.append(context.Process(target=child, args=(side, setup, theirs), daemon=True))
        children[-1].start()
        pipes[side].recv()  # loaded
    for _ in range(setup.rounds + 1):  # the first turn prepares and warms up
        for side in SIDES:
            pipes[side].send("go")
            pipes[side].recv()
    reports = {}
    for side in SIDES:
        pipes[side].send("report")
        reports[side] = pipes[side].recv()
    for process in children:
        process.join()
    return reports


def show(setup: Setup, reports: dict[str, Report]) -> None:
    """Print a table of all sides, and the parts of each."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"{setup.model}, {setup.steps} steps of {2 * TARGETS} pictures on {device}")
    print(f"{'':6s}{'s a step':>9s}{'before':>8s}{'pictures/s':>12s}{'TFLOP/s':>9s}{'MFU':>6s}{'peak MB':>9s}")
    for side, report in reports.items():
        seconds = report.per_step(setup)
        speed = report.flops / seconds
        print(
            f"{side:6s}{seconds:9.4f}{report.preparation_s:7.1f}s{2 * TARGETS / seconds:12.1f}{speed / 1e12:9.3f}"
            f"{speed / report.matmul_flops:6.0%}{report.peak_bytes / 1e6:9.0f}"
        )
    for side, report in reports.items():
        print(f"{side:6s} " + ", ".join(f"{part} {share:.0%}" for part, share in report.parts.items()))
    plain = reports["plain"].per_step(setup)
    for side in SIDES[:2]:
        cpu = statistics.median(reports[side].cpu_seconds) / statistics.median(reports["plain"].cpu_seconds)
        print(f"{side} takes {reports[side].per_step(setup) / plain:.2f} of plain's time", end=", ")
        print(f"and in its rounds {cpu:.2f} of plain's processor time")
    print(f"ours takes {reports['ours'].peak_bytes / reports['plain'].peak_bytes:.2f} of plain's memory")


# --- a child ----------------------------------------------------------------------------------------------------------


def child(side: str, setup: Setup, pipe: Connection) -> None:
    """Load the model, train whenever the parent says so, and report."""
    backbone, report = loaded(setup, exact=side != "ours"), Report()
    work = plain_training if side == "plain" else our_training
    pipe.send("loaded")
    pipe.recv()
    held = memory_held(backbone.device)
    began, cpu_began = time.perf_counter(), time.process_time()

    def turn_over(index: int) -> None:
        """End the turn after the first step and after each round, and wait for the next."""
        nonlocal began, cpu_began
        if index > 1 and (index - 1) % setup.round_steps:
            return
        elapsed = time.perf_counter() - began
        if index == 1:
            report.preparation_s = elapsed - first_step_s()
        else:
            report.seconds.append(elapsed)
            report.cpu_seconds.append(time.process_time() - cpu_began)
        if index == setup.steps + 1:
            report.peak_bytes = memory_peak(backbone.device) - held
        pipe.send("done")
        pipe.recv()
        began, cpu_began = time.perf_counter(), time.process_time()

    prepared: list[float] = []

    def first_step_s() -> float:
        return time.perf_counter() - prepared[0]

    work(backbone, setup, setup.steps + 1, turn_over, lambda: prepared.append(time.perf_counter()))
    trace(report, backbone, partial(work, backbone, setup))
    pipe.send(report)


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
    wanted = max(TARGETS, round(REGULARIZATION * setup.steps / STEPS))
    pool = Regularization(pictures=pool.pictures[:wanted], captions=pool.captions[:wanted])
    return subject, pool


def our_training(
    backbone: Backbone, setup: Setup, steps: int, on_step: Callable[[int], None], on_first: Callable[[], None]
) -> None:
    """Train as `moongate train` does; `on_first` is called when the first step begins."""
    subject, pool = taught(backbone, setup)
    with called_first(backbone, "predict", on_first):
        options = TrainOptions(steps=steps, batch=TARGETS)
        train(backbone, [subject], [pool], options=options, on_step=lambda step: on_step(step.index))


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


def trace(report: Report, backbone: Backbone, work: Callable[..., None]) -> None:
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
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
        return _status_bytes("VmRSS")
    return memory_peak(device)


def memory_peak(device: torch.device) -> int:
    """Return the most bytes that this process held since `memory_held`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        return _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
