"""What is taught (Subject) and what must not be forgotten (Regularization): pictures with captions.

Pictures are uint8 arrays [height, width, 3]. The module knows nothing of models: who trains makes the latents.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt8

from moongate.data.caption_files import read_captions
from moongate.data.captions import PRESETS, Preset, check_category, photo_of
from moongate.data.folders import gather, masks_of
from moongate.data.pictures import check_pixels, check_shows, read_alpha, read_mask_beside, read_picture
from moongate.errors import OptionError, PictureError, TokenError
from moongate.files import digest
from moongate.limits import MAX_CAPTION_CHARACTERS
from moongate.texts import is_encodable, parse_json, read_lines

__all__ = ["Regularization", "Subject"]

HASH_LENGTH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A subject to teach: its pictures with a caption each, its category, and its new token if it has one.

    Raises:
        OptionError: The category is empty, or holds a token.
        PictureError: There are no pictures, one has another form, captions or masks do not fit them, or a caption
            cannot be read.
        TokenError: A caption lacks the token.
    """

    pictures: tuple[UInt8[np.ndarray, "_height _width 3"], ...]
    """Pixels in 0..255."""
    captions: tuple[str, ...]
    """One caption for each picture."""
    category: str
    """A word or two that the model knows: "teddy bear"."""
    token: str | None = None
    """The new word for this subject, such as "<bear>"; None teaches the category itself."""
    masks: tuple[UInt8[np.ndarray, "_height _width"] | None, ...] = ()
    """For each picture a mask of its size, white where it counts in the loss; None, or no masks: everywhere."""
    names: tuple[str, ...] = ()
    """File names of the pictures, if they come from files."""
    held_out: tuple[str, ...] = ()
    """File names of further pictures of the subject, which are kept for evaluation."""

    def __post_init__(self) -> None:
        check_category(self.category)
        if not self.pictures:
            raise PictureError(f"No pictures of the {self.category} were given. Three to ten are usual.")
        check_pixels(self.pictures, f"the {self.category}")
        if self.masks and len(self.masks) != len(self.pictures):
            raise PictureError(
                f"{len(self.pictures)} pictures and {len(self.masks)} masks were given. Give each picture a mask."
            )
        for number, mask in enumerate(self.masks):
            if mask is not None:
                _check_mask(mask, self.pictures[number], number + 1)
        _check_captions(self.captions, len(self.pictures))
        for caption in self.captions:
            if self.token and not re.search(rf"(?<!\w){re.escape(self.token)}(?!\w)", caption):
                raise TokenError(
                    f"The caption {caption!r} lacks the token {self.token!r}, so the token would not be learned. Write "
                    f"for example {photo_of(self.words)!r}, or {{}} for these words."
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
        """Read a folder of pictures, or picture files, with their captions and masks.

        A picture's caption is what `data.caption_files` finds for it, or the preset's if there is none. In it `{}`
        stands for the words of the subject ("photo of a {} in a forest"). `photo.mask.png` or `photo-masklabel.png`
        limits the loss to what is white in it. A `MoongateWarning` names captions that differ or fit no picture, and
        files that are ignored.

        Args:
            pictures: A folder or files.
            category: A word or two for what the pictures show.
            token: The new word for this subject.
            preset: Where the caption of a picture without one comes from.
            holdout: Number of pictures, the last ones, that are kept for evaluation and not read.
            alpha_is_mask: Whether transparent parts do not count in the loss; otherwise they become white.

        Raises:
            PictureError: A picture, mask or caption cannot be used.
            OptionError: `holdout` leaves no picture.
            TokenError: A caption lacks the token.
        """
        gathered = gather(pictures)
        files = gathered.photos
        if not 0 <= holdout < len(files):
            raise OptionError(
                f"holdout is {holdout}, and there are {len(files)} pictures of the {category}. Keep at least one to "
                "learn from."
            )
        paths = files[: len(files) - holdout]
        words = _words(token, category)
        files_of = masks_of(paths)
        masks = [read_mask_beside(path, files=files_of[path]) for path in paths]
        if alpha_is_mask:
            masks = [read_alpha(path) if mask is None else mask for path, mask in zip(paths, masks, strict=True)]
        return cls(
            pictures=tuple(read_picture(path) for path in paths),
            captions=tuple(
                replace(preset, caption=caption or preset.caption).describe(words)
                for caption in read_captions(paths, gathered.folders)
            ),
            category=category.strip(),
            token=token,
            masks=tuple(masks) if any(mask is not None for mask in masks) else (),
            names=tuple(path.name for path in paths),
            held_out=tuple(path.name for path in files[len(files) - holdout :]),
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that stand for the subject in a prompt: one, or none."""
        return (self.token,) if self.token else ()

    @property
    def words(self) -> str:
        """The words for the subject in a prompt: "<bear> teddy bear"."""
        return _words(self.token, self.category)

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that identify the pictures with their captions and masks."""
        masks = [b"none" if mask is None else mask.tobytes() for mask in self.masks]
        return digest(*_content(self.pictures, self.captions), *masks, length=HASH_LENGTH)


@dataclass(frozen=True, kw_only=True, eq=False)
class Regularization:
    """Captioned pictures of the same category, which keep the model's knowledge of it (paper, Sec. 3.1).

    Raises:
        PictureError: There are no pictures, one has another form, or the captions do not fit them or cannot be read.
    """

    pictures: tuple[UInt8[np.ndarray, "_height _width 3"], ...]
    """Pixels in 0..255."""
    captions: tuple[str, ...]
    """One caption for each picture."""
    source: str = "given"
    """Where the pictures come from, for the records of a run."""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise PictureError("There are no regularization pictures. Give a folder that has some, or 'generated'.")
        check_pixels(self.pictures, "the regularization")
        _check_captions(self.captions, len(self.pictures))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        category: str,
        only_category: bool = False,
        at_most: int = 200,
        preset: Preset = PRESETS["object"],
    ) -> Self:
        """Read a folder of pictures with their captions, as `Subject.load` does; masks do not count.

        In a caption `{}` stands for the category.

        Args:
            folder: The folder to read.
            category: The category of the subject.
            only_category: Whether to keep only pictures whose caption names the category. If no caption names "rocking
                horse", those that name "horse" are kept, as in a search of a large pool.
            at_most: Largest number of pictures.
            preset: Where the caption of a picture without one comes from.

        Raises:
            PictureError: A picture or caption cannot be used, or no caption names the category.
        """
        gathered = gather(folder)
        captions = [
            replace(preset, caption=caption or preset.caption).describe(category)
            for caption in read_captions(gathered.photos, gathered.folders)
        ]
        chosen = list(zip(gathered.photos, captions, strict=True))
        if only_category:
            chosen = _naming(category, chosen, Path(folder))
        chosen = chosen[:at_most]
        return cls(
            pictures=tuple(read_picture(path) for path, _ in chosen),
            captions=tuple(caption for _, caption in chosen),
            source=Path(folder).name,
        )

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that identify the pictures with their captions."""
        return digest(*_content(self.pictures, self.captions), length=HASH_LENGTH)


def _words(token: str | None, category: str) -> str:
    return f"{token} {category}" if token else category


def _check_mask(mask: UInt8[np.ndarray, "_ _"], picture: UInt8[np.ndarray, "_ _ 3"], number: int) -> None:
    (rows, columns), (height, width) = mask.shape, picture.shape[:2]
    if abs(columns * height - rows * width) > 2 * max(rows, columns, height, width):  # rounded when they were shrunk
        raise PictureError(
            f"Mask {number} has {columns} x {rows} pixels and its picture {width} x {height}. Give it the size of its "
            "picture."
        )
    check_shows(mask, f"Mask {number}")


def _check_captions(captions: Sequence[str], pictures: int) -> None:
    if len(captions) != pictures:
        raise PictureError(f"{pictures} pictures and {len(captions)} captions were given. Give each picture a caption.")
    longest = max(map(len, captions), default=0)
    if longest > MAX_CAPTION_CHARACTERS:
        raise PictureError(
            f"A caption has {longest} characters; at most {MAX_CAPTION_CHARACTERS} are read. Shorten it."
        )
    if wrong := [caption for caption in captions if not is_encodable(caption)]:
        raise PictureError(f"The caption {wrong[0]!r} has a character that UTF-8 cannot hold. Write it in UTF-8.")


def _content(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Iterable[bytes]:
    for picture, caption in zip(pictures, captions, strict=True):
        yield picture.tobytes() + caption.encode()


def _naming(category: str, captioned: Sequence[tuple[Path, str]], folder: Path) -> list[tuple[Path, str]]:
    """Return the pictures whose caption names the category, or the longest ending of it that some caption names."""
    words = category.lower().split()
    for start in range(len(words)):
        pattern = re.compile(rf"\b{re.escape(' '.join(words[start:]))}s?\b")
        if named := [row for row in captioned if pattern.search(row[1].lower())]:
            return named
    known = _categories(folder)
    there = f"They name {', '.join(known)}. " if known else ""
    raise PictureError(
        f"None of the {len(captioned)} captions in {folder.name!r} names {category!r}. {there}Choose such a category "
        "word, or --regularization generated, which draws pictures, or --regularization with a folder of your own."
    )


def _categories(folder: Path) -> list[str]:
    """Return what a folder's listing names as the categories of its pictures; nothing where it names none."""
    found = set[str]()
    with contextlib.suppress(OSError, ValueError):
        for line in read_lines(folder / "metadata.jsonl"):
            row = parse_json(line)
            named = row.get("categories") if isinstance(row, dict) else None
            found |= {name for name in named if isinstance(name, str)} if isinstance(named, list) else set()
    return sorted(found)
