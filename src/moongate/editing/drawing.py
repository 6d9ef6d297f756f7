"""Draw the two branches of edits: in each step the source, then the target with attention of the source."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone, Conditioning
from moongate.backbone.attention import computed, self_attentions
from moongate.concept import Concept
from moongate.data.pictures import as_pixels, as_tensor
from moongate.editing.alignment import spelled
from moongate.editing.blending import as_latent_mask, composed, word_mask
from moongate.editing.control import BRANCHES, Control, WordMap, WordMaps
from moongate.editing.photos import ddim_path, noised_path
from moongate.editing.plan import Edited, EditOptions, Plan
from moongate.sampling import (
    SampleOptions,
    first_noise,
    guided_prediction,
    prompted,
    step_arguments,
    timed_scheduler,
)

__all__ = ["all_edited", "applied"]


@contextlib.contextmanager
def applied(concept: Concept | None, backbone: Backbone, *, wanted: bool = True) -> Iterator[None]:
    """Apply a concept, if there is one and it is wanted, until the block ends."""
    with concept.applied(backbone) if concept and wanted else contextlib.nullcontext():
        yield


@torch.no_grad()
def all_edited(
    backbone: Backbone,
    plans: Sequence[Plan],
    concept: Concept | None,
    options: EditOptions,
    sampling: SampleOptions,
    on_step: Callable[[], None] | None,
) -> Iterator[Edited]:
    """Make the edits in batches of consecutive ones that can be drawn together, and yield them in order."""
    for (size_px, *_), group in groupby(plans, key=lambda plan: plan.batches_with):
        fitting = dataclasses.replace(sampling, height_px=size_px[0], width_px=size_px[1])
        alike = list(group)
        for begin in range(0, len(alike), sampling.batch):
            batch = _Batch(backbone, alike[begin : begin + sampling.batch], concept, options, fitting)
            yield from batch.drawn(on_step)


class _Batch:
    """Edits that are drawn at once: the texts and the weights of their two branches, source and target."""

    def __init__(
        self,
        backbone: Backbone,
        plans: Sequence[Plan],
        concept: Concept | None,
        options: EditOptions,
        sampling: SampleOptions,
    ) -> None:
        self.backbone, self.plans, self.options, self.sampling = backbone, plans, options, sampling
        self.texts: list[Conditioning] = []
        self.weights: list[dict[str, Tensor]] = []
        prompts = [[plan.edit.source for plan in plans], [plan.edit.target for plan in plans]]
        for branch, has_concept in zip(prompts, (plans[0].source_has_concept, True), strict=True):
            with applied(concept, backbone, wanted=has_concept):
                self.texts.append(prompted(backbone, branch, sampling))
                changed = concept.deltas if concept and has_concept else ()
                self.weights.append({name: backbone.parameter(name).data for name in changed})
        self.size = (plans[0].size_px[0] // backbone.latent_scale, plans[0].size_px[1] // backbone.latent_scale)
        self.control = self._control()

    def drawn(self, on_step: Callable[[], None] | None) -> Iterator[Edited]:
        """Draw the batch."""
        scheduler = timed_scheduler(self.backbone, self.sampling.scheduler, self.sampling.steps)
        path = self._path(scheduler)
        timesteps = scheduler.timesteps[len(scheduler.timesteps) + 1 - len(path) :] if path else scheduler.timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
        generators = self._generators() + self._generators()  # both branches draw the same noise
        noise = first_noise(self.backbone, generators, self.sampling) * scheduler.init_noise_sigma
        latents = torch.cat([path[0], path[0]]) if path else noise
        extra, put_back = step_arguments(scheduler, generators), self._put_back()
        may_change = self._may_change(by_words=False)
        with computed({**self_attentions(self.backbone), **self.backbone.cross_attentions()}, self.control):
            for index, timestep in enumerate(timesteps):
                done = index / len(timesteps)
                self.control.injects_cross = done < self.options.cross_share
                self.control.injects_self = done < self.options.self_share
                predicted = self._predicted(scheduler.scale_model_input(latents, timestep), timestep)
                source, target = scheduler.step(predicted, timestep, latents, **extra).prev_sample.chunk(2)
                if path:
                    target = target + put_back * (path[index + 1] - source)
                    source = path[index + 1]
                may_change = self._may_change(by_words=done >= self.options.blend_from)
                latents = torch.cat([source, torch.where(may_change > 0, target, source)])
                if on_step:
                    on_step()
        yield from self._finished(latents, may_change)

    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(plan.edit.seed) for plan in self.plans]

    def _path(self, scheduler: Any) -> list[Float[Tensor, "n c lh lw"]]:
        """Return the latents that lead to the photos, without the steps left out; none if there is no photo."""
        pictures = [plan.edit.picture for plan in self.plans if plan.edit.picture is not None]
        if not pictures:
            return []
        clean = self.backbone.encode_images(as_tensor(np.stack(pictures))).float()
        if self.options.inversion == "edit-friendly":
            path = noised_path(clean, scheduler=scheduler, generators=self._generators())
            steps = len(path) - 1
            return path[min(round(self.options.skip * steps), steps - 1) :]  # one step at least
        described = self.texts[0][slice(-len(self.plans), None)]
        with self.backbone.weights_replaced(self.weights[0]):
            return ddim_path(self.backbone, clean, described, scheduler=scheduler)

    def _put_back(self) -> Float[Tensor, "n 1 1 1"]:
        """Return what share of the source's way back to the path its target goes as well.

        Edit-friendly DDPM adds the same noise to both. Direct Inversion corrects only the source, since the target
        is led by the difference of the prompts; where nothing differs, the target must follow as well.
        """
        follows = [self.options.inversion == "edit-friendly" or plan.changes_nothing for plan in self.plans]
        return torch.tensor(follows, device=self.backbone.device)[:, None, None, None].float()

    def _predicted(self, noisy: Float[Tensor, "both c lh lw"], timestep: Tensor) -> Float[Tensor, "both c lh lw"]:
        """Return the predictions of both branches, each with its own text and weights."""
        parts = []
        for branch, part, text, weights in zip(BRANCHES, noisy.chunk(2), self.texts, self.weights, strict=True):
            self.control.branch = branch
            with self.backbone.weights_replaced(weights):
                parts.append(guided_prediction(self.backbone, part, timestep, text, self.sampling))
        return torch.cat(parts)

    def _control(self) -> Control:
        """Return the attention control; it watches words only if a blend or the maps are asked for."""
        maps = None
        if self.options.keeps_maps or any(plan.edit.blend for plan in self.plans):
            maps = {
                branch: WordMaps.of(
                    [plan.watched(index) for plan in self.plans], tokens=len(self.plans[0].factors), size=self.size
                )
                for index, branch in enumerate(BRANCHES)
            }
        stacks = [[plan.alignment.mapping, plan.alignment.own, plan.factors] for plan in self.plans]
        mapping, own, factors = (torch.stack(parts).to(self.backbone.device) for parts in zip(*stacks, strict=True))
        return Control(mapping=mapping, own=own, factors=factors, maps=maps)

    def _may_change(self, *, by_words: bool) -> Float[Tensor, "n 1 lh lw"]:
        """Return 1 where the target may differ from the source now, else 0."""
        allowed = torch.ones(len(self.plans), 1, *self.size)
        maps = self.control.maps
        if by_words and maps:
            looked = [
                word_mask(maps[branch].sums.mean()[:, 0], threshold=self.options.blend_threshold) for branch in maps
            ]
            blends = torch.tensor([bool(plan.edit.blend) for plan in self.plans])[:, None, None, None]
            allowed = torch.where(blends, torch.maximum(*looked), allowed)
        for row, plan in zip(allowed, self.plans, strict=True):
            if plan.edit.mask is not None:
                row *= as_latent_mask(plan.edit.mask, self.backbone.latent_scale)
        return allowed.to(self.backbone.device)

    def _finished(self, latents: Float[Tensor, "both c lh lw"], may_change: Tensor) -> Iterator[Edited]:
        """Decode the pictures, and put the source's own pixels where nothing may change."""
        sources, images = (as_pixels(self.backbone.decode_latents(half)) for half in latents.chunk(2))
        for index, plan in enumerate(self.plans):
            item = plan.edit
            source = sources[index] if item.picture is None else item.picture
            image = images[index]
            if item.blend or item.mask is not None:
                image = composed(source, image, may_change[index, 0], mask=item.mask)
            maps: list[tuple[WordMap, ...]] = [(), ()]
            if self.options.keeps_maps and self.control.maps:
                maps = [
                    self.control.maps[branch].named(index, spelled(words), first=1)
                    for branch, words in zip(BRANCHES, plan.words, strict=True)
                ]
            yield Edited(source=source, image=image, edit=item, source_maps=maps[0], target_maps=maps[1])
