"""Picture files as users have them: read upright as uint8 [height, width, 3], with their masks.

Conversion between pixels and the tensors of models happens only here. The module also finds repeated and blurred
pictures. It knows nothing of training.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from moongate.data.folders import masks_beside
from moongate.errors import PictureError, listed, warn
from moongate.extras import library
from moongate.limits import MAX_PICTURE_BYTES, MAX_PIXELS, MAX_PROFILE_BYTES, MAX_SCANS, MAX_SIDE_PX, MIN_SIDE_PX

__all__ = [
    "SAME_ABOVE",
    "as_pixels",
    "as_tensor",
    "appearance",
    "check_pixels",
    "check_shows",
    "read_alpha",
    "read_mask",
    "read_mask_beside",
    "read_picture",
    "remarks",
    "size_remarks",
]

SAME_ABOVE = 0.97
"""Dot product of two `appearance` vectors above which two pictures are the same one. No two pictures of pocket's pool
reach it, and every picture reaches it with a copy of itself that is a third smaller and saved as JPEG of quality 60."""
SHARP_ABOVE = 30.0
"""Variance of the Laplacian below which a picture is called blurred: pocket's examples have 195 and more, and at most
17 after a Gaussian blur of two pixels."""
PANORAMA = 2.5
"""Pictures whose sides differ by more than this factor are called panoramas: a square shows less than half of them."""
LEAST_WHITE = 8
"""Least brightness of a mask, of 255, in one sixteenth of the picture; less is lost where latent cells are counted."""
SHARPNESS_SIDE_PX = 256
"""Sharpness is measured at this size, so that noise in large photos does not count as sharpness."""

_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The only decoders that may see a file. Others of Pillow start programs (PostScript goes to Ghostscript)."""
_HEIC = (".heic", ".heif")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError),
    *(EOFError, struct.error, zlib.error),
)
"""What Pillow's decoders raise for a damaged file."""
_ROWS_AT_ONCE = 256
"""Rows of a large picture that are converted at once, so that the memory holds it only once more."""
_opening = threading.Lock()
"""Held while a header is read: Python's filters of warnings belong to the whole process."""


