"""Captions and masks for photos that have none, as files to look at and to edit.

`write_captions` and `write_masks` write the files that training reads beside the photos. What describes or segments a
photo is a function that is passed in: the base model itself (`attention_segmenter`), its CLIP (`clip_describer`), or a
local model (`blip_describer`, `clipseg_segmenter`, `onnx_segmenter`).
"""

from pathlib import Path

from moongate.annotation.captions import Stub, template_describer, write_captions
from moongate.annotation.describers import Description, blip_describer, clip_describer
from moongate.annotation.masks import Mask, attention_segmenter, binary, write_masks
from moongate.annotation.segmenters import clipseg_segmenter, onnx_segmenter
from moongate.data.captions import check_category
from moongate.data.folders import find_pictures
from moongate.errors import PictureError
from moongate.files import check_folder

__all__ = [
    "Description",
    "Mask",
    "Stub",
    "attention_segmenter",
    "binary",
    "blip_describer",
    "clip_describer",
    "clipseg_segmenter",
    "onnx_segmenter",
    "photos_to_annotate",
    "template_describer",
    "write_captions",
    "write_masks",
]


def photos_to_annotate(place: Path, category: str) -> list[Path]:
    """Return a photo, or those of a folder, after checking what can be checked before a model is loaded.

    Raises:
        PictureError: There is no photo, or two have one name, so that they would share one caption and one mask.
        OptionError: The category is no word, or no file can be written beside the photos.
    """
    check_category(category)
    photos = find_pictures(place)
    named: dict[Path, Path] = {}
    for photo in photos:
        if (other := named.setdefault(photo.with_suffix(""), photo)) != photo:
            raise PictureError(f"{other} and {photo.name} would get one caption and one mask. Rename one of them.")
    for folder in {photo.parent for photo in photos}:
        check_folder(folder)
    return photos
