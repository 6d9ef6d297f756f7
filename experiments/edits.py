"""Records of edits by prompt-to-prompt, each made with and without attention control from the same noise."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from experiments.layers import object_mask
from experiments.records import PICTURE, Needs, Training, webp_row
from experiments.study import Size, Study
from moongate.data.pictures import as_tensor
from moongate.demo.recognizer import Recognizer
from moongate.editing import Edit, EditOptions, edit
from moongate.evaluation.networks.lite0 import lite0_positions

__all__ = ["MEASURES", "PLACE", "STYLE", "WAYS", "EditRecord"]

WAYS = {
    "with control": EditOptions(),
    "without control": EditOptions(cross_share=0, self_share=0),
}
"""Ways to draw the target: with prompt-to-prompt's defaults, or with the source's noise alone."""
MEASURES = {
    "structure": "structure distance",
    "psnr_outside": "PSNR outside (dB)",
    "features_outside": "feature distance outside",
    "text_inside": "text alignment inside",
}
PLACE, STYLE = "change the place", "change the style"
"""Kinds whose edited region is not an object."""

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class EditRecord:
    """One edit of a drawn picture."""

    kind: str
    source: str
    target: str
    example: str | None = None
    """The taught subject that the target names, with the token that `Study` gives it."""
    reweight: tuple[str, float] | None = None
    """A word of the target, and what the attention to it is multiplied by."""
    noise: int = 0
    """Seed of the picture. (`seed` would be that of a training.)"""

    @property
    def key(self) -> str:
        return f"edit/{self.source}-{self.target}-{self.noise}".replace(" ", "-").replace("<", "").replace(">", "")

    def needs(self, size: Size) -> Needs:
        trainings = (Training((self.example,), "custom-diffusion", 0),) if self.example else ()
        return Needs(trainings, 2 * len(WAYS))

    def measure(self, study: Study) -> dict[str, Any]:
        concept = study.single(self.example, "custom-diffusion", 0) if self.example else None
        reweight = dict([self.reweight]) if self.reweight else {}
        one = Edit(source=self.source, target=self.target, seed=self.noise, reweight=reweight)
        sampling = dataclasses.replace(study.size.sampling, guidance=None)
        pictures: list[Picture] = []
        values = {}
        for way, options in WAYS.items():
            (edited,) = edit(study.backbone, [one], concept=concept, options=options, sampling=sampling)
            pictures = [*(pictures or [edited.source]), edited.image]
            values[way] = _measured(study, self, edited.source, edited.image)
        return {"kind": self.kind, "ways": values, PICTURE: webp_row(pictures)}


def _measured(study: Study, record: EditRecord, source: Picture, edited: Picture) -> dict[str, float | None]:
    """Return the four measures; those of the part that stays are None where an edit concerns the whole picture."""
    images = as_tensor(np.stack([source, edited]))
    features = _positions()(images)
    inside = _inside(study.recognizer, record, images)
    outside = ~inside
    values: dict[str, float | None] = {"structure": _structure_distance(features)}
    values["psnr_outside"] = values["features_outside"] = None
    if outside.any():
        squares = ((images[0] - images[1]) * 127.5)[:, outside].square()
        values["psnr_outside"] = 10 * math.log10(255**2 / max(float(squares.mean()), 1e-2))
        shares = F.adaptive_avg_pool2d(outside[None].float(), (features.shape[2], features.shape[3]))[0]
        distances = 1 - F.cosine_similarity(features[0], features[1], dim=0)
        values["features_outside"] = float((shares * distances).sum() / shares.sum())
    clip = next(network for network in study.networks if network.caption_features)
    assert clip.caption_features is not None
    rows, columns = (places.nonzero()[:, 0] for places in (inside.any(1), inside.any(0)))
    part = images[1:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else images[1:]
    part = F.interpolate(part, images.shape[2:], mode="bilinear", antialias=True)
    category = study.subject(record.example).category if record.example else ""
    words = " ".join(word for word in record.target.split() if not word.startswith("<"))
    assert category in words
    values["text_inside"] = float((clip.image_features(part) @ clip.caption_features([words]).T)[0, 0])
    return values


def _inside(
    recognizer: Recognizer, record: EditRecord, images: Float[Tensor, "2 3 height width"]
) -> Bool[Tensor, "height width"]:
    """Return where an edit should change the picture, as the recognizer sees it and not as the edit was made.

    It is where the source or the edit shows an object; for another place, where the source shows none; for another
    style it is all of the picture.
    """
    before, after = object_mask(recognizer, images)[:, 0].bool()
    if record.kind == STYLE:
        return torch.ones_like(before)
    return ~before if record.kind == PLACE else before | after


def _structure_distance(features: Float[Tensor, "2 width rows columns"]) -> float:
    """Return the mean squared difference of how the places of each picture resemble one another (Tumanyan et al. 2022).

    Theirs are features of DINO; ours are those of EfficientNet-Lite0.
    """
    unit = F.normalize(features.flatten(2), dim=1)
    source, edited = unit.transpose(1, 2) @ unit
    return float((source - edited).square().mean())


@cache
def _positions() -> Callable[[Tensor], Tensor]:
    return lite0_positions()
