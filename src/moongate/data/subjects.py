"""Pictures and captions: what is taught (Subject), what must not be forgotten (Regularization), and augmentation.

Pictures are uint8 arrays [height, width, 3] outside and float tensors [3, side, side] in -1..1 inside. The module
knows nothing of models: latents are made by whoever trains.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor

from moongate.data.pictures import (
    as_tensor,
    caption_beside,
    find_pictures,
    read_alpha,
    read_mask_beside,
    read_picture,
)
from moongate.errors import OptionError, PictureError, TokenError

__all__ = [
    "PRESETS",
    "ZOOM",
    "Augmented",
    "Preset",
    "Regularization",
    "Subject",
    "augment",
    "digest",
    "photo_of",
    "square",
]

ZOOM = (1.2, 1.4)
SHRINK = (0.4, 1.0)
ZOOM_SHARE = 1 / 3
SMALL_BELOW = 0.6
NOTHING_MASKED_IN = -0.99
"""Mean of a mask in -1..1 up to which a latent cell has nothing of the thing; resizing leaves traces around it."""
PHRASES = {"small": ("far away", "very small"), "large": ("zoomed in", "close up")}
"""What a caption says of the size, put before it (paper, Sec. 3.2): "far away photo of a <bear> teddy bear"."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How pictures of one kind are usually taught: the caption of a picture that has none, and the method."""

    caption: str
    """A template with one {} for the thing's words."""
    method: str = "custom-diffusion"

    def describe(self, *things: str) -> str:
        """Return the caption with one thing's words in it, or several things', each with "a" or "an" where it has."""
        article, plain = " a {}" in self.caption, self.caption.replace(" a {}", " {}")
        return plain.replace("{}", " and ".join(_with_article(each) if article else each for each in things))


