"""The batch of a step: target pictures as latents with captions and masks, regularization pictures, and their noise.

A batch depends only on the plan and the index of the step, so a resumed run sees the same batches. What does not change
during the run is computed before the first step, once: the latents of all augmented pictures, and the features of
captions in which nothing is trained. The module knows nothing of losses and optimizers.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.data import ZOOM, Augmented, Framing, framed, framing, square
from moongate.errors import OptionError
from moongate.ranks import ALONE, Ranks
from moongate.training.plan import Plan
from moongate.training.runs import seeded

__all__ = ["Batch", "Batches", "Prior", "encoded_at_once"]

ENCODE_AT_ONCE = 16
"""Largest number of pictures, and of captions, that are encoded together."""
PIXELS_AT_ONCE = 2 * 512 * 512
"""Pixels of the pictures that are encoded together: for SD 1.5 more would take more memory than a step does."""
MOVED_AT_ONCE = 10
"""Steps whose latents and noise go to the device together."""
BYTES_IN_MEMORY = 256_000_000
"""Latents of all target pictures that are kept in memory; more are kept in a file, of which the system reads parts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """Regularization pictures as latents, and their captions as conditioning."""

    latents: Float[Tensor, "n channels height width"]
    """Those that no step shows stay zero."""
    text: Conditioning
    """Each different caption once."""
    caption_rows: Int[Tensor, " n"]
    """The caption of each picture, as its row in `text`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The pictures of one shard of a step, where the model computes: first target, then regularization pictures."""

    latents: Float[Tensor, "n channels rows columns"]
    noise: Float[Tensor, "n channels rows columns"]
    timesteps: Int[Tensor, " n"]
    masks: Bool[Tensor, "targets 1 rows columns"]
    """The latent cells of the target pictures that count in the loss."""
    counted: Float[Tensor, ""]
    """Numbers in the target latents of the whole step that count, at least 1."""
    captions: tuple[str, ...]
    """The different captions of the target pictures."""
    caption_rows: Int[Tensor, " targets"]
    """The caption of each target picture, as its index in `captions`."""
    prior_text: Conditioning | None
    """The captions of the regularization pictures; None for a method without."""


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A target picture of a step and the regularization picture that joins it, as rows of what was computed."""

    latents: int
    caption: int
    prior: int


class Batches:
    """The batches of a run.

    Subjects take turns, so that each is shown equally often, however many pictures it has. The pictures of a subject
    come in shuffled passes.

    Args:
        plan: The run. Its pictures are encoded here.
        ranks: The processes that train together; each encodes some of the pictures and gets the batches of its shards.
        first: The first step that will be asked for, counted from 0; earlier ones were done before.
        on_encoded: Called with the number of target pictures that were encoded, and that of all.
    """

    def __init__(
        self,
        plan: Plan,
        ranks: Ranks = ALONE,
        *,
        first: int = 0,
        on_encoded: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        self.plan = plan
        self.ranks = ranks
        self._first = first
        self._different: dict[tuple[int, int, Framing], int] = {}
        self._captions: dict[str, int] = {}
        self._steps = [list(self._drawn(index)) for index in range(plan.steps)]
        self._encode(on_encoded)
        self._priors = self._encode_priors()
        trains_text = plan.method.trains_tokens and bool(plan.first_rows)
        self._fixed_text = None if trains_text else _read(list(self._captions), plan.backbone)

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield the batches of each step from the first one on: one for each shard of this rank."""
        for begin in range(self._first, self.plan.steps, MOVED_AT_ONCE):
            yield from self._moved(range(begin, min(begin + MOVED_AT_ONCE, self.plan.steps)))

    def text(self, batch: Batch) -> Conditioning:
        """Return the captions of a batch as conditioning, target pictures first; gradients reach the tokens' rows."""
        if self._fixed_text:
            text = self._fixed_text[batch.caption_rows]
        else:
            text = self.plan.backbone.encode_text(batch.captions)[batch.caption_rows]
        return Conditioning.cat([text, batch.prior_text]) if batch.prior_text else text

    # --- before the first step ----------------------------------------------------------------------------------------

    def _drawn(self, index: int) -> Iterator[_Shown]:
        """Yield the pictures of step `index`, and number the different ones."""
        plan = self.plan
        generator = seeded(plan.options.seed, "augment", index)
        for turn in range(index * plan.targets_per_step, (index + 1) * plan.targets_per_step):
            position, which = divmod(turn, len(plan.subjects))
            subject = plan.subjects[which]
            row = self._row(position, len(subject.pictures), "picture", which)
            choices = framing(
                side_px=plan.resolution_px,
                cell_px=plan.backbone.latent_scale,
                generator=generator,
                flips=plan.options.flips,
                resizes=plan.method.augments,
            )
            caption, prior_row = choices.caption(subject.captions[row]), 0
            if plan.regularization:
                before = sum(len(prior.pictures) for prior in plan.regularization[:which])
                prior_row = before + self._row(position, len(plan.regularization[which].pictures), "prior", which)
            yield _Shown(
                latents=self._different.setdefault((which, row, choices), len(self._different)),
                caption=self._captions.setdefault(caption, len(self._captions)),
                prior=prior_row,
            )

    def _row(self, position: int, count: int, *label: object) -> int:
        """Return the row at `position` of an endless sequence of shuffled passes over `count` rows."""
        passes, index = divmod(position, count)
        return _shuffled(count, self.plan.options.seed, *label, passes)[index]

    def _encode(self, on_encoded: Callable[[int, int], None]) -> None:
        """Encode the different target pictures of the next steps, at most as many at once as a step has.

        A chunk has the same pictures in every run, however long or interrupted it is and whoever computes it, and is
        filled up by repetition, so that its latents have the same last bits.
        """
        plan, keys = self.plan, list(self._different)
        size = min(plan.targets_per_step, encoded_at_once(plan.resolution_px))
        side_px = round(plan.resolution_px * ZOOM[1])  # the largest size that augmentation asks for
        pictures = {
            (which, row): square(picture, side_px, mask=subject.masks[row] if subject.masks else None)
            for which, subject in enumerate(plan.subjects)
            for row, picture in enumerate(subject.pictures)
        }
        needed = sorted({shown.latents // size for step in self._steps[self._first :] for shown in step})

        def encoded(number: int) -> tuple[Tensor, Tensor]:
            chunk = keys[number * size : (number + 1) * size]
            chunk += chunk[-1:] * (size - len(chunk))
            targets = [self._framed(pictures[which, row], choices) for which, row, choices in chunk]
            latents = plan.backbone.encode_images(torch.stack([target.image for target in targets]))
            return latents, torch.stack([target.mask for target in targets])[:, None].to(latents.device, torch.uint8)

        for number, (latents, masks) in self._shared(needed, encoded):
            if number == needed[0]:
                folder = plan.options.run_folder if self.ranks.is_first else None
                self._latents = _kept((len(keys), *latents.shape[1:]), latents.dtype, folder)
                self._masks = torch.zeros(len(keys), *masks.shape[1:], dtype=torch.bool)
            rows = slice(number * size, min((number + 1) * size, len(keys)))
            self._latents[rows] = latents[: rows.stop - rows.start].cpu()
            self._masks[rows] = masks[: rows.stop - rows.start].cpu() != 0
            on_encoded(rows.stop, len(keys))

    def _encode_priors(self) -> Prior | None:
        """Encode the regularization pictures that the steps to come show, if any, in chunks as `_encode` does."""
        plan, sets = self.plan, self.plan.regularization
        pictures = [picture for each in sets for picture in each.pictures]
        captions = [caption for each in sets for caption in each.captions]
        size = min(encoded_at_once(plan.resolution_px), max((len(each.pictures) for each in sets), default=1))
        rows = _chunks([len(each.pictures) for each in sets], size)
        shown = {each.prior for step in self._steps[self._first :] for each in step}
        needed = [number for number, chunk in enumerate(rows) if shown.intersection(chunk)]

        def encoded(number: int) -> tuple[Tensor]:
            images = torch.stack([square(pictures[row], plan.resolution_px) for row in rows[number]])
            return (plan.backbone.encode_images(images),)

        latents: Tensor | None = None
        for number, (some,) in self._shared(needed, encoded):
            latents = some.new_zeros(len(pictures), *some.shape[1:]) if latents is None else latents
            latents[rows[number]] = some
        if latents is None:
            return None
        different = list(dict.fromkeys(captions))
        caption_rows = torch.tensor([different.index(caption) for caption in captions], device=latents.device)
        return Prior(latents=latents, text=_read(different, plan.backbone), caption_rows=caption_rows)

    def _shared(
        self, chunks: Sequence[int], work: Callable[[int], Sequence[Tensor]]
    ) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """Yield what each chunk gives, in their order; each is computed by one of the processes."""
        for begin in range(0, len(chunks), self.ranks.count):
            group = chunks[begin : begin + self.ranks.count]
            mine = work(group[min(self.ranks.index, len(group) - 1)])
            yield from zip(group, zip(*map(self.ranks.gathered, mine), strict=True), strict=False)

    def _framed(self, picture: Float[Tensor, "channels side side"], choices: Framing) -> Augmented:
        return framed(picture, choices, side_px=self.plan.resolution_px, cell_px=self.plan.backbone.latent_scale)

    # --- while training -----------------------------------------------------------------------------------------------

    def _moved(self, indices: Sequence[int]) -> Iterator[list[Batch]]:
        """Yield the batches of some steps, whose tensors are moved to the device together."""
        plan, device = self.plan, self.plan.backbone.device
        targets, shards = plan.targets_per_step, plan.shards
        size, own = targets // shards, shards // self.ranks.count
        rows = torch.arange(plan.pictures_per_step).view(-1, shards, size)  # target rows, then regularization rows
        rows = rows[:, self.ranks.index * own : (self.ranks.index + 1) * own].transpose(0, 1).flatten(1)
        noise, timesteps = (torch.stack(parts)[:, rows] for parts in zip(*map(self._noise, indices), strict=True))
        steps = [self._steps[index] for index in indices]
        shown = torch.tensor([[[s.latents, s.caption, s.prior] for s in step] for step in steps])
        counted = (self._masks[shown[..., 0]].flatten(1).sum(1) * noise.shape[3]).clamp(min=1).float()
        shown = shown[:, rows[:, :size]]  # [step, shard, picture, 3]
        latents = self._latents[shown[..., 0]].float()
        masks = self._masks[shown[..., 0]]
        captions, caption_rows = self._captions_of(shown[..., 1])
        moved = _to_device((noise, timesteps, latents, masks, counted, caption_rows, shown[..., 2]), device)
        noise, timesteps, latents, masks, counted, caption_rows, priors = moved
        for step, shard_captions in enumerate(captions):
            batches = []
            for shard in range(own):
                chosen, text = latents[step, shard], None
                if self._priors:
                    chosen = torch.cat([chosen, self._priors.latents[priors[step, shard]].float()])
                    text = self._priors.text[self._priors.caption_rows[priors[step, shard]]]
                batches.append(
                    Batch(
                        latents=chosen,
                        noise=noise[step, shard],
                        timesteps=timesteps[step, shard],
                        masks=masks[step, shard],
                        counted=counted[step],
                        captions=shard_captions[shard],
                        caption_rows=caption_rows[step, shard],
                        prior_text=text,
                    )
                )
            yield batches

    def _noise(self, index: int) -> tuple[Float[Tensor, "n channels rows columns"], Int[Tensor, " n"]]:
        """Return the noise and the noise levels of all pictures of a step."""
        plan = self.plan
        generator = seeded(plan.options.seed, "noise", index)
        noise = torch.randn(plan.pictures_per_step, *self._latents.shape[1:], generator=generator)
        return noise, torch.randint(0, plan.backbone.train_timesteps, (len(noise),), generator=generator)

    def _captions_of(
        self, numbers: Int[Tensor, "steps shards targets"]
    ) -> tuple[list[list[tuple[str, ...]]], Int[Tensor, "steps shards targets"]]:
        """Return the different captions of each shard, and the caption of each picture as an index in them.

        The index is one in all captions of the run if their features are fixed.
        """
        everything = list(self._captions)
        captions, rows = [], []
        for step in numbers.tolist():
            different = [list(dict.fromkeys(shard)) for shard in step]
            captions.append([tuple(everything[number] for number in shard) for shard in different])
            rows.append([[found.index(n) for n in shard] for found, shard in zip(different, step, strict=True)])
        return captions, numbers if self._fixed_text else torch.tensor(rows)


def encoded_at_once(side_px: int) -> int:
    """Return how many pictures of a side are encoded together at most."""
    return max(1, min(ENCODE_AT_ONCE, PIXELS_AT_ONCE // side_px**2))


@lru_cache(maxsize=64)
def _shuffled(count: int, seed: int, *label: object) -> list[int]:
    order: list[int] = torch.randperm(count, generator=seeded(seed, *label)).tolist()
    return order


def _to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]


def _kept(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """Return an empty tensor in memory or, if it is large, in a file that goes with the process.

    Raises:
        OptionError: The disk has no room for the file.
    """
    numbers = torch.Size(shape).numel()
    if numbers * dtype.itemsize <= BYTES_IN_MEMORY:
        return torch.zeros(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="latents-") as file:
        try:
            file.truncate(numbers * dtype.itemsize)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, numbers * dtype.itemsize)
        except OSError as error:
            raise OptionError(
                f"The latents of {shape[0]} target pictures take {numbers * dtype.itemsize / 1e9:.1f} GB, which "
                f"{Path(file.name).parent} has no room for ({error}). Free some space, or train fewer steps."
            ) from error
        return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype).view(shape)


def _chunks(counts: Sequence[int], size: int) -> list[list[int]]:
    """Return the rows of several sets of pictures in chunks of one size, within a set; the last row fills up."""
    chunks, first = [], 0
    for count in counts:
        rows = [*range(first, first + count)]
        parts = [rows[begin : begin + size] for begin in range(0, count, size)]
        chunks += [part + part[-1:] * (size - len(part)) for part in parts]
        first += count
    return chunks


@torch.no_grad()
def _read(captions: Sequence[str], backbone: Backbone) -> Conditioning:
    parts = (captions[begin : begin + ENCODE_AT_ONCE] for begin in range(0, len(captions), ENCODE_AT_ONCE))
    return Conditioning.cat([backbone.encode_text(part) for part in parts])
