"""Pictures and captions: what is taught (Subject), what must not be forgotten (Regularisation), and augmentation.

Pictures are uint8 arrays [height, width, 3] outside and float tensors [3, side, side] in -1..1 inside. The module
knows nothing of models: latents are made by whoever trains.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import OptionError, PictureError, TokenError

__all__ = [
    "ZOOM",
    "Augmented",
    "Regularisation",
    "Subject",
    "augment",
    "find_pictures",
    "photo_of",
    "read_picture",
    "square",
]

MIN_SIDE_PX = 16
MAX_SIDE_PX = 1536
"""Larger pictures are shrunk when they are read: no backbone needs more, and memory is finite."""
ZOOM = (1.2, 1.4)
SHRINK = (0.4, 1.0)
ZOOM_SHARE = 1 / 3
SMALL_BELOW = 0.6
PHRASES = {"small": ("far away", "very small"), "large": ("zoomed in", "close up")}
"""What a caption says of the size, put before it (paper, Sec. 3.2): "far away photo of a <bear> teddy bear"."""

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to teach: its pictures with a caption each, its category word, and its new token if it has one."""

    pictures: tuple[np.ndarray, ...]
    captions: tuple[str, ...]
    category: str
    token: str | None = None

    def __post_init__(self) -> None:
        if not self.category.strip():
            raise OptionError("The category is empty. Say what the pictures show, such as 'teddy bear' or 'dog'.")
        if not self.pictures:
            raise PictureError(f"No pictures of the {self.category} were given. Three to ten are usual.")
        for caption in self.captions:
            if self.token and not re.search(rf"(?<!\w){re.escape(self.token)}(?!\w)", caption):
                raise TokenError(
                    f"The caption {caption!r} lacks the token {self.token!r}, which could then not be learnt from "
                    f"it. Write for example {photo_of(f'{self.token} {self.category}')!r}."
                )

    @classmethod
    def load(cls, pictures: str | Path | Iterable[str | Path], *, category: str, token: str | None = None) -> Self:
        """Read a folder or files; a `.txt` beside a picture is its caption, "photo of a {token} {category}" else."""
        paths = find_pictures(pictures)
        words = f"{token} {category}" if token else category
        return cls(
            pictures=tuple(read_picture(path) for path in paths),
            captions=tuple(_caption_beside(path) or photo_of(words) for path in paths),
            category=category.strip(),
            token=token,
        )


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Pictures of the same category with captions, which keep the model's knowledge of it (paper, Sec. 3.2)."""

    pictures: tuple[np.ndarray, ...]
    captions: tuple[str, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.pictures:
            raise PictureError("There are no regularisation pictures. Give a folder that has some, or 'generated'.")

    @classmethod
    def load(cls, folder: str | Path, *, category: str, only_category: bool = False, at_most: int = 200) -> Self:
        """Read a folder of pictures with captions: in `metadata.jsonl`, in a `.txt` beside each, or none.

        `only_category` keeps the pictures whose caption names the category, or the longest ending of it that occurs
        ("rocking horse", then "horse"), as one searches a large pool. A picture without a caption is taken for a
        "photo of a {category}".
        """
        listed = _metadata_captions(Path(folder))
        paths = find_pictures(folder)
        captions = [listed.get(path.name) or _caption_beside(path) or photo_of(category) for path in paths]
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
    picture: Float[Tensor, "3 source source"],
    *,
    side_px: int,
    cell_px: int,
    generator: torch.Generator,
    flips: bool = False,
    resizes: bool = True,
) -> Augmented:
    """Zoom in (one picture in three) or shrink and place at random, and say so in the caption (paper, Sec. 3.2).

    `cell_px` is the side of a latent cell in pixels. A shrunk picture is cut to whole cells, so that the mask is
    exactly the region it covers; the rest of the canvas is mid-grey and must not count in the loss. Without `resizes`
    the whole picture fills the canvas.
    """
    if flips and _uniform(0, 1, generator) < 0.5:
        picture = picture.flip(-1)
    cells = side_px // cell_px
    mask = torch.ones(cells, cells, dtype=torch.bool)
    if not resizes:
        return Augmented(image=_resized(picture, side_px), mask=mask, phrase="")
    if _uniform(0, 1, generator) < ZOOM_SHARE:
        side = round(side_px * _uniform(*ZOOM, generator))
        top, left = (_below(side - side_px + 1, generator) for _ in range(2))
        image = _resized(picture, side)[:, top : top + side_px, left : left + side_px]
        return Augmented(image=image, mask=mask, phrase=_choice(PHRASES["large"], generator))
    covered = max(1, round(cells * _uniform(*SHRINK, generator)))
    top, left = (_below(cells - covered + 1, generator) for _ in range(2))
    image = torch.zeros(3, side_px, side_px)
    rows, columns = (slice(start * cell_px, (start + covered) * cell_px) for start in (top, left))
    image[:, rows, columns] = _resized(picture, covered * cell_px)
    mask[:] = False
    mask[top : top + covered, left : left + covered] = True
    small = covered < SMALL_BELOW * cells
    return Augmented(image=image, mask=mask, phrase=_choice(PHRASES["small"], generator) if small else "")