def read_picture(file: Path | bytes, *, name: str | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Read any picture: upright by its EXIF tag, transparent parts on white, shrunk to at most `MAX_SIDE_PX`.

    CMYK, palette, gray, alpha and 16-bit files are converted to RGB, and colors of an embedded profile to sRGB.

    Args:
        file: A file, or its content.
        name: What errors call the picture; the path if it is not given.

    Raises:
        PictureError: The file is damaged, is not a picture of a known format, is smaller than `MIN_SIDE_PX`, also
            after it was shrunk, or has more than `MAX_PIXELS` pixels.
        MissingLibrary: The picture is HEIC and the extra for it is not installed.
    """
    name = name or str(file)
    upright = _upright(file, name)
    picture = _as_rgb(_in_srgb(_in_eight_bits(upright), upright.info.get("icc_profile")))
    width, height = picture.size
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    if min(picture.size) < MIN_SIDE_PX:
        raise PictureError(
            f"{name} has {width} x {height} pixels, and is too narrow: shrunk to {MAX_SIDE_PX} pixels, its "
            f"other side has {min(picture.size)}, and at least {MIN_SIDE_PX} are needed. Crop it around what it shows."
        )
    return np.array(picture)


def read_mask(file: Path, *, is_taught: bool = True) -> UInt8[np.ndarray, "height width"]:
    """Return a mask, shrunk as a picture of its size is: gray, from 16 bits as well, with transparent parts black.

    Args:
        file: The picture of the mask.
        is_taught: Whether the mask is white where a subject is to be learned, so that too little white is an error.
            Else it is white where a picture may change, which may be of any size.

    Raises:
        PictureError: The file cannot be read, or is black all over.
    """
    mask = _as_gray(_upright(file, str(file)))
    if is_taught:
        return _usable(mask, file)
    if np.asarray(mask).max() < 128:
        raise PictureError(f"The mask {file} is black all over. Paint the place that may change white (255).")
    mask.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    return np.array(mask)


def read_mask_beside(path: Path, *, files: Sequence[Path] | None = None) -> UInt8[np.ndarray, "height width"] | None:
    """Return the mask of a picture, white where the subject is; None if there is no mask.

    The mask of `photo.jpg` is `photo.mask.png` or OneTrainer's `photo-masklabel.png` in the same folder, or has another
    suffix such as `photo.mask.jpg`.

    Args:
        path: The picture.
        files: The files of its masks, as `masks_of` finds them for many pictures at once.

    Raises:
        PictureError: There are two masks, or the mask has other proportions than its picture, is black all over, or
            cannot be read.
    """
    files = masks_beside(path) if files is None else files
    if not files:
        return None
    if len(files) > 1:
        names = " and ".join(mask.name for mask in files)
        raise PictureError(f"{path} has the masks {names}. Keep one of them.")
    file = files[0]
    width, height = _upright(path, str(path)).size
    mask = _as_gray(_upright(file, str(file)))
    if abs(mask.width * height - mask.height * width) > max(width, height):
        raise PictureError(
            f"The mask {file} has {mask.width} x {mask.height} pixels and {path.name} {width} x {height}. Give it the "
            "size of its picture."
        )
    return _usable(mask, file)


def check_pixels(pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]], words: str) -> None:
    """Raise PictureError for a picture that is not uint8 [height, width, 3] of at least `MIN_SIDE_PX`.

    Args:
        pictures: The pictures.
        words: What they show, for the message.
    """
    for number, picture in enumerate(pictures, 1):
        if not isinstance(picture, np.ndarray):
            raise PictureError(
                f"Picture {number} of {words} is a {type(picture).__name__}. Give a NumPy array uint8 [height, width, "
                "3] (numpy.asarray of an RGB picture)."
            )
        shape = picture.shape
        if picture.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < MIN_SIDE_PX:
            raise PictureError(
                f"Picture {number} of {words} is {picture.dtype} {list(shape)}. Give uint8 [height, width, 3] of red, "
                f"green and blue, of at least {MIN_SIDE_PX} pixels a side."
            )


def check_shows(mask: UInt8[np.ndarray, "height width"], name: str) -> None:
    """Raise PictureError for a mask that is white nowhere, or in so little that no latent cell would count."""
    if mask.max() < 128:
        raise PictureError(f"{name} hides the whole picture. Paint what is to be learned white (255).")
    parts = Image.fromarray(mask).resize((4, 4), Image.Resampling.BOX)
    if np.asarray(parts).max() < LEAST_WHITE:
        raise PictureError(
            f"{name} is white in {(mask >= 128).mean():.3%} of the picture, which is too little to learn from. Paint "
            "all of what is to be learned white (255)."
        )


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
    """Return floats in -1..1, on any device, as the nearest pixels of 0..255: the inverse of `as_tensor`.

    Warns of numbers that are not finite, which become black: nobody would know why.
    """
    if not images.isfinite().all():
        warn(
            "The model computed numbers that are not finite, which are black in pictures. Lower the strength of the "
            "concepts, load the model in float32 (--dtype float32), or download it again."
        )
        images = images.nan_to_num(-1, -1, -1)
    return ((images + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def appearance(picture: UInt8[np.ndarray, "height width 3"]) -> Float64[np.ndarray, "768"]:
    """Return a unit vector of a picture's coarse appearance, whatever its size or format.

    The dot product of two such vectors says how similar the pictures are; above `SAME_ABOVE` they are the same one.
    """
    small = Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    values = (values - values.mean((0, 1))).ravel()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def remarks(pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]], names: Sequence[str]) -> list[str]:
    """Return warnings: of a single picture, and of each that repeats an earlier one, is blurred, or is a panorama.

    Args:
        pictures: The pictures of one subject.
        names: What the warnings call each of them.
    """
    warnings = []
    if len(pictures) == 1:
        warnings.append(
            f"{names[0]} is the only picture, so its place and pose are learned with the subject. Three to ten "
            "pictures from different sides and in different places teach more."
        )
    vectors = [appearance(picture) for picture in pictures]
    for index, name in enumerate(names):
        earlier = [names[other] for other in range(index) if vectors[index] @ vectors[other] > SAME_ABOVE]
        if earlier:
            warnings.append(f"{name} shows the same as {earlier[0]}. Different views teach more.")
        if _sharpness(pictures[index]) < SHARP_ABOVE:
            warnings.append(
                f"{name} is blurred, and what is learned from it will be blurred too. Leave it out if you can."
            )
        height, width = pictures[index].shape[:2]
        if max(height, width) > PANORAMA * min(height, width):
            warnings.append(
                f"{name} is {width} x {height} pixels, of which training sees the square in the middle. Crop it around "
                "the subject."
            )
    return warnings


def size_remarks(
    pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]], names: Sequence[str], side_px: int
) -> list[str]:
    """Return a warning that names the pictures that must be enlarged to the model's size, if there are any.

    Args:
        pictures: The pictures of one subject.
        names: What the warning calls each of them.
        side_px: Side of the model's pictures in pixels.
    """
    small = [name for picture, name in zip(pictures, names, strict=True) if min(picture.shape[:2]) < side_px]
    if not small:
        return []
    return [
        f"{len(small)} of {len(pictures)} pictures are smaller than the {side_px} pixels that the model draws, and are "
        f"enlarged, which makes them soft: {listed(small, at_most=3)}. Larger ones teach more detail."
    ]


def _sharpness(picture: UInt8[np.ndarray, "height width 3"]) -> float:
    """Return the variance of the Laplacian of the brightness, in gray levels squared."""
    image = Image.fromarray(picture).convert("L")
    image.thumbnail((SHARPNESS_SIDE_PX, SHARPNESS_SIDE_PX), Image.Resampling.LANCZOS)
    gray = np.asarray(image, dtype=np.float64)
    neighbors = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1]
    return float((neighbors - 4 * gray[1:-1, 1:-1]).var())


def _upright(file: Path | bytes, name: str) -> Image.Image:
    """Return the picture, turned by its EXIF tag."""
    try:
        with _opened(file, name) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name} is not a picture that can be read ({', '.join((*_FORMATS, 'HEIC'))}). Remove it or save it as PNG."
        ) from error
    except _BROKEN as error:
        if isinstance(error, PictureError):
            raise
        if "MAX_TEXT" in str(error):  # as Pillow calls its limits of what is packed beside the pixels
            raise PictureError(f"{name} has packed texts of more than a megabyte. Save it without them.") from error
        raise PictureError(f"{name} is damaged or truncated ({error}). Copy it again or remove it.") from error
    if min(upright.size) < MIN_SIDE_PX:
        raise PictureError(
            f"{name} has {upright.width} x {upright.height} pixels; at least {MIN_SIDE_PX} x {MIN_SIDE_PX} are "
            "needed. Use a larger picture."
        )
    return upright


def _opened(file: Path | bytes, name: str) -> Image.Image:
    """Read the header of a picture of a known format; the pixels are not decoded yet."""
    if isinstance(file, Path):
        if not file.is_file():
            raise PictureError(f"There is no picture {name}, or it is not a regular file. Check the path.")
        if file.stat().st_size > MAX_PICTURE_BYTES:
            raise PictureError(f"{name} has more than {MAX_PICTURE_BYTES // 10**6} MB. Shrink it, or save it as JPEG.")
        file = file.read_bytes()
    if not file:
        raise PictureError(f"{name} is empty: it has 0 bytes. Copy it again or remove it.")
    start = file[:12]
    if start.startswith(b"\xff\xd8") and file.count(b"\xff\xda") > MAX_SCANS:
        raise PictureError(f"{name} is a JPEG of more than {MAX_SCANS} scans, as no camera writes. Save it as PNG.")
    formats: tuple[str, ...] = _FORMATS
    if Path(name).suffix.lower() in _HEIC or (start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS):
        library("pillow_heif").register_heif_opener()
        formats = (*_FORMATS, "HEIF")
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(file), formats=formats)


def _too_large(name: str) -> PictureError:
    return PictureError(
        f"{name} is too large: it has more than {MAX_PIXELS // 10**6} million pixels. Shrink it, for example to "
        f"{MAX_SIDE_PX} pixels a side, which is the most that is used."
    )


def _usable(mask: Image.Image, file: Path) -> UInt8[np.ndarray, "height width"]:
    """Return the mask, shrunk as its picture is. Raises PictureError if it hides everything."""
    mask.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    values = np.array(mask)
    check_shows(values, f"The mask of {file}")
    return values


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture of eight bits with the colors of its profile in sRGB; as it is, if that cannot be done."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return image
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[known.profile.xcolor_space]
        fits = image.mode in ("1", "L", "LA") if mode == "L" else (image.mode == "CMYK") == (mode == "CMYK")
        if not fits or "srgb" in (known.profile.profile_description or "").lower():
            return image
        layer = image.convert("RGBA") if image.has_transparency_data and image.mode != "RGBA" else image
        plain = layer if layer.mode == mode else layer.convert(mode)
        colors = ImageCms.profileToProfile(plain, known, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert colors  # it would be None in place
        if layer.mode == "RGBA":
            colors.putalpha(layer.getchannel("A"))
        return colors
    except (*_BROKEN, ImageCms.PyCMSError):
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of eight bits in RGB, with transparent parts on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    rgb = Image.new("RGB", layer.size)
    for top in range(0, layer.height, _ROWS_AT_ONCE):
        rows = layer.crop((0, top, layer.width, min(top + _ROWS_AT_ONCE, layer.height)))
        rgb.paste(Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows).convert("RGB"), (0, top))
    return rgb


def _as_gray(image: Image.Image) -> Image.Image:
    """Return a mask in gray, with transparent parts on black: nothing is painted there."""
    image = _in_eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("L")
    layer = image.convert("RGBA")
    gray = Image.new("L", layer.size)
    gray.paste(layer.convert("L"), mask=layer.getchannel("A"))
    return gray


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture as it is, but gray of 16 or 32 bits or of floats in eight bits: Pillow would cut such values.

    Where no value is above 255 they are eight bits already, as NumPy's integers are saved. Lab, of which Pillow makes
    no gray, becomes RGB.
    """
    if image.mode in _DEEP_GRAY:
        values = np.asarray(image)
        if values.max() <= 255:
            return Image.fromarray(values.clip(0, 255).astype(np.uint8))
        eight_bits = (np.arange(65536) / 257).round().astype(np.uint8)
        return Image.fromarray(eight_bits[values.clip(0, 65535)])
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB") if image.mode == "LAB" else image
