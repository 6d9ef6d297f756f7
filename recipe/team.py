"""One process, or several of one thread each, that share the batches of every training step.

On a CPU, two processes with one thread each lose no speed, while two threads in one process lose a third of it. The
gradients are averaged over gloo. This module knows nothing of models or data.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import get_context

from moongate.errors import MoongateError, OptionError, RankLost, first_line

__all__ = ["Team", "run_in_team"]


@dataclass(frozen=True, kw_only=True)
class Team:
    """The place of this process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def shards(self, count: int) -> range:
        """Return the indices, of `count` batches of a step, that this process computes."""
        return range(self.rank, count, self.size)

    def agreed(self, value: float) -> float:
        """Return the value that the first process has. Raises RankLost when another process has ended."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        with _loss_explained():
            dist.broadcast(shared, 0)
        return float(shared)

    def summed(self, value: float) -> float:
        """Return the sum of the values of all processes. Raises RankLost when another process has ended."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        with _loss_explained():
            dist.all_reduce(shared)
        return float(shared)

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Replace the gradients of the weights by their sums. Raises RankLost when another process has ended."""
        if self.size > 1:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            joined = torch.cat([gradient.reshape(-1) for gradient in gradients])
            with _loss_explained():
                dist.all_reduce(joined)
            parts = joined.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def run_in_team(work: Callable[[Any, Team], None], options: Any) -> None:
    """Call `work(options, team)` in this process, and with the same options in further ones.

    Args:
        work: a function of a module, so that another process can import it.
        options: what can be pickled; its `processes` is 1 or 2, and 2 need two free cores.

    Raises:
        OptionError: another number of processes.
    """
    processes = options.processes
    if processes not in (1, 2):
        raise OptionError(f"processes is {processes}; 1 and 2 are possible, because a step has two batches.")
    torch.set_num_threads(1)
    if processes == 1:
        work(options, Team())
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = Path(folder) / "team"
        helper = get_context("spawn").Process(target=_join, args=(work, options, 1, processes, meeting_point))
        helper.daemon = True
        helper.start()
        try:
            _join(work, options, 0, processes, meeting_point)
            helper.join()
        finally:
            helper.terminate()


def _join(work: Callable[[Any, Team], None], options: Any, rank: int, size: int, meeting_point: Path) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":  # the name of a machine may not resolve to an address of it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size)
    try:
        work(options, Team(rank=rank, size=size))
    except MoongateError:
        if rank == 0:  # all processes check the same things, and one message is enough
            raise
        sys.exit(2)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _loss_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"The other process of this run has ended ({first_line(error)}) Run the same command again; it goes on "
            "from the last checkpoint."
        ) from error
