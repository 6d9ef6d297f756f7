"""Picture files as users have them: found, read upright as uint8 [height, width, 3], with their captions and masks.

Conversion between pixels and the tensors of models happens only here. The module also finds repeated and blurred
pictures. It knows nothing of training.
"""

import glob
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from moongate.errors import PictureError
from moongate.extras import library
from moongate.limits import MAX_SIDE_PX, MIN_SIDE_PX

__all__ = [
    "SAME_ABOVE",
    "as_pixels",
    "as_tensor",
    "caption_beside",
    "find_pictures",
    "appearance",
    "read_alpha",
    "read_mask_beside",
    "read_picture",
    "remarks",
]

SAME_ABOVE = 0.97
"""Dot product of two `appearance` vectors above which two pictures are the same one. No two pictures of pocket's pool
reach it, and every picture reaches it with a copy of itself that is a third smaller and saved as JPEG of quality 60."""
SHARP_ABOVE = 30.0
"""Variance of the Laplacian below which a picture is called blurred: pocket's examples have 195 and more, and at most
17 after a Gaussian blur of two pixels."""
SHARPNESS_SIDE_PX = 256
"""Sharpness is measured at this size, so that noise in large photos does not count as sharpness."""

MASK = ".mask"
"""End of a mask's name: photo.mask.png is the mask of photo.jpg."""

_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_HEIC = (".heic", ".heif")


def find_pictures(pictures: str | Path | Iterable[str | Path], *, strict: bool = True) -> list[Path]:
    """Return the picture files of a folder (sorted), or the files given, without masks.

    Args:
        pictures: A folder, or files and folders.
        strict: Whether finding no pictures, or a mask without a picture, is an error.

    Raises:
        PictureError: A file or folder does not exist, or `strict` finds something wrong.
    """
    places = [Path(pictures)] if isinstance(pictures, str | Path) else [Path(path) for path in pictures]
    suffixes = {*Image.registered_extensions(), *_HEIC}
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in suffixes and path.is_file())
            if strict and not inside:
                raise PictureError(f"The folder {place} holds no pictures. Put JPEG, PNG or WebP files there.")
            files += inside
        elif place.is_file():
            files.append(place)
        else:
            raise PictureError(f"There is no picture or folder {place}. Check the path.")
    masks = [path for path in files if path.stem.endswith(MASK)]
    files = [path for path in files if not path.stem.endswith(MASK)]
    stems = {path.with_suffix("") for path in files}
    lost = [mask for mask in masks if mask.with_name(mask.stem.removesuffix(MASK)) not in stems]
    if strict and lost:
        raise PictureError(f"The mask {lost[0]} has no picture of its name beside it. Rename it or remove it.")
    if strict and not files:
        raise PictureError("No pictures were given. Name a folder or files.")
    return files


