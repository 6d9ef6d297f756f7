"""Processes of this machine that train one concept together, forked from the one that has loaded the model.

On a CPU several processes of one thread each are faster than one with several threads, which wait for one another in
every operation. A fork needs no start and no second copy of the frozen model. After the fork the processes are ranks as
under any launcher. The module knows nothing of pictures and losses.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from moongate.errors import MoongateError, MoongateWarning, OptionError
from moongate.ranks import PATIENCE, Ranks
from moongate.training.plan import Plan

__all__ = ["processes_for", "together"]

ENDED_AFTER_S = 10
"""How long a process may take to end after the training."""

_T = TypeVar("_T")


def processes_for(plan: Plan, wanted: int | None = None) -> int | None:
    """Return how many processes of this machine train a plan, each with one thread.

    Unless the user says so, there are several only for models that set `shards`: one for each thread of this process,
    as far as the shards go. Their number does not change the concept, which the number of threads would.

    Args:
        plan: The training.
        wanted: What the user says, at least 1; None leaves it to the plan.

    Returns:
        The number, or None for this process alone with all its threads.

    Raises:
        OptionError: Several are wanted where there can be only one.
    """
    obstacle = _obstacle(plan.backbone.device)
    if wanted and wanted > 1 and obstacle:
        raise OptionError(f"{wanted} processes cannot train together here: {obstacle} Leave --processes out.")
    if wanted or obstacle or plan.backbone.settings.shards == 1:
        return wanted
    return max(count for count in range(1, torch.get_num_threads() + 1) if plan.shards % count == 0)


def together(work: Callable[[], _T], *, processes: int | None) -> _T:
    """Do some work in several processes that train together, and return what this one returns.

    The others hold what this one holds, do the same, and end with it, however it ends.

    Args:
        work: Trains; it may do more where `Ranks.current().is_first`, which is true only here.
        processes: All, with this one, each with one thread; None is this one with all its threads.

    Raises:
        RankLost: One of the others has ended; raised by the training.
    """
    if processes is None:
        return work()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if processes == 1:
            return work()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "ranks"
            with _others(work, place, processes), _joined(place, 0, processes):
                return work()
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _others(work: Callable[[], object], place: Path, count: int) -> Iterator[None]:
    """Let further processes work until the block ends; after an error they are killed."""
    context = multiprocessing.get_context("fork")
    others: list[ForkProcess] = []
    try:
        with warnings.catch_warnings():
            # Newer Pythons warn of every fork beside threads. Those here are idle, or draw the progress bar.
            warnings.simplefilter("ignore", DeprecationWarning)
            for index in range(1, count):
                others.append(context.Process(target=_follow, args=(work, place, index, count), daemon=True))
                others[-1].start()
        yield
        for process in others:
            process.join(ENDED_AFTER_S)
    finally:
        for process in others:
            process.kill()
            process.join()


def _follow(work: Callable[[], object], place: Path, index: int, count: int) -> None:
    """Work as one of the further processes: the first one says what is wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", MoongateWarning)
    try:
        with _joined(place, index, count):
            work()
    except (MoongateError, KeyboardInterrupt):
        sys.exit(2)


@contextlib.contextmanager
def _joined(place: Path, index: int, count: int) -> Iterator[None]:
    """Join the processes that meet in a file, as rank `index` of `count`."""
    # An address file://... would end at a "?" or "#" of the path.
    store = distributed.FileStore(str(place), count)  # type: ignore[attr-defined]
    store.set_timeout(PATIENCE)
    with _on_loopback():
        distributed.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let gloo connect processes within this machine, whatever its name resolves to."""
    name = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(name)
    os.environ[name] = before or "lo"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _obstacle(device: torch.device) -> str:
    """Return why a training on a device cannot be shared by forked processes; empty if it can."""
    if device.type != "cpu":
        return f"It computes on {device}. Start it by torchrun, with a process for each GPU."
    if sys.platform != "linux" or not distributed.is_available():
        return "Only Linux can copy a process that has loaded PyTorch."
    if Ranks.current().count > 1:
        return f"A launcher has started {Ranks.current().count} processes already."
    if multiprocessing.current_process().daemon:
        return "This process is a daemon of multiprocessing, which may have no children."
    if torch.cuda.is_initialized():
        return "This process has used a GPU, which a copy of it could not."
    return ""
