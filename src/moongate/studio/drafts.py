"""Drafts: the photos of a subject to teach, with captions, masks and settings, as a folder in `photos`.

```
NAME/teach/      photos to learn from, each with its caption (photo.txt) and its mask (photo.mask.png), if it has them
NAME/held-out/   photos that judge what was learned
NAME/draft.json  category, token and what else is chosen
```

Every change is written at once, so that all browsers see the same, and nothing is lost.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from moongate.data.folders import SUFFIXES, is_companions_name
from moongate.errors import OptionError, PictureError
from moongate.files import file_name, free_path, free_stem, write_atomically
from moongate.limits import MAX_CAPTION_CHARACTERS
from moongate.texts import parse_json, read_text

__all__ = ["Draft", "Photo", "Settings", "drafts", "looks_every"]

TEACH, HELD_OUT, SETTINGS = "teach", "held-out", "draft.json"
MASK, CAPTION = ".mask.png", ".txt"
UNKNOWN_SUFFIX = ".png"
"""Ending of photos whose own is none of a picture's; which format a file has is decided by its content."""
MAX_PHOTOS = 500
"""More photos of one subject are refused: the page shows all of them."""
LOOKS, LEAST_STEPS = 10, 10
"""How often a training is looked at on its way, and the steps that there are at least between two looks."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen for a training."""

    category: str = ""
    token: str = ""
    preset: str = "object"
    steps: int = 250
    regularization: str = "auto"
    seed: int = 0
    rare_token: int = 0

    @property
    def words(self) -> str:
        """The words of the subject in a caption."""
        return " ".join(filter(None, (self.token.strip(), self.category.strip())))


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo of a draft."""

    file: Path
    is_held_out: bool
    caption: str
    """Its caption with `{}` for the words of the subject; empty if it has none of its own."""
    mask: Path | None
    changed: tuple[int, ...]
    """Times of the last changes of the photo and its mask, in nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One folder of `photos`."""

    folder: Path

    @classmethod
    def create(cls, photos: Path, name: str, settings: Settings | None = None) -> Self:
        """Make an empty draft whose name is free.

        Args:
            photos: The folder of all drafts.
            name: What a user calls it.
            settings: What is chosen; None is nothing but defaults.

        Raises:
            OptionError: The name is empty, or the folder cannot be written.
        """
        if not name.strip():
            raise OptionError("The name is empty. Give the subject a name, such as bear.")
        folder = free_path(photos / file_name(name))
        draft = cls(folder=folder)
        draft.write(settings or Settings())
        for place in (TEACH, HELD_OUT):
            (folder / place).mkdir(exist_ok=True)
        return draft

    @property
    def name(self) -> str:
        """The name of the folder, and of the training."""
        return self.folder.name

    @property
    def teach(self) -> Path:
        """The folder of the photos to learn from."""
        return self.folder / TEACH

    @property
    def held_out(self) -> Path:
        """The folder of the photos that judge."""
        return self.folder / HELD_OUT

    @property
    def settings(self) -> Settings:
        """What is chosen; defaults where the file is damaged or lacks something."""
        try:
            content = parse_json(read_text(self.folder / SETTINGS))
            kinds = {each.name: type(each.default) for each in fields(Settings)}
            return Settings(**{name: content[name] for name, kind in kinds.items() if type(content.get(name)) is kind})
        except (OSError, ValueError, TypeError, AttributeError):
            return Settings()

    def write(self, settings: Settings) -> None:
        """Keep what is chosen."""
        write_atomically(self.folder / SETTINGS, json.dumps(asdict(settings), indent=1).encode())

    def choose(self, **changes: Any) -> None:
        """Change some of what is chosen."""
        self.write(replace(self.settings, **changes))

    def photos(self) -> list[Photo]:
        """Return all photos by name, those to learn from first."""
        found = []
        for place in (self.teach, self.held_out):
            files = sorted(place.iterdir()) if place.is_dir() else []
            others = {file.name for file in files}
            for file in files:
                if file.name.startswith(".") or file.name.endswith((CAPTION, MASK)):
                    continue
                mask = place / (file.stem + MASK) if file.stem + MASK in others else None
                found.append(
                    Photo(
                        file=file,
                        is_held_out=place == self.held_out,
                        caption=_caption(place / (file.stem + CAPTION)),
                        mask=mask,
                        changed=tuple(path.stat().st_mtime_ns for path in (file, mask) if path),
                    )
                )
        return found

    def place_for(self, name: str) -> Path:
        """Return where a new photo of this name goes now; a file that takes a while to arrive asks again then.

        The name is one by which a training knows it as a photo, whatever it was: some have no ending, or one like
        `.jpg_large`, and a photo `bear-mask.png` would be left out beside `bear.png`.

        Raises:
            PictureError: There are too many photos.
        """
        if len(self.photos()) >= MAX_PHOTOS:
            raise PictureError(f"{self.name} has {MAX_PHOTOS} photos, which is the maximum. Remove some first.")
        taken = {photo.file.stem for photo in self.photos()}  # captions and masks go by the name without its ending
        suffix = Path(name).suffix.lower()
        stem = file_name(Path(name).stem if suffix in SUFFIXES else name)
        stem = f"{stem}-photo" if is_companions_name(stem) else stem
        return self.teach / f"{free_stem(stem, taken)}{suffix if suffix in SUFFIXES else UNKNOWN_SUFFIX}"

    def caption(self, photo: Path, text: str) -> None:
        """Give a photo its caption, on one line; an empty one leaves it to the preset.

        Raises:
            PictureError: The caption is too long.
        """
        line = " ".join(text.split())
        if len(line) > MAX_CAPTION_CHARACTERS:
            raise PictureError(f"The caption has {len(line)} characters; at most {MAX_CAPTION_CHARACTERS} are read.")
        file = photo.with_name(photo.stem + CAPTION)
        if line:
            write_atomically(file, f"{line}\n".encode())
        else:
            file.unlink(missing_ok=True)

    def hold_out(self, photo: Path, *, is_held_out: bool) -> None:
        """Let a photo judge what was learned, or be learned from; its caption and mask go with it.

        Where there is another photo of its name, as somebody may have copied one there, it gets a free one.
        """
        place = self.held_out if is_held_out else self.teach
        if photo.parent == place:
            return
        place.mkdir(exist_ok=True)
        stem = free_stem(photo.stem, {each.file.stem for each in self.photos() if each.is_held_out == is_held_out})
        for file in _with_companions(photo):
            file.rename(place / f"{stem}{file.name.removeprefix(photo.stem)}")

    def remove(self, photo: Path, trash: Path) -> None:
        """Move a photo with its caption and mask to the trash."""
        for file in _with_companions(photo):
            file.rename(free_path(trash / f"{self.name}-{file.name}"))

    def job(self, name: str, *, model: str) -> dict[str, Any]:
        """Return the training as an entry for `moongate fleet`; its pictures are given by their full paths.

        Args:
            name: The name of the concept.
            model: The base model.

        Raises:
            OptionError: There is no photo or no category.
        """
        chosen, photos = self.settings, self.photos()
        if not any(not photo.is_held_out for photo in photos):
            raise OptionError(f"{self.name} has no photo to learn from. Add three to ten.")
        if not chosen.category.strip():
            raise OptionError("The category is empty. Say what the photos show, such as 'teddy bear' or 'dog'.")
        if chosen.steps < 1:
            raise OptionError(f"The number of steps is {chosen.steps}; it must be at least 1.")
        subject = {"pictures": str(self.teach), "category": chosen.category.strip()}
        subject |= {"token": chosen.token.strip()} if chosen.token.strip() else {}
        every = looks_every(chosen.steps)
        options: Mapping[str, Any] = {
            "model": model,
            "preset": chosen.preset,
            "steps": chosen.steps,
            "regularization": chosen.regularization,
            "rare_token": chosen.rare_token,
            "seed": chosen.seed,
            "validate_every": every,
            "save_every": every,
        }
        judges = {"holdout": str(self.held_out)} if any(photo.is_held_out for photo in photos) else {}
        return {"name": name, "concepts": [subject], **options, **judges}


def looks_every(steps: int) -> int:
    """Return the number of steps between two looks at a training of this length: pictures, and a kept concept."""
    return min(steps, max(LEAST_STEPS, steps // LOOKS))


def drafts(photos: Path) -> list[Draft]:
    """Return all drafts by name."""
    return [Draft(folder=file.parent) for file in sorted(photos.glob(f"*/{SETTINGS}"))]


def _caption(file: Path) -> str:
    try:
        return " ".join(read_text(file).split())
    except (OSError, ValueError):
        return ""


def _with_companions(photo: Path) -> list[Path]:
    files = [photo, *(photo.with_name(photo.stem + ending) for ending in (CAPTION, MASK))]
    return [file for file in files if file.exists()]