def read_picture(file: Path | bytes, *, name: str | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Read any picture: upright by its EXIF tag, transparent parts on white, shrunk to at most `MAX_SIDE_PX`.

    CMYK, palette, gray, alpha and 16-bit files are converted to RGB.

    Args:
        file: A file, or its content.
        name: What errors call the picture; the path if it is not given.

    Raises:
        PictureError: The file is damaged, is not a picture, or is smaller than `MIN_SIDE_PX`.
        MissingLibrary: The picture is HEIC and the extra for it is not installed.
    """
    picture = _as_rgb(_upright(file, name or str(file)))
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return np.array(picture)


def read_mask_beside(path: Path) -> UInt8[np.ndarray, "height width"] | None:
    """Return the mask of a picture, white where the subject is; None if there is no mask.

    The mask of `photo.jpg` is `photo.mask.png` in the same folder, or has another ending such as `photo.mask.jpg`.

    Raises:
        PictureError: The mask has other proportions than its picture, is black all over, or cannot be read.
    """
    file = next(iter(sorted(path.parent.glob(f"{glob.escape(path.stem + MASK)}.*"))), None)
    if file is None:
        return None
    width, height = _upright(path, str(path)).size
    mask = _upright(file, str(file)).convert("L")
    if abs(mask.width * height - mask.height * width) > max(width, height):
        raise PictureError(
            f"The mask {file} has {mask.width} x {mask.height} pixels and {path.name} {width} x {height}. Give it the "
            "size of its picture."
        )
    return _usable(mask, file)


def read_alpha(path: Path) -> UInt8[np.ndarray, "height width"] | None:
    """Return the alpha channel of a picture as a mask; None if no part is transparent.

    Raises:
        PictureError: The picture cannot be read, or is transparent all over.
    """
    image = _upright(path, str(path))
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else _usable(alpha, path)


def as_tensor(
    pictures: UInt8[np.ndarray, "*n height width channels"],
) -> Float[Tensor, "*n channels height width"]:
    """Return pixels of 0..255, of one picture or of several of one size, as floats in -1..1."""
    return torch.tensor(pictures).movedim(-1, -3).float() / 127.5 - 1


def as_pixels(
    images: Float[Tensor, "*n channels height width"],
) -> UInt8[np.ndarray, "*n height width channels"]:
    """Return floats in -1..1, on any device, as the nearest pixels of 0..255: the inverse of `as_tensor`."""
    return ((images + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def caption_beside(path: Path) -> str:
    """Return the text of `photo.txt` for `photo.jpg` on one line, or an empty string if there is no such file.

    Raises:
        PictureError: The text is not in UTF-8.
    """
    text = path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
    except UnicodeDecodeError as error:
        raise PictureError(f"The caption {text} is not in UTF-8 ({error.reason}). Save it as UTF-8.") from error


def appearance(picture: UInt8[np.ndarray, "height width 3"]) -> Float64[np.ndarray, "768"]:
    """Return a unit vector of a picture's coarse appearance, whatever its size or format.

    The dot product of two such vectors says how similar the pictures are; above `SAME_ABOVE` they are the same one.
    """
    small = Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    values = (values - values.mean((0, 1))).ravel()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def remarks(pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]], names: Sequence[str]) -> list[str]:
    """Return a warning for each picture that repeats an earlier one, and for each that is blurred.

    Args:
        pictures: The pictures of one subject.
        names: What the warnings call each of them.
    """
    warnings = []
    vectors = [appearance(picture) for picture in pictures]
    for index, name in enumerate(names):
        earlier = [names[other] for other in range(index) if vectors[index] @ vectors[other] > SAME_ABOVE]
        if earlier:
            warnings.append(f"{name} shows the same as {earlier[0]}. Different views teach more.")
        if _sharpness(pictures[index]) < SHARP_ABOVE:
            warnings.append(
                f"{name} is blurred, and what is learned from it will be blurred too. Leave it out if you can."
            )
    return warnings


def _sharpness(picture: UInt8[np.ndarray, "height width 3"]) -> float:
    """Return the variance of the Laplacian of the brightness, in gray levels squared."""
    image = Image.fromarray(picture).convert("L")
    image.thumbnail((SHARPNESS_SIDE_PX, SHARPNESS_SIDE_PX), Image.Resampling.LANCZOS)
    gray = np.asarray(image, dtype=np.float64)
    neighbors = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1]
    return float((neighbors - 4 * gray[1:-1, 1:-1]).var())


def _upright(file: Path | bytes, name: str) -> Image.Image:
    """Return the picture, turned by its EXIF tag."""
    if Path(name).suffix.lower() in _HEIC:
        library("pillow_heif").register_heif_opener()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture that can be read. Remove it or save it as PNG.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name} is damaged or truncated ({error}). Copy it again or remove it.") from error
    if min(upright.size) < MIN_SIDE_PX:
        raise PictureError(
            f"{name} has {upright.width} x {upright.height} pixels; at least {MIN_SIDE_PX} x {MIN_SIDE_PX} are "
            "needed. Use a larger picture."
        )
    return upright


def _usable(mask: Image.Image, file: Path) -> UInt8[np.ndarray, "height width"]:
    """Return the mask, shrunk as its picture is. Raises PictureError if it hides everything."""
    mask.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    values = np.array(mask)
    if values.max() < 128:
        raise PictureError(f"The mask of {file} hides the whole picture. Paint what is to be learned white.")
    return values


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, with transparent parts on white."""
    if image.mode in _DEEP_GRAY:
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
