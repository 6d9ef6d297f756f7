"""Answers for the page Teach: what a model needs, what photos are like, and whether words can be used."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moongate.errors import PictureError
from moongate.files import free_stem, write_atomically
from moongate.pocket import weights_folder
from moongate.studio.drafts import Settings
from moongate.studio.worker.bench import Bench
from moongate.texts import parse_json, read_text

__all__ = [
    "bring_photos",
    "check_mask",
    "check_photo",
    "check_token",
    "look_at_photos",
    "measure_speed",
    "model_facts",
    "side_of",
    "usual_steps",
]

WHOLE_PX = 640
"""Side of a photo on which a mask is drawn."""
TRIED_STEPS = 3
"""Steps of the training whose speed is measured; the first one is not timed."""


def check_token(bench: Bench, token: str, model: str | None = None) -> bool:
    """Return True if a token can be added to a model as one new word.

    Raises:
        TokenError: It cannot; the message says why, and what can.
    """
    bench.backbone(model).check_token(token)
    return True


def model_facts(bench: Bench, model: str | None = None) -> dict[str, int]:
    """Return what a training of a model needs to know of it.

    Returns:
        `resolution_px`, the side of its pictures; and `change_bytes`, the size of an uncompressed concept.
    """
    backbone = bench.backbone(model)
    numbers = sum(weight.numel() for weight in backbone.weights("cross-attention-kv").values())
    return {"resolution_px": backbone.resolution_px, "change_bytes": 4 * (numbers + sum(backbone.token_widths))}


def side_of(_bench: Bench, model: str) -> int | None:
    """Return the side of a model's pictures in pixels from its configuration; None if it is not in a folder here."""
    folder = _folder_of(model)
    try:
        unet, vae = (parse_json(read_text(folder / part / "config.json")) for part in ("unet", "vae"))
        channels = vae.get("block_out_channels") or vae["encoder_block_out_channels"]
        return int(unet["sample_size"]) * 2 ** (len(channels) - 1)
    except (OSError, ValueError, OverflowError, LookupError, TypeError, AttributeError):
        return None


def usual_steps(_bench: Bench, model: str) -> int:
    """Return the steps for a subject that suit a model by its `moongate.json`; the paper's where no folder is here.

    The file is read without torch, which takes seconds to load.
    """
    usual = Settings().steps
    try:
        return max(1, round(usual * parse_json(read_text(_folder_of(model) / "moongate.json")).get("steps_scale", 1)))
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return usual


def _folder_of(model: str) -> Path:
    """Return the folder of a model, which is not there if the name is one of a hub."""
    return weights_folder() if model == "pocket" else Path(model)


def measure_speed(bench: Bench, model: str | None = None) -> float:
    """Return the pictures per second of a training with regularization pictures, from a short one of noise."""
    import numpy as np

    from moongate.data import Regularization, Subject
    from moongate.training import TrainOptions, train
    from moongate.training.method import method_for

    backbone, speeds = bench.backbone(model), list[float]()
    side = backbone.resolution_px
    noise = tuple(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8) for seed in range(4))
    subject = Subject(pictures=noise, captions=("photo of a thing",) * 4, category="thing")
    train(
        *(backbone, [subject], [Regularization(pictures=noise, captions=subject.captions)], method_for(backbone, None)),
        options=TrainOptions(steps=TRIED_STEPS),
        on_step=lambda step: speeds.append(step.pictures_per_second),
    )
    return speeds[-1]


def check_photo(_bench: Bench, file: str, name: str) -> list[int]:
    """Return height and width of an uploaded photo as it will be read.

    Raises:
        PictureError: It is no picture that can be read.
    """
    from moongate.data.pictures import read_picture

    return list(read_picture(Path(file).read_bytes(), name=name).shape[:2])


def check_mask(_bench: Bench, photo: str, mask: str) -> None:
    """Keep an uploaded mask as that of a photo, as PNG.

    Raises:
        PictureError: It is no picture, is black all over, or has other proportions than the photo.
    """
    from PIL import Image

    from moongate.data.pictures import read_mask, read_picture
    from moongate.pages import png_bytes

    path = Path(photo)
    height, width = read_picture(path).shape[:2]
    values = read_mask(Path(mask))
    if abs(values.shape[1] * height - values.shape[0] * width) > 2 * max(width, height):
        raise PictureError(
            f"The mask has {values.shape[1]} x {values.shape[0]} pixels and {path.name} {width} x {height}. Give it "
            "the size of its photo."
        )
    gray = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST).convert("RGB")
    write_atomically(path.with_name(f"{path.stem}.mask.png"), png_bytes(gray))


