"""A folder of pictures as users and other trainers leave it: photos, masks, captions, companions, and the rest.

Files are distinguished by name only, and none is opened. What is ignored is reported as a `MoongateWarning`, because
a photo that is not read and a mask that is taught as a photo are mistakes that nobody sees later.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from moongate.errors import PictureError, listed, warn
from moongate.files import exists, leads_out

__all__ = [
    "CAPTION_SUFFIXES",
    "CONTROL_ENDINGS",
    "LISTINGS",
    "MASK_ENDINGS",
    "SUFFIXES",
    "Contents",
    "Gathered",
    "contents",
    "find_pictures",
    "fits",
    "gather",
    "is_companions_name",
    "masks_beside",
    "masks_of",
]

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif"),
    )
)
"""Endings of picture files, in lower case. Which format a file has is decided by its content."""

MASK_ENDINGS = (".mask", "-masklabel")
"""Ends of a mask's name before the suffix: photo.mask.png, and OneTrainer's photo-masklabel.png. Both are white where
the picture counts in the loss."""
CONTROL_ENDING = "-condlabel"
"""End of the name of OneTrainer's conditioning pictures. No photo has such a name, so it is never one."""
CONTROL_ENDINGS = (
    *("depth", "canny", "normal", "pose", "openpose", "seg", "lineart", "softedge", "hed", "mlsd", "scribble"),
    *("cond", "conditioning", "control", "mask", "alpha", "matte"),
)
"""Ends of companions' names after `_`, `-` or `.`: the annotators of ControlNet data sets (photo_depth.png), and masks
whose meaning (white for the subject or for the background) the name does not say. They are ordinary words, so such a
file is a companion only where a photo of the rest of its name lies beside it."""
CAPTION_SUFFIXES = (".txt", ".caption")
"""Suffixes of text files with a caption, by precedence; kohya's trainer writes and reads both."""
LISTINGS = ("metadata.jsonl", "metadata.csv")
"""Names of files that list the pictures of a folder with their captions, by precedence."""

_IGNORED = (".npz", ".xmp", ".aae", ".thm", ".md", ".db", ".ini")
"""Suffixes that are ignored without a warning: kohya's cached latents (.npz), sidecars of cameras and photo programs,
descriptions, and what Windows and photo programs keep in each folder (Thumbs.db, desktop.ini)."""
_OWN_FILES = ("retrieval.json", "settings.json")
"""Names that are ignored without a warning: files that Moongate writes next to drawn and retrieved pictures."""
_DESCRIPTIONS = ("readme", "license", "licence", "notice")
_REPEATED = re.compile(r"\d{1,3}_.+")
"""Names of kohya's folders: the number of repeats in an epoch, and the words that are the caption there."""
_IGNORED_FOLDERS = ("__macosx", "@eadir")
_SEARCHED = 100_000
"""Files that are looked at to name the subfolders that hold pictures, so that a whole disk is not searched."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The files of one folder by kind, each sorted by name."""

    folder: Path
    photos: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    companions: tuple[Path, ...] = ()
    """Pictures that belong to a photo and are not photos: control pictures of other trainers."""
    captions: tuple[Path, ...] = ()
    """Text files with one of `CAPTION_SUFFIXES`."""
    listings: tuple[Path, ...] = ()
    """Files named as `LISTINGS`, by precedence."""
    unread: tuple[Path, ...] = ()
    """Files of unknown kind."""
    subfolders: tuple[Path, ...] = ()
    outside: tuple[Path, ...] = ()
    """Links that lead out of the folder, which are not read: they may show a private file of the reader."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Photos, and the folders that were read as a whole to find them."""

    photos: tuple[Path, ...]
    folders: tuple[Contents, ...] = ()


def contents(folder: Path) -> Contents:
    """Return what lies in a folder, by kind; in subfolders nothing is looked at."""
    everything = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    leading_out = {path for path in everything if leads_out(path)}
    outside = [path for path in everything if path in leading_out]
    outside = [path for path in outside if _is_picture(path) or path.is_dir() or _is_text(path)]
    paths = [path for path in everything if path not in leading_out]
    photos, masks, companions = _by_kind([path for path in paths if path.is_file() and _is_picture(path)])
    pictures = {*photos, *masks, *companions}
    others = [path for path in paths if not path.is_dir() and path not in pictures]
    captions = [path for path in others if path.is_file() and path.suffix.lower() in CAPTION_SUFFIXES]
    captions = [path for path in captions if path.stem.casefold() not in _DESCRIPTIONS]
    listings = [path for path in others if path.is_file() and path.name.casefold() in LISTINGS]
    texts = {*captions, *listings}
    return Contents(
        folder=folder,
        photos=tuple(photos),
        masks=tuple(masks),
        companions=tuple(companions),
        captions=tuple(captions),
        listings=tuple(sorted(listings, key=lambda path: LISTINGS.index(path.name.casefold()))),
        unread=tuple(path for path in others if path not in texts and not _is_passed_over(path)),
        subfolders=tuple(path for path in paths if path.is_dir() and path.name.casefold() not in _IGNORED_FOLDERS),
        outside=tuple(outside),
    )