PRESETS: Mapping[str, Preset] = {
    "object": Preset(caption="photo of a {}"),
    "style": Preset(caption="painting in the style of {}"),
    "scene": Preset(caption="photo of a {}"),
    "face": Preset(caption="photo of a {}", method="custom-diffusion-faces"),
}
"""What users teach (paper, Sec. 4 and App. D)."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to teach: its pictures with a caption each, its category word, and its new token if it has one."""

    pictures: tuple[np.ndarray, ...]
    captions: tuple[str, ...]
    category: str
    token: str | None = None
    masks: tuple[np.ndarray | None, ...] = ()
    """For each picture uint8 [height, width], white where it counts in the loss; None, or no masks: everywhere."""
    names: tuple[str, ...] = ()
    """The names of the pictures' files, where they come from files."""
    held_out: tuple[str, ...] = ()
    """The names of further pictures of the thing, kept from training to judge by."""

    def __post_init__(self) -> None:
        if not self.category.strip():
            raise OptionError("The category is empty. Say what the pictures show, such as 'teddy bear' or 'dog'.")
        if not self.pictures:
            raise PictureError(f"No pictures of the {self.category} were given. Three to ten are usual.")
        if self.masks and len(self.masks) != len(self.pictures):
            raise PictureError(f"{len(self.pictures)} pictures and {len(self.masks)} masks were given. Give each one.")
        for caption in self.captions:
            if self.token and not re.search(rf"(?<!\w){re.escape(self.token)}(?!\w)", caption):
                raise TokenError(
                    f"The caption {caption!r} lacks the token {self.token!r}, which could then not be learned from "
                    f"it. Write for example {photo_of(f'{self.token} {self.category}')!r}, or {{}} for these words."
                )

    @classmethod
    def load(
        cls,
        pictures: str | Path | Iterable[str | Path],
        *,
        category: str,
        token: str | None = None,
        preset: Preset = PRESETS["object"],
        holdout: int = 0,
        alpha_is_mask: bool = False,
    ) -> Self:
        """Read a folder or files; a `.txt` beside a picture is its caption, the preset's "photo of a {}" else.

        A caption says with {} where the words of the thing go ("photo of a {} in a forest"), or has them already.
        A `photo.mask.png` beside `photo.jpg` limits the loss to what is white in it, and so does the alpha channel
        when `alpha_is_mask`; else transparent parts are white. The last `holdout` pictures are not read.
        """
        found = find_pictures(pictures)
        if not 0 <= holdout < len(found):
            raise OptionError(
                f"holdout is {holdout}, and there are {len(found)} pictures of the {category}. Keep at least one to "
                "learn from."
            )
        paths = found[: len(found) - holdout]
        words = f"{token} {category}" if token else category
        masks = [read_mask_beside(path) for path in paths]
        if alpha_is_mask:
            masks = [read_alpha(path) if mask is None else mask for path, mask in zip(paths, masks, strict=True)]
        return cls(
            pictures=tuple(read_picture(path) for path in paths),
            captions=tuple(
                replace(preset, caption=caption_beside(path) or preset.caption).describe(words) for path in paths
            ),
            category=category.strip(),
            token=token,
            masks=tuple(masks) if any(mask is not None for mask in masks) else (),
            names=tuple(path.name for path in paths),
            held_out=tuple(path.name for path in found[len(found) - holdout :]),
        )


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """Pictures of the same category with captions, which keep the model's knowledge of it (paper, Sec. 3.2)."""

    pictures: tuple[np.ndarray, ...]
    captions: tuple[str, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.pictures:
            raise PictureError("There are no regularization pictures. Give a folder that has some, or 'generated'.")

    @classmethod
    def load(cls, folder: str | Path, *, category: str, only_category: bool = False, at_most: int = 200) -> Self:
        """Read a folder of pictures with captions: in `metadata.jsonl`, in a `.txt` beside each, or none.

        `only_category` keeps the pictures whose caption names the category, or the longest ending of it that occurs
        ("rocking horse", then "horse"), as one searches a large pool. A picture without a caption is taken for a
        "photo of a {category}".
        """
        listed = _metadata_captions(Path(folder))
        paths = find_pictures(folder)
        captions = [listed.get(path.name) or caption_beside(path) or photo_of(category) for path in paths]
        chosen = list(zip(paths, captions, strict=True))
        if only_category:
            chosen = _naming(category, chosen, Path(folder))
        chosen = chosen[:at_most]
        return cls(
            pictures=tuple(read_picture(path) for path, _ in chosen),
            captions=tuple(caption for _, caption in chosen),
            source=Path(folder).name,
        )


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """A training image, the latent cells that hold picture (not canvas), and the phrase for its caption."""

    image: Float[Tensor, "3 side side"]
    mask: Bool[Tensor, "cells cells"]
    phrase: str

    def caption(self, caption: str) -> str:
        """Return the caption with the phrase before it."""
        return f"{self.phrase} {caption}" if self.phrase else caption


def augment(
    picture: Float[Tensor, "channels source source"],
    *,
    side_px: int,
    cell_px: int,
    generator: torch.Generator,
    flips: bool = False,
    resizes: bool = True,
) -> Augmented:
    """Zoom in (one picture in three) or shrink and place at random, and say so in the caption (paper, Sec. 3.2).

    `cell_px` is the side of a latent cell in pixels. A shrunk picture is cut to whole cells, so that the mask is
    exactly the region it covers; the rest of the canvas is mid-gray and must not count in the loss. A fourth channel,
    where there is one, is the user's mask: it moves with the picture, and a cell counts when at least half of it is
    masked in, or, where none is, when no other cell has more of it. Without `resizes` the
    whole picture fills the canvas.
    """
    if flips and _uniform(0, 1, generator) < 0.5:
        picture = picture.flip(-1)
    cells = side_px // cell_px
    mask = torch.ones(cells, cells, dtype=torch.bool)
    if not resizes:
        image = _resized(picture, side_px)
        return Augmented(image=image[:3], mask=mask & _counted(image[3:], cell_px), phrase="")
    if _uniform(0, 1, generator) < ZOOM_SHARE:
        side = round(side_px * _uniform(*ZOOM, generator))
        top, left = (_below(side - side_px + 1, generator) for _ in range(2))
        image = _resized(picture, side)[:, top : top + side_px, left : left + side_px]
        mask &= _counted(image[3:], cell_px)
        return Augmented(image=image[:3], mask=mask, phrase=_choice(PHRASES["large"], generator))
    covered = max(1, round(cells * _uniform(*SHRINK, generator)))
    top, left = (_below(cells - covered + 1, generator) for _ in range(2))
    image = torch.zeros(len(picture), side_px, side_px)
    rows, columns = (slice(start * cell_px, (start + covered) * cell_px) for start in (top, left))
    image[:, rows, columns] = _resized(picture, covered * cell_px)
    mask[:] = False
    mask[top : top + covered, left : left + covered] = _counted(image[3:, rows, columns], cell_px)
    small = covered < SMALL_BELOW * cells
    return Augmented(image=image[:3], mask=mask, phrase=_choice(PHRASES["small"], generator) if small else "")


def square(picture: np.ndarray, side_px: int, *, mask: np.ndarray | None = None) -> Float[Tensor, "channels side side"]:
    """Cut a square out of a uint8 picture [h, w, 3] and resize it, as float in -1..1; a mask is channel 4.

    It is the central one, or, where that misses some of what is masked in, the one that shows most of it.
    """
    centering = (0.5, 0.5) if mask is None else _centering(mask)
    layers = [picture] if mask is None else [picture, mask[..., None]]
    fitted = [
        np.array(
            ImageOps.fit(
                Image.fromarray(layer.squeeze()), (side_px, side_px), Image.Resampling.LANCZOS, centering=centering
            )
        )
        for layer in layers
    ]
    return as_tensor(np.concatenate([layer.reshape(side_px, side_px, -1) for layer in fitted], axis=2))


def digest(given: Subject | Regularization) -> str:
    """Return sixteen hexadecimal digits that tell pictures with their captions and masks from others."""
    found = hashlib.sha256()
    for picture, caption in zip(given.pictures, given.captions, strict=True):
        found.update(picture.tobytes() + caption.encode())
    for mask in given.masks if isinstance(given, Subject) else ():
        found.update(b"none" if mask is None else mask.tobytes())
    return found.hexdigest()[:16]


def photo_of(*things: str) -> str:
    """Return "photo of a bear", or "photo of a bear and an armchair"."""
    return PRESETS["object"].describe(*things)


def _centering(mask: np.ndarray) -> tuple[float, float]:
    """Return where the square with most of the mask lies, from 0 (left, top) to 1; in the middle where that will do."""
    found = []
    for axis in (0, 1):
        sums = np.concatenate([[0], (mask >= 128).sum(axis).cumsum()])
        covered = sums[min(mask.shape) :] - sums[: -min(mask.shape)]
        last, most = len(covered) - 1, np.flatnonzero(covered == covered.max())
        found.append(0.5 if last // 2 in most else float(most[len(most) // 2] / last))
    return found[0], found[1]


def _with_article(words: str) -> str:
    return f"{'an' if re.match('[aeiouAEIOU]', words) else 'a'} {words}"


def _metadata_captions(folder: Path) -> dict[str, str]:
    listing, captions = folder / "metadata.jsonl", {}
    lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines() if listing.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {"file_name": ""}
            name = str(row["file_name"])
            captions[name] = str(row.get("caption") or row.get("text") or "")
        except (ValueError, TypeError, KeyError) as error:
            raise PictureError(
                f'Line {number} of {listing} cannot be read. Write {{"file_name": "0.png", "caption": "a dog"}}.'
            ) from error
    return captions


def _naming(category: str, listed: Sequence[tuple[Path, str]], folder: Path) -> list[tuple[Path, str]]:
    words = category.lower().split()
    for start in range(len(words)):
        pattern = re.compile(rf"\b{re.escape(' '.join(words[start:]))}s?\b")
        if named := [row for row in listed if pattern.search(row[1].lower())]:
            return named
    raise PictureError(
        f"None of the {len(listed)} captions in {folder.name!r} names {category!r}. Choose 'generated' "
        "regularization pictures, a folder of your own, or a more common category word."
    )


def _counted(mask: Float[Tensor, "layers height width"], cell_px: int) -> Bool[Tensor, "..."]:
    """Return the cells that count under no mask (all of them) or one in -1..1."""
    if not len(mask):
        return torch.ones(mask.shape[1] // cell_px, mask.shape[2] // cell_px, dtype=torch.bool)
    level = F.avg_pool2d(mask, cell_px)[0]
    return (level > NOTHING_MASKED_IN) & (level >= level.max().clamp(max=0))


def _resized(picture: Tensor, side: int) -> Tensor:
    resized = F.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))


def _choice(options: Sequence[str], generator: torch.Generator) -> str:
    return options[_below(len(options), generator)]