def square(picture: np.ndarray, side_px: int) -> Float[Tensor, "3 side side"]:
    """Cut the central square out of a uint8 picture [h, w, 3] and resize it, as float in -1..1."""
    image = ImageOps.fit(Image.fromarray(picture), (side_px, side_px), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def photo_of(words: str) -> str:
    """Return "photo of a bear" or "photo of an armchair"."""
    article = "an" if words[:1].lower() in "aeiou" and words else "a"
    return f"photo of {article} {words}"


def find_pictures(pictures: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the picture files of a folder (sorted), or the files given. Raises PictureError when there are none."""
    given = [Path(pictures)] if isinstance(pictures, str | Path) else [Path(path) for path in pictures]
    suffixes = Image.registered_extensions()
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
            if not inside:
                raise PictureError(f"The folder {path} holds no pictures. Put JPEG, PNG or WebP files there.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PictureError(f"There is no picture or folder {path}. Check the path.")
    if not found:
        raise PictureError("No pictures were given. Name a folder or files.")
    return found


def read_picture(path: Path) -> np.ndarray:
    """Read any picture as uint8 [height, width, 3]: upright by its EXIF tag, transparent parts on white.

    CMYK, palette, grey, alpha and 16-bit files are converted. Raises PictureError when the file is damaged, is no
    picture, or is smaller than 16 pixels.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture that can be read. Remove it or save it as PNG.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} is damaged or truncated ({error}). Copy it again or remove it.") from error
    if min(upright.size) < MIN_SIDE_PX:
        raise PictureError(
            f"{path} has {upright.width} x {upright.height} pixels; at least {MIN_SIDE_PX} x {MIN_SIDE_PX} are "
            "needed. Use a larger picture."
        )
    picture = _as_rgb(upright)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return np.array(picture)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY:
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        image = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _caption_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    return " ".join(text.read_text(encoding="utf-8").split()) if text.is_file() else ""


def _metadata_captions(folder: Path) -> dict[str, str]:
    listing = folder / "metadata.jsonl"
    if not listing.is_file():
        return {}
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["file_name"]: row.get("caption") or row.get("text") or "" for row in rows}


def _naming(category: str, listed: Sequence[tuple[Path, str]], folder: Path) -> list[tuple[Path, str]]:
    words = category.lower().split()
    for start in range(len(words)):
        pattern = re.compile(rf"\b{re.escape(' '.join(words[start:]))}s?\b")
        if named := [row for row in listed if pattern.search(row[1].lower())]:
            return named
    raise PictureError(
        f"None of the {len(listed)} captions in {folder.name!r} names {category!r}. Choose 'generated' "
        "regularisation pictures, a folder of your own, or a more common category word."
    )


def _resized(picture: Tensor, side: int) -> Tensor:
    resized = F.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))


def _choice(options: Sequence[str], generator: torch.Generator) -> str:
    return options[_below(len(options), generator)]
