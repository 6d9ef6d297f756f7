"""Records of what is inside a concept: how far layers move, of what rank, and what each part of them carries."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from experiments.records import Needs, Training
from experiments.scores import OURS, words_of
from experiments.study import Size, Study
from experiments.styles import STYLES
from moongate import Concept
from moongate.analysis import spectra, weight_changes
from moongate.compression import norm_of
from moongate.data.pictures import as_tensor
from moongate.demo.recognizer import Recognizer
from moongate.errors import OptionError
from moongate.evaluation.metrics import image_alignment
from moongate.evaluation.prompts import filled

__all__ = ["BLOCKS", "PARTS", "Part", "Spectrum", "Weights", "mean_color", "object_mask", "part_of"]

BLOCKS = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
"""Levels of pocket's denoiser, from its input to its output; the outermost two see the picture in 16 x 16 positions."""
PARTS = ("whole", "token", "keys", "values", *(f"{which} {block}" for which in ("without", "only") for block in BLOCKS))
"""What is left of a finished concept: all, the token alone, only keys or values, all but one level, one level."""
SCENES = ("on the beach", "in the snow", "in a forest", "in a garden")
PLACED = tuple(f"photo of a {{}} {scene}" for scene in SCENES)
STYLED = ("drawing", "watercolor painting", "pixel art", "3d render")
"""Styles of the recognizer that are asked for; it knows no pencil sketch."""
OF_STYLES = tuple(f"{{}} of a {thing} {SCENES[n % 4]}" for n, thing in enumerate(("house", "cat", "car", "tree") * 2))
"""Prompts for a taught style, with `{}` for its words."""
OBJECT_ABOVE = 0.5
"""Probability of an object from which on a cell of the recognizer is one."""


@dataclass(frozen=True)
class Weights:
    """How far each kind of layer moves when all weights are trained (paper, Sec. 3.1)."""

    example: str

    @property
    def key(self) -> str:
        return f"weights/{self.example}"

    def needs(self, size: Size) -> Needs:
        return Needs((Training((self.example,), "fine-tune-all", 0),), 0)

    def measure(self, study: Study) -> dict[str, Any]:
        changes = weight_changes(study.backbone, study.single(self.example, "fine-tune-all", 0))
        return {"kinds": {change.kind: {"mean": change.mean, "share": change.share} for change in changes}}


@dataclass(frozen=True)
class Spectrum:
    """Singular values of each change, relative to the largest (paper, App. B)."""

    example: str

    @property
    def key(self) -> str:
        return f"spectrum/{self.example}"

    def needs(self, size: Size) -> Needs:
        return Needs((Training((self.example,), OURS, 0),), 0)

    def measure(self, study: Study) -> dict[str, Any]:
        by_layer = spectra(study.single(self.example, OURS, 0))
        return {
            "values": {name: [round(float(v), 5) for v in s.values / s.values[0]] for name, s in by_layer.items()},
            "rank_at_60": {name: s.rank(0.6) for name, s in by_layer.items()},
        }


