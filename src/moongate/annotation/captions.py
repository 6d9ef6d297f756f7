"""Write a caption beside each photo, for people to edit; `{}` stands for the words of the subject."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moongate.annotation.describers import Describer, Description
from moongate.data.caption_files import read_captions
from moongate.data.folders import CAPTION_SUFFIXES
from moongate.data.pictures import read_picture
from moongate.errors import OptionError
from moongate.files import write_atomically

__all__ = ["Stub", "template_describer", "write_captions"]

PHOTOS_AT_ONCE = 16
"""Photos that are in memory at once: each takes up to 7 MB, and as much again for what describes it."""


@dataclass(frozen=True, kw_only=True)
class Stub:
    """The caption of one photo."""

    photo: Path
    file: Path
    description: Description
    """What was written, or the caption that the photo has already."""
    written: bool
    """Whether the file was written; False if the photo has a caption already."""


def template_describer(template: str = "photo of a {}") -> Describer:
    """Return a describer that gives every photo the same caption.

    Args:
        template: The caption, with `{}` for the words of the subject.

    Raises:
        OptionError: The template has no `{}`.
    """
    if "{}" not in template:
        raise OptionError(f"The template {template!r} has no place for the subject. Put {{}} into it.")
    return lambda pictures: [Description(caption=template)] * len(pictures)


def write_captions(photos: Sequence[Path], describe: Describer, *, overwrite: bool = False) -> list[Stub]:
    """Describe photos and write `photo.txt` beside each that has no caption yet.

    A few photos at a time are read, described and written, so that any number of them fits into memory, and the same
    call continues one that was stopped.

    Args:
        photos: Photos, as `moongate.data.folders.find_pictures` returns them.
        describe: Gives a description of each picture.
        overwrite: Whether to replace text files; otherwise a photo with a caption, also one in a listing, keeps it.

    Returns:
        One stub for each photo, in order.

    Raises:
        PictureError: A photo or a caption cannot be read.
        OptionError: A file cannot be written.
    """
    captions = [""] * len(photos) if overwrite else read_captions(photos)
    without = [photo for photo, caption in zip(photos, captions, strict=True) if not caption]
    described: dict[Path, Description] = {}
    for begin in range(0, len(without), PHOTOS_AT_ONCE):
        some = without[begin : begin + PHOTOS_AT_ONCE]
        found = describe([read_picture(photo) for photo in some])
        for photo, description in zip(some, found, strict=True):
            write_atomically(_text_file(photo), f"{description.caption}\n".encode())
            described[photo] = description
    return [
        Stub(
            photo=photo,
            file=_text_file(photo),
            description=described.get(photo, Description(caption=caption)),
            written=photo in described,
        )
        for photo, caption in zip(photos, captions, strict=True)
    ]


def _text_file(photo: Path) -> Path:
    return photo.with_suffix(CAPTION_SUFFIXES[0])