def find_pictures(pictures: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the photos of a folder (sorted), or the files given, without masks and companions; see `gather`."""
    return list(gather(pictures).photos)


def gather(pictures: str | Path | Iterable[str | Path]) -> Gathered:
    """Find the photos of folders and among files, without masks and companions.

    If a folder has kohya's subfolders (`10_my dog`), their photos are taken too, each once. A `MoongateWarning` names
    what is ignored: companions, files of unknown kind, repeats, and other subfolders with pictures.

    Args:
        pictures: A folder, or files and folders.

    Raises:
        PictureError: A file or folder does not exist, there is no photo, a mask has no photo of its name, or a link
            leads out of a folder.
    """
    places = [Path(pictures)] if isinstance(pictures, str | Path) else [Path(path) for path in pictures]
    folders: list[Contents] = []
    files: list[Path] = []
    found: list[Path] = []
    for place in places:
        if not exists(place):
            raise PictureError(f"There is no picture or folder {place}. Check the path.")
        if place.is_dir():
            whole = _whole_folder(place)
            folders += whole
            found += [photo for folder in whole for photo in folder.photos]
        elif place.is_file():
            files.append(place)
            found.append(place)
        else:
            raise PictureError(f"{place} is neither a regular file nor a folder. Check the path.")
    _, masks, companions = _by_kind(files)
    no_photos = {*masks, *companions}
    photos = [path for path in dict.fromkeys(found) if path not in no_photos]
    _check_masks([*masks, *(mask for folder in folders for mask in folder.masks)], photos)
    _report(folders, companions)
    if not photos:
        raise PictureError("No pictures were given. Name a folder or files.")
    return Gathered(photos=tuple(photos), folders=tuple(folders))


def is_companions_name(stem: str) -> bool:
    """Return whether a photo of this name, without its suffix, may be taken for a mask or a control picture."""
    endings = (*MASK_ENDINGS, CONTROL_ENDING, *(f"{mark}{word}" for mark in "-_." for word in CONTROL_ENDINGS))
    return stem.lower().endswith(endings)


def masks_beside(photo: Path) -> list[Path]:
    """Return the masks of a photo: `photo.mask.png` or `photo-masklabel.png`, whatever their format."""
    return masks_of([photo])[photo]


def masks_of(photos: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return what `masks_beside` does for each of many photos; each folder is looked at once."""
    wanted = dict.fromkeys(photos)
    found: dict[Path, list[Path]] = {}
    for folder in {photo.parent for photo in wanted}:
        files = [path for path in sorted(folder.iterdir()) if _is_picture(path) and path.is_file()]
        files = [path for path in files if path in wanted or not leads_out(path)]
        stems = {path.stem for path in files if not _mask_base(path)}
        masks: dict[str, list[Path]] = {}
        for path in files:
            masks.setdefault(_mask_base(path).casefold(), []).append(path)
        for photo in (photo for photo in wanted if photo.parent == folder):
            alike = masks.get(photo.stem.casefold(), [])
            found[photo] = [mask for mask in alike if fits(_mask_base(mask), photo.stem, stems)]
    return found


def fits(name: str, stem: str, stems: Iterable[str]) -> bool:
    """Return whether a file with this name belongs to the photo `stem`: upper and lower case do not count, unless
    another of the photos `stems` has the very name.
    """
    return name == stem or (name.casefold() == stem.casefold() and name not in stems)


def _is_picture(path: Path) -> bool:
    """Return whether a file is a photo, a mask or a companion. A mask in an unknown format is one, not to be missed."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or (bool(_mask_base(path)) and suffix not in (*CAPTION_SUFFIXES, *_IGNORED))


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in CAPTION_SUFFIXES or path.name.casefold() in LISTINGS


def _is_passed_over(path: Path) -> bool:
    name = path.name.casefold()
    return name in _OWN_FILES or path.suffix.lower() in _IGNORED or path.stem.casefold() in _DESCRIPTIONS


def _mask_base(path: Path) -> str:
    """Return the photo's name in a mask's name; empty if it is not the name of a mask."""
    ending = next((ending for ending in MASK_ENDINGS if path.stem.lower().endswith(ending)), None)
    return path.stem[: -len(ending)] if ending else ""


def _by_kind(files: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the photos, masks and companions among picture files."""
    stems = {(path.parent, path.stem.casefold()) for path in files}
    photos, masks, companions = [], [], []
    for path in files:
        control = re.fullmatch(rf"(.+)[-_.](?:{'|'.join(CONTROL_ENDINGS)})", path.stem, re.IGNORECASE)
        if _mask_base(path):
            masks.append(path)
        elif path.stem.lower().endswith(CONTROL_ENDING) or (control and (path.parent, control[1].casefold()) in stems):
            companions.append(path)
        else:
            photos.append(path)
    return photos, masks, companions


def _whole_folder(place: Path) -> list[Contents]:
    """Return the contents of a folder and of kohya's folders in it; raise PictureError as `gather` does."""
    here = contents(place)
    if here.outside:
        raise PictureError(
            f"{here.outside[0]} is a link that leads out of its folder. Replace it by a copy, or remove it."
        )
    below = [contents(folder) for folder in here.subfolders]
    repeated = [folder for folder in below if _REPEATED.fullmatch(folder.folder.name) and folder.photos]
    if not here.photos and not repeated:
        raise PictureError(_without_photos(here))
    if repeated:
        names = listed([f"{folder.folder.name!r} ({_counted(folder.photos, 'picture')})" for folder in repeated])
        warn(
            f"{place} holds kohya's folders {names}. Their pictures are read once each as one subject: the number of "
            "repeats is ignored, and the words after it are no caption."
        )
    others = [folder for folder in below if folder.photos and folder not in repeated]
    if others:
        names = listed([f"{folder.folder.name!r} ({_counted(folder.photos, 'picture')})" for folder in others])
        warn(f"The pictures in subfolders of {place} are not read: {names}. Name them too if they belong here.")
    return [here, *repeated]


def _without_photos(here: Contents) -> str:
    """Return the message that a folder holds no photo, with the subfolders that do, or with what it holds."""
    files = [path for path in islice(here.folder.rglob("*"), _SEARCHED) if _is_picture(path) and path.is_file()]
    counts = Counter(str(path.parent.relative_to(here.folder)) for path in files)
    counts.pop(".", None)
    if counts:
        names = listed([f"{name!r} ({number})" for name, number in sorted(counts.items())])
        return f"The folder {here.folder} holds no pictures itself, but its subfolders do: {names}. Name one of them."
    others = f" ({_suffixes(here.unread)} cannot be read)" if here.unread else ""
    return f"The folder {here.folder} holds no pictures{others}. Put JPEG, PNG or WebP files there."


def _check_masks(masks: Sequence[Path], photos: Sequence[Path]) -> None:
    stems = {(photo.parent, photo.stem.casefold()) for photo in photos}
    lost = [mask for mask in masks if (mask.parent, _mask_base(mask).casefold()) not in stems]
    if lost:
        raise PictureError(f"The mask {lost[0]} has no picture of its name next to it. Rename it or remove it.")


def _report(folders: Sequence[Contents], companions: Sequence[Path]) -> None:
    """Warn of companions that were ignored, and of files of unknown kind."""
    companions = [*companions, *(path for folder in folders for path in folder.companions)]
    if companions:
        names = listed([path.name for path in companions])
        warn(
            f"Ignored as masks or control pictures of other trainers: {names}. A mask is read as photo.mask.png or "
            "photo-masklabel.png; give a photo of such a name another one."
        )
    for folder in folders:
        if folder.unread:
            warn(
                f"Files in {folder.folder} that are not read: {_suffixes(folder.unread)}, such as "
                f"{folder.unread[0].name}. Save photos among them as JPEG or PNG, and captions as .txt."
            )


def _suffixes(files: Sequence[Path]) -> str:
    """Return how many files have each suffix: "2 .dng, 1 .mp4"."""
    counts = Counter(path.suffix.lower() or "without a suffix" for path in files)
    return ", ".join(f"{number} {suffix}" for suffix, number in sorted(counts.items()))


def _counted(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