@dataclass(frozen=True)
class Part:
    """What a part of a finished concept draws.

    Shape is the share of pictures in which the recognizer sees the category, and style the share in which it sees the
    style of the prompt. Color is the distance of the object's mean color from that of the held-out pictures, in RGB of
    0..1. For a taught style, only alignment and the color of whole pictures are measured.
    """

    example: str
    part: str
    """One of `PARTS`."""

    @property
    def key(self) -> str:
        return f"part/{self.example}-{self.part}".replace(" ", "-")

    def needs(self, size: Size) -> Needs:
        return Needs((Training((self.example,), OURS, 0),), len(OF_STYLES) * size.part_count)

    def measure(self, study: Study) -> dict[str, Any]:
        whole = study.single(self.example, OURS, 0)
        concept, count = part_of(whole, self.part), study.size.part_count
        prompts = OF_STYLES if self.example in STYLES else (*PLACED, *(f"{style} of a {{}}" for style in STYLED))
        worded = [filled(prompt, words_of(whole)) for prompt in prompts]
        pictures = study.drawn(concept, worded, seed=0, count=count)
        real = np.stack(study.held_out(self.example).pictures)
        drawn, wanted = study.features(pictures), study.features(real)
        aligned = {name: float(image_alignment(drawn[name], wanted[name]).mean()) for name in drawn}
        values: dict[str, Any] = {"pictures": len(pictures), "image": aligned}
        if self.example in STYLES:
            values["color"] = _distance(pictures.mean((1, 2)) / 255, real.mean((1, 2)) / 255)
        else:
            colors = (mean_color(study.recognizer, some) for some in (pictures, real))
            values["color"] = _distance(*colors)
            seen = study.recognizer.sees(pictures, [whole.subjects[0].category])
            values["shape"] = float(seen.double().mean())
            asked = pictures[len(PLACED) * count :]
            styles = [style for style in STYLED for _ in range(count)]
            values["style"] = _in_style(study.recognizer, asked, styles)
        if self.part == "whole":
            values["changes"] = _changes(study, whole)
        return values


def part_of(concept: Concept, part: str) -> Concept:
    """Return a concept with those of its changes that belong to one of `PARTS`; the tokens stay."""
    strays = [name for name in concept.deltas if not any(f".{block}." in f".{name}" for block in BLOCKS)]
    if strays or part not in PARTS:
        problem = f"The change of {strays[0]} is in none of {', '.join(BLOCKS)}" if strays else f"No part {part!r}"
        raise OptionError(f"{problem}. Name the levels of the model in BLOCKS, and one of {', '.join(PARTS)}.")
    which, _, block = part.partition(" ")
    kept = {
        name: change
        for name, change in concept.deltas.items()
        if which == "whole"
        or (which == "keys" and name.endswith("to_k.weight"))
        or (which == "values" and name.endswith("to_v.weight"))
        or (which in ("only", "without") and (f".{block}." in f".{name}") == (which == "only"))
    }
    return dataclasses.replace(concept, deltas=kept)


def object_mask(recognizer: Recognizer, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1 height width"]:
    """Return 1 where the recognizer takes images in -1..1 to show an object, and 0 elsewhere."""
    cells, _ = recognizer.cells_and_surroundings(images)
    return F.interpolate((cells.sum(1, keepdim=True) > OBJECT_ABOVE).float(), images.shape[2:], mode="nearest")


def mean_color(recognizer: Recognizer, pictures: UInt8[np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n 3"]:
    """Return the mean color, 0..1, of what the recognizer takes for an object, or of all if it sees none."""
    images = as_tensor(pictures)
    weights = object_mask(recognizer, images)
    weights[weights.sum((1, 2, 3)) == 0] = 1
    colors: Tensor = ((images + 1) / 2 * weights).sum((2, 3)) / weights.sum((2, 3))
    return np.asarray(colors)


def _distance(colors: Float[np.ndarray, "n 3"], wanted: Float[np.ndarray, "m 3"]) -> float:
    """Return the mean distance of colors from the mean of those wanted."""
    return float(np.linalg.norm(colors - wanted.mean(0), axis=1).mean())


def _in_style(recognizer: Recognizer, pictures: UInt8[np.ndarray, "n height width 3"], styles: Sequence[str]) -> float:
    """Return the share of pictures in which the recognizer sees the style that was asked for."""
    names = recognizer.classes.styles
    best = recognizer.scores(pictures)[:, -len(names) :].argmax(1)
    return float((best == torch.tensor([names.index(style) for style in styles])).double().mean())


def _changes(study: Study, concept: Concept) -> Mapping[str, float]:
    """Return |W - W0| / |W0| of each matrix."""
    weights = study.backbone.weights("cross-attention-kv")
    return {name: norm_of(change) / float(weights[name].float().norm()) for name, change in concept.deltas.items()}
