"""How well automatic masks and captions fit pocket's examples, whose masks and places are known.

The examples' photos show an object in front of one of eight fixed backgrounds of each place, which may be mirrored and
a little darker or brighter (`recipe.corpus.places`). Where the place is drawn by code, the background is drawn again,
and what differs from it, apart from the object's shadow, is the true mask. Places from panoramas are left out.

    python -m experiments.annotation      # about two minutes; writes docs/results/annotation.json
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from moongate.annotation import attention_segmenter, binary, clip_describer
from moongate.annotation.masks import Segmenter
from moongate.backbone import POCKET, Backbone
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.evaluation import Clip
from moongate.files import write_atomically
from moongate.pocket import Example, examples
from recipe.corpus.places import PROCEDURAL, STAGES

__all__ = ["iou", "known_mask", "measure"]

OUT = Path(__file__).parents[1] / "docs" / "results" / "annotation.json"
DIFFERENT = 0.09
"""Difference of a color in 0..1 from which on a pixel is no background: above the traces of compression."""
SHADOW_RGB = (15 / 255, 15 / 255, 20 / 255)
SHADOWS = np.linspace(0, 0.36, 10)
"""Strengths of the shadow that are looked for."""
BRIGHTNESS = np.linspace(0.94, 1.05, 23)

Picture = UInt8[np.ndarray, "height width 3"]
Mask = Bool[np.ndarray, "height width"]


def known_mask(photo: Picture, place: str) -> Mask:
    """Return where a photo differs from its background, which is drawn again; `place` is a key of `PROCEDURAL`."""
    target = photo.astype(np.float32) / 255
    side = len(target)
    stage = min(_views(place, side), key=lambda view: _mismatch(target, view))
    view = min((stage * brightness for brightness in BRIGHTNESS), key=lambda view: _mismatch(target, view))
    found = _distances(target, view)
    different = Image.fromarray((found > DIFFERENT).astype(np.uint8) * 255)
    return np.asarray(different.filter(ImageFilter.MedianFilter(3))) > 0


def iou(first: Mask, second: Mask) -> float:
    """Return the intersection of two masks over their union."""
    return float((first & second).sum() / max(int((first | second).sum()), 1))


def measure(segment_of: Mapping[str, Segmenter]) -> dict[str, Any]:
    """Return the mean IoU by example of a segmenter for each category, and of the best rectangle in the middle."""
    ours, middle = {}, {}
    for name, example in examples().items():
        pairs = [(photo, known_mask(photo, place)) for photo, place in _photos(example) if place in PROCEDURAL]
        if not pairs:
            continue
        segment = segment_of[example.category]
        ours[name] = mean(iou(binary(segment(photo), photo.shape[:2]), mask) for photo, mask in pairs)
        middle[name] = mean(iou(_middle(photo), mask) for photo, mask in pairs)
    return {"attention": ours, "middle": middle}


def _photos(example: Example) -> list[tuple[Picture, str]]:
    """Return the training photos with the place that their captions name."""
    paths = find_pictures(example.training)
    captions = [path.with_suffix(".txt").read_text().strip() for path in paths]
    return [(read_picture(path), text.partition("{} ")[2]) for path, text in zip(paths, captions, strict=True)]


def _views(place: str, side: int) -> list[Float[np.ndarray, "side side 3"]]:
    """Return the stages of a place as `recipe.corpus.places.draw_place` draws them, and mirrored."""
    stages = [PROCEDURAL[place](side, np.random.default_rng([sum(map(ord, place)), stage])) for stage in range(STAGES)]
    return [*stages, *(stage[:, ::-1] for stage in stages)]


def _mismatch(photo: Float[np.ndarray, "h w 3"], background: Float[np.ndarray, "h w 3"]) -> float:
    """Return a difference that hardly depends on the object: a quantile over pixels, most of which it does not hide."""
    return float(np.quantile(np.abs(photo - background.clip(0, 1)).max(-1), 0.6))


def _distances(photo: Float[np.ndarray, "h w 3"], background: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Return how far each pixel is from the background, in its shadow or not."""
    seen = background.clip(0, 1)
    shaded = np.stack([(1 - share) * seen + share * np.array(SHADOW_RGB) for share in SHADOWS])
    lower = np.arange(len(photo)) > 0.6 * len(photo)  # a shadow lies below its object
    distances = np.abs(photo - shaded).max(-1)
    return np.where(lower[:, None], distances.min(0), distances[0])


def _middle(photo: Picture) -> Mask:
    """Return a mask without looking: the middle of the picture, where objects stand in pocket's corpus."""
    side = len(photo)
    mask = np.zeros((side, side), dtype=bool)
    mask[round(0.25 * side) : round(0.9 * side), round(0.22 * side) : round(0.78 * side)] = True
    return mask


def main() -> None:
    """Measure masks and captions, and write the record."""
    backbone, clip = Backbone.load(POCKET), Clip.load(POCKET)
    categories = {example.category for example in examples().values()}
    masks = measure({category: attention_segmenter(backbone, category) for category in categories})
    hits: dict[str, list[bool]] = {"place": [], "style": []}
    for example in examples().values():
        photos = _photos(example)
        found = clip_describer(clip, example.category)([photo for photo, _ in photos])
        hits["place"] += [
            described.found["place"] == place for described, (_, place) in zip(found, photos, strict=True)
        ]
        hits["style"] += [described.found["style"] == example.style for described in found]
    record = {
        "iou": {way: {"mean": round(mean(by_name.values()), 3)} for way, by_name in masks.items()},
        "iou_by_example": {name: round(value, 3) for name, value in masks["attention"].items()},
        "captions": {kind: round(mean(values), 3) for kind, values in hits.items()},
        "photos": len(hits["place"]),
    }
    write_atomically(OUT, (json.dumps(record, indent=1) + "\n").encode())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
