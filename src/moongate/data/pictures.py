"""Picture files as users have them: found, read upright as uint8 [height, width, 3], with captions and masks beside.

They become what models compute with, and pictures again, here and nowhere else. It also says when two pictures are the
same one, or a picture is blurred. It knows nothing of training.
"""

import glob
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from moongate.errors import PictureError
from moongate.extras import library

__all__ = [
    "MIN_SIDE_PX",
    "SAME_ABOVE",
    "as_pixels",
    "as_tensor",
    "caption_beside",
    "find_pictures",
    "looks",
    "read_alpha",
    "read_mask_beside",
    "read_picture",
    "remarks",
]

MIN_SIDE_PX = 16
MAX_SIDE_PX = 1536
"""Larger pictures are shrunk when they are read: no backbone needs more, and memory is finite."""
SAME_ABOVE = 0.97
"""Product of `looks` above which two pictures are one: no two of pocket's pool reach it, and every one does with itself
shrunk by a third and saved as JPEG of quality 60."""
SHARP_ABOVE = 30.0
"""Variance of the Laplacian below which a picture is called blurred: pocket's examples have 195 and more, and at most
17 after a Gaussian blur of two pixels."""
SHARPNESS_SIDE_PX = 256
"""Sharpness is judged at this size, so that large photos with a little noise do not pass for sharp."""

MASK = ".mask"
"""How the name of a mask ends: photo.mask.png is that of photo.jpg."""

_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_HEIC = (".heic", ".heif")


def find_pictures(pictures: str | Path | Iterable[str | Path], *, strict: bool = True) -> list[Path]:
    """Return the picture files of a folder (sorted), or the files given; masks beside pictures are left out.

    Raises PictureError when there are none, or when a mask belongs to no picture, unless it is not `strict`.
    """
    given = [Path(pictures)] if isinstance(pictures, str | Path) else [Path(path) for path in pictures]
    suffixes = {*Image.registered_extensions(), *_HEIC}
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
            if strict and not inside:
                raise PictureError(f"The folder {path} holds no pictures. Put JPEG, PNG or WebP files there.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PictureError(f"There is no picture or folder {path}. Check the path.")
    masks = [path for path in found if path.stem.endswith(MASK)]
    found = [path for path in found if not path.stem.endswith(MASK)]
    masked = {path.with_suffix("") for path in found}
    lost = [mask for mask in masks if mask.with_name(mask.stem.removesuffix(MASK)) not in masked]
    if strict and lost:
        raise PictureError(f"The mask {lost[0]} has no picture of its name beside it. Rename it or remove it.")
    if strict and not found:
        raise PictureError("No pictures were given. Name a folder or files.")
    return found


def read_picture(file: Path | bytes, *, name: str | None = None) -> np.ndarray:
    """Read any picture as uint8 [height, width, 3]: upright by its EXIF tag, transparent parts on white.

    CMYK, palette, gray, alpha and 16-bit files are converted; errors call it `name`. Raises PictureError when the
    file is damaged, is no picture, or is smaller than 16 pixels, and MissingLibrary for HEIC without its extra.
    """
    picture = _as_rgb(_upright(file, name or str(file)))
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return np.array(picture)


def read_mask_beside(path: Path) -> np.ndarray | None:
    """Return the mask `photo.mask.png` of `photo.jpg` as uint8 [height, width], white where the thing is, if any.

    It may have another format, such as `photo.mask.jpg`.

    Raises PictureError when its proportions are not the picture's, or it is black all over.
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


def read_alpha(path: Path) -> np.ndarray | None:
    """Return the alpha channel of a picture as a mask, uint8 [height, width]; None where nothing is transparent."""
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
    """Return what `as_tensor` was given: floats in -1..1, from wherever they are, as the nearest pixels of 0..255."""
    return ((images + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def caption_beside(path: Path) -> str:
    """Return the text of `photo.txt` for `photo.jpg` on one line, or nothing. Raises PictureError unless in UTF-8."""
    text = path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
    except UnicodeDecodeError as error:
        raise PictureError(f"The caption {text} is not in UTF-8 ({error.reason}). Save it as UTF-8.") from error


def looks(picture: np.ndarray) -> np.ndarray:
    """Return 768 numbers of length one whose products tell how alike pictures are, whatever their size or format."""
    small = Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    values = (values - values.mean((0, 1))).ravel()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def remarks(pictures: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
    """Return a sentence for each picture that repeats an earlier one, and for each that is blurred."""
    found = []
    seen = [looks(picture) for picture in pictures]
    for index, name in enumerate(names):
        earlier = [names[other] for other in range(index) if seen[index] @ seen[other] > SAME_ABOVE]
        if earlier:
            found.append(f"{name} shows the same as {earlier[0]}. Different views teach more.")
        if _sharpness(pictures[index]) < SHARP_ABOVE:
            found.append(f"{name} is blurred, and so will be what is learned from it. Leave it out if you can.")
    return found


def _sharpness(picture: np.ndarray) -> float:
    """Return the variance of the Laplacian of the brightness, in gray levels squared."""
    image = Image.fromarray(picture).convert("L")
    image.thumbnail((SHARPNESS_SIDE_PX, SHARPNESS_SIDE_PX), Image.Resampling.LANCZOS)
    gray = np.asarray(image, dtype=np.float64)
    neighbors = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1]
    return float((neighbors - 4 * gray[1:-1, 1:-1]).var())


def _upright(file: Path | bytes, name: str) -> Image.Image:
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


def _usable(mask: Image.Image, file: Path) -> np.ndarray:
    mask.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    values = np.array(mask)
    if values.max() < 128:
        raise PictureError(f"The mask of {file} hides the whole picture. Paint what is to be learned white.")
    return values


def _as_rgb(image: Image.Image) -> Image.Image:
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