def bring_photos(bench: Bench, source: str, target: str, prefix: str = "") -> list[str]:
    """Copy the photos of a folder with their captions and masks, and return what was ignored, as sentences.

    Raises:
        PictureError: There is no photo, or one cannot be read.
    """
    import warnings

    from moongate.data.caption_files import read_captions
    from moongate.data.folders import gather, masks_beside
    from moongate.data.pictures import read_picture

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gathered = gather(Path(source))
        captions = read_captions(gathered.photos, gathered.folders)
    place, taken = Path(target), set[str]()
    for photo, caption in zip(gathered.photos, captions, strict=True):
        read_picture(photo)
        stem = free_stem(f"{prefix}{photo.stem}", taken)  # two folders may have photos of one name
        taken.add(stem)
        copy = place / f"{stem}{photo.suffix}"
        write_atomically(copy, photo.read_bytes())
        if caption:
            write_atomically(copy.with_suffix(".txt"), f"{caption}\n".encode())
        for mask in masks_beside(photo)[:1]:
            check_mask(bench, str(copy), str(mask))
    return [str(each.message) for each in caught]


def look_at_photos(
    _bench: Bench, photos: Sequence[str], masks: Sequence[str | None], side_px: int, previews: str
) -> list[dict[str, Any]]:
    """Return for each photo how the model will see it and what should be known of it.

    Args:
        photos: The files.
        masks: The mask of each, if it has one.
        side_px: Side of the model's pictures.
        previews: Folder for the pictures, which are kept under names of their content.

    Returns:
        For each `preview`, the file of the cropped picture, `whole`, that of the photo as it is, and `remarks`,
        sentences; or `error`, a sentence.
    """
    from moongate.data.pictures import read_mask, read_picture, remarks

    looks: list[dict[str, Any]] = []
    names, pictures = _different_names([Path(file) for file in photos]), dict[str, Any]()
    for name, file, mask_file in zip(names, photos, masks, strict=True):
        try:
            picture = read_picture(Path(file))
            mask = read_mask(Path(mask_file)) if mask_file else None
        except PictureError as error:
            looks.append({"error": str(error)})
            continue
        pictures[name] = picture
        looks.append(dict(_previews(picture, mask, side_px, Path(previews))))
    texts = remarks([*pictures.values()], [*pictures]) if pictures else []
    for name, look in zip(names, looks, strict=True):
        if name in pictures:
            look["remarks"] = [text for text in texts if text.startswith(f"{name} ")]
            if min(pictures[name].shape[:2]) < side_px:
                look["remarks"].append(f"{name} is smaller than the {side_px} pixels that the model draws.")
    return looks


def _different_names(files: Sequence[Path]) -> list[str]:
    """Return the names of files, with their folders where two have the same name."""
    counts = Counter(file.name for file in files)
    return [file.name if counts[file.name] == 1 else f"{file.parent.name}/{file.name}" for file in files]


def _previews(picture: Any, mask: Any, side_px: int, folder: Path) -> dict[str, str]:
    """Write a photo as it is, and as the model sees it: upright, cropped, and darker where its mask is black."""
    import numpy as np
    from PIL import Image

    from moongate.data import square
    from moongate.data.pictures import as_pixels
    from moongate.files import digest
    from moongate.pages import png_bytes

    seen = square(picture, side_px, mask=mask)
    shown = as_pixels(seen[:3])
    if mask is not None:
        shown = np.where(np.array(seen[3] > 0)[..., None], shown, shown // 3).astype(np.uint8)
    whole = Image.fromarray(picture)
    whole.thumbnail((WHOLE_PX, WHOLE_PX))
    files = dict[str, str]()
    for name, pixels in (("preview", shown), ("whole", np.array(whole))):
        file = folder / f"{digest(pixels.tobytes())}.png"
        if not file.exists():
            write_atomically(file, png_bytes(pixels))
        files[name] = str(file)
    return files
