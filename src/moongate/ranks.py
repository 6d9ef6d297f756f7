"""Processes that train one concept together, each a share of every step (data parallel, by plain torch.distributed).

A step is divided into shards of equal size. Gradients of shards are added in the order of the shards, so that one
process that computes all shards gets the same sums, bit for bit, as several that compute some each. A collective
`all_reduce` adds in an order that depends on the number of ranks. The module knows nothing of models and pictures.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed

from moongate.errors import OptionError, RankLost, first_line

__all__ = ["ALONE", "Ranks", "joined"]

PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others, which may draw pictures first. The launcher ends all when one has died."""
NUMBERS_AT_ONCE = 8_000_000
"""Numbers of small tensors that are exchanged together: each rank holds them once more for every shard."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The place of this process among those that train together."""

    index: int = 0
    """Counted from 0; the first rank alone writes files and prints."""
    count: int = 1

    @classmethod
    def current(cls) -> Self:
        """Return the place in the process group of torch.distributed; without one the process is alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(index=distributed.get_rank(), count=distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.index == 0

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks in their order; all have one shape and type.

        Each sends its own to every other, which over gloo takes two thirds of the time of a collective.

        Raises:
            RankLost: One of them has ended.
        """
        if self.count == 1:
            return [tensor]
        tensors = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.count)]
        tensors[self.index].copy_(tensor)
        others = [rank for rank in range(self.count) if rank != self.index]
        sent = [distributed.P2POp(distributed.isend, tensors[self.index], rank) for rank in others]
        received = [distributed.P2POp(distributed.irecv, tensors[rank], rank) for rank in others]
        with _loss_explained():
            for work in distributed.batch_isend_irecv(sent + received):
                work.wait()
        return tensors

    def summed(self, shards: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the sum of each tensor over all shards of all ranks, added one by one in their order.

        Many are exchanged at once, because over gloo each exchange takes a millisecond or two, however small it is.

        Args:
            shards: For each shard of this rank its tensors of one type, with the same shapes in all shards.
        """
        sums: list[Tensor] = []
        for some in _groups(shards[0]):
            flat = torch.stack([torch.cat([tensor.flatten() for tensor in shard[some]]) for shard in shards])
            total = reduce(torch.add, [shard for rank in self.gathered(flat) for shard in rank])
            parts = total.split([tensor.numel() for tensor in shards[0][some]])
            sums += [part.view_as(tensor) for part, tensor in zip(parts, shards[0][some], strict=True)]
        return sums

    def collected(self, value: _T) -> list[_T]:
        """Return a value of each rank, in their order. It is pickled: for what is exchanged once and not in each step.

        Raises:
            RankLost: One of them has ended.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _loss_explained():
            distributed.all_gather_object(values, value)
        return values

    def of_first(self, value: _T) -> _T:
        """Return the value of the first rank, which is pickled.

        Raises:
            RankLost: One of them has ended.
        """
        if self.count == 1:
            return value
        values: list[Any] = [value]
        with _loss_explained():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.count > 1:
            with _loss_explained():
                distributed.barrier()

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first rank go through the block before the others, which then find the files that it wrote."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


ALONE = Ranks()
"""The place of a process that trains alone."""


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """Join the ranks that a launcher such as torchrun has started, until the block ends.

    Args:
        device: The device that the user named, if any. On CUDA each rank of a machine takes a device of its own.

    Yields:
        The place of this process; without a launcher it is alone.

    Raises:
        OptionError: There are more ranks on this machine than devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks.current()
        return
    on_cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if on_cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise OptionError(
                f"{local + 1} or more ranks were started, but this machine has {torch.cuda.device_count()} GPUs. Start "
                "as many ranks as GPUs (--nproc-per-node)."
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        distributed.destroy_process_group()


def _groups(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield slices of tensors that are exchanged together; a tensor that is large goes alone."""
    begin, numbers = 0, 0
    for index, tensor in enumerate(tensors):
        if index > begin and numbers + tensor.numel() > NUMBERS_AT_ONCE:
            yield slice(begin, index)
            begin, numbers = index, 0
        numbers += tensor.numel()
    yield slice(begin, len(tensors))


@contextlib.contextmanager
def _loss_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"A process that trains together with this one has ended ({first_line(error)}) Start the training again; "
            "with --resume it continues from its last saved state."
        ) from error
