"""What is measured: the subjects, the sizes, the methods as pocket needs them, and the concepts, each trained once.

Another machine or another model needs changes in this file only.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from moongate import METHODS, Backbone, Concept, Method, Regularization, Subject, TrainOptions, merge, pocket, train
from moongate.data import photo_of
from moongate.data.pictures import read_picture
from moongate.evaluation import Network, Reference, Targets, load_network
from moongate.files import digest
from moongate.sampling import SampleOptions, draw_missing

__all__ = [
    "EXAMPLES",
    "FEATURES",
    "PAIRS",
    "RECOGNIZED",
    "RECOGNIZED_PAIRS",
    "SOME",
    "Pool",
    "Size",
    "Study",
    "for_pocket",
    "real_pictures",
]

EXAMPLES = (
    "bulldog",
    "drawn-penguin",
    "jar",
    "sneakers",
    "winchesterArmchair",
    "backpack",
    "chairWithCushion",
    "desk_lamp2",
    "siameseCat",
    "teddyBear",
)
"""Ten subjects that pocket has not seen."""
SOME = EXAMPLES[:5]
"""The subjects of the ablations and of some figures."""
PAIRS = (
    ("jar", "winchesterArmchair"),
    ("bulldog", "sneakers"),
    ("drawn-penguin", "backpack"),
    ("siameseCat", "chairWithCushion"),
    ("teddyBear", "desk_lamp2"),
)
RECOGNIZED = ("drawn-owl", "tulips", "winchesterSofa", "drawn-snowman-without-snow")
"""Four more subjects. Of their real pictures the recognizer tells every category rightly, as of those of
`drawn-penguin` and `desk_lamp2` (all but one)."""
RECOGNIZED_PAIRS = (
    ("drawn-owl", "tulips"),
    ("drawn-penguin", "winchesterSofa"),
    ("drawn-snowman-without-snow", "desk_lamp2"),
)
"""Pairs of which the recognizer knows both members. Of `PAIRS` it knows the penguin, the chair and the lamp alone."""
FEATURES = ("pocket-clip", "efficientnet-lite0")
"""Networks in whose features alignments, KID and FID are measured."""
FEWER_STEPS = {"fine-tune-all": 4, "dreambooth": 20, "textual-inversion": 40}
"""Divisor of a method's steps for pocket (2 for a method that is not named), so that every method has 125 steps and a
training takes a minute. The learning rate is multiplied by the same number, so that steps times learning rate, which
limits how far a method can go, are the paper's. With our method, half the steps at twice the learning rate leave the
same loss on held-out pictures (0.376 and 0.377) as all steps."""
OWN_LEARNING_RATE = {"dreambooth": 8.0, "textual-inversion": 4.0}
"""Factor on the learning rate of two methods whose loss on held-out pictures would rise with the factor above. On an
example that is in no table (drawn-owl) DreamBooth leaves a loss of 0.489, 0.463 and 0.528 at 4, 8 and 20 times its
learning rate, Textual Inversion 0.500, 0.494, 0.472 and 0.496 at 0.2, 1, 4 and 16 times."""


def for_pocket(name: str) -> Method:
    """Return a method by name with the steps and the learning rate that suit pocket, before its `lr_scale`."""
    method, fewer = METHODS[name], FEWER_STEPS.get(name, 2)
    return dataclasses.replace(
        method,
        steps_per_subject=method.steps_per_subject // fewer,
        lr_per_picture=method.lr_per_picture * OWN_LEARNING_RATE.get(name, fewer),
    )


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is drawn, and how; a record of another size counts as missing."""

    count: int = 1
    """Pictures of each of the twenty prompts for one subject."""
    pair_count: int = 2
    """Pictures of each of the twelve prompts for a pair."""
    references: int = 30
    """Real pictures of the category that KID compares with."""
    unrelated: int = 100
    """Captions of other categories that FID is computed from."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of pocket. bfloat16 takes two thirds of the time of float32 on a processor with instructions for it,
    and many times as long on others."""
    sampling: SampleOptions = field(
        default_factory=lambda: SampleOptions(steps=20, guidance=6.0, scheduler="dpm++", batch=10)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Pocket's pictures of a category: one half for regularization, one half to measure KID with."""

    regularization: Regularization
    reference: Reference


@dataclass(kw_only=True)
class Study:
    """One backbone, and the concepts and pictures made with it so far, which are kept in `folder`."""

    folder: Path
    size: Size = field(default_factory=Size)

    @cached_property
    def backbone(self) -> Backbone:
        """Pocket in the precision of the study."""
        return Backbone.load("pocket", dtype=getattr(torch, self.size.dtype))

    @cached_property
    def networks(self) -> list[Network]:
        """The networks whose features are measured in."""
        return [load_network(name) for name in FEATURES]

    @property
    def pictures(self) -> Path:
        """Folder of all pictures that are drawn."""
        return self.folder / "pictures"

    def subject(self, example: str) -> Subject:
        """Return the subject with its training pictures, captioned as in the paper (Sec. 4), and its token."""
        source, token = pocket.example(example), f"<{example.lower()}>"
        subject = Subject.load(source.training, category=source.category, token=token)
        return dataclasses.replace(subject, captions=(photo_of(f"{token} {source.category}"),) * len(subject.pictures))

    def held_out(self, example: str, *, subject: int = 0) -> Targets:
        """Return the pictures of the subject that no training sees."""
        source = pocket.example(example)
        pictures = Subject.load(source.evaluation, category=source.category).pictures
        return Targets(pictures=pictures, subject=subject)

    def pool(self, category: str) -> Pool:
        """Split the pool's pictures whose captions name the category: every second one is kept from training."""
        named = Regularization.load(pocket.pool_folder(), category=category, only_category=True)
        aside = slice(1, 2 * self.size.references, 2)
        return Pool(
            regularization=_regularization(named.pictures[::2], named.captions[::2], "pool"),
            reference=Reference(pictures=named.pictures[aside], captions=named.captions[aside]),
        )

    def unrelated(self, categories: Sequence[str]) -> Reference:
        """Return pictures of the pool, spread over it, that show none of the categories."""
        rows = [row for row in _rows() if not set(categories) & set(row["categories"])]
        chosen = rows[:: len(rows) // self.size.unrelated][: self.size.unrelated]
        pictures = [read_picture(pocket.pool_folder() / row["file_name"]) for row in chosen]
        return Reference(pictures=pictures, captions=tuple(row["caption"] for row in chosen))

    def single(self, example: str, method: str, seed: int, *, steps: int | None = None) -> Concept:
        """Return the subject taught alone; each starts from a rare token of its own, so that it can be merged."""
        options = TrainOptions(seed=seed, steps=steps, rare_token=_rare_token(example))
        return self._trained([example], method, options)

    def joint(self, pair: Sequence[str], method: str, seed: int) -> Concept:
        """Return two subjects taught together."""
        return self._trained(pair, method, TrainOptions(seed=seed))

    def sequential(self, pair: Sequence[str], seed: int) -> Concept:
        """Return the second subject taught on top of the concept of the first."""
        first = self.single(pair[0], "custom-diffusion", seed)
        options = TrainOptions(seed=seed, rare_token=_rare_token(pair[1]))
        return self._trained(pair[1:], "custom-diffusion", options, start_from=first)

    def merged(self, pair: Sequence[str], seed: int) -> Concept:
        """Return two subjects taught alone and merged in closed form."""
        return merge(self.backbone, [self.single(example, "custom-diffusion", seed) for example in pair]).concept

    def side_by_side(self, pair: Sequence[str], method: str, seed: int) -> Concept:
        """Return the tokens of two subjects taught alone by a method that changes no weight."""
        first, second = (self.single(example, method, seed) for example in pair)
        return dataclasses.replace(
            first, subjects=(*first.subjects, *second.subjects), tokens={**first.tokens, **second.tokens}
        )

    def _trained(
        self, examples: Sequence[str], name: str, options: TrainOptions, *, start_from: Concept | None = None
    ) -> Concept:
        """Return a concept from the folder, or train it and save it there."""
        method = for_pocket(name)
        recipe = [list(examples), dataclasses.asdict(method), options.seed, options.steps, options.rare_token]
        recipe += [self.backbone.fingerprint.to_json(), start_from and start_from.hash]
        stem = f"{'-'.join(examples)}-{name}-{options.seed}-{digest(json.dumps(recipe, sort_keys=True), length=10)}"
        path = self.folder / "concepts" / f"{stem}.safetensors"
        if path.exists():
            return Concept.load(path)
        subjects = [self.subject(example) for example in examples]
        prior = [self._regularization(subject.category, method) for subject in subjects] if method.prior_weight else []
        began = time.monotonic()
        concept = train(self.backbone, subjects, prior, method, options=options, start_from=start_from)
        record = {**concept.record, "seconds": round(time.monotonic() - began, 1)}
        concept = dataclasses.replace(concept, record=record)
        concept.save(path, overwrite=True)
        return concept

    def _regularization(self, category: str, method: Method) -> Regularization:
        real = self.pool(category).regularization
        if not method.generates_prior:
            return real
        prompts = [photo_of(category)] * len(real.pictures)
        seeds = range(10_000, 10_000 + len(prompts))  # no measure uses these seeds
        folder, sampling = self.folder / "generated", self.size.sampling
        files = draw_missing(self.backbone, prompts, seeds=seeds, folder=folder, options=sampling)
        return _regularization([read_picture(path) for path in files], prompts, "generated")


def real_pictures(example: str) -> tuple[np.ndarray, ...]:
    """Return the training pictures of a subject."""
    return Subject.load(pocket.example(example).training, category=pocket.example(example).category).pictures


def _rare_token(example: str) -> int:
    """Return which rare token an example starts from: one of its own."""
    return (*EXAMPLES, *RECOGNIZED).index(example)


def _regularization(pictures: Sequence[np.ndarray], captions: Sequence[str], source: str) -> Regularization:
    return Regularization(pictures=tuple(pictures), captions=tuple(captions), source=source)


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (pocket.pool_folder() / "metadata.jsonl").read_text().splitlines()]
