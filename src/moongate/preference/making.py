"""Make a study of folders of pictures, one for each method; pictures of the same prompt and seed belong together.

The prompt and the seed are those that Moongate and A1111 write into PNG files. A picture of another program has its
prompt in a text file of the same name, and its file name takes the place of the seed.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from moongate.data.captions import without_tokens
from moongate.data.folders import contents
from moongate.data.pictures import read_picture
from moongate.errors import OptionError, PictureError, listed, warn
from moongate.files import check_folder, digest, write_atomically
from moongate.pages import png_bytes
from moongate.preference.study import FILE, PICTURES, Item, Study, Target
from moongate.sampling import check_seeds
from moongate.texts import parse_json, read_text

__all__ = ["Subject", "make_study"]

PHOTOS = 4
"""Photos of a subject that are shown; the paper shows two to four."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject of the prompts, with the folder of its photos."""

    words: str
    """Its words in prompts, such as "<bear> teddy bear"; raters read them without the token."""
    photos: Path

    @property
    def token(self) -> str:
        """The token; empty if there is none."""
        found = re.match(r"<[^<>\s]+>", self.words)
        return found[0] if found else ""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token, or none."""
        return (self.token,) if self.token else ()

    @property
    def category(self) -> str:
        """The words without the token."""
        return self.words.removeprefix(self.token).strip()


def make_study(
    folder: Path,
    methods: Mapping[str, Path],
    subjects: Sequence[Subject] = (),
    *,
    seed: int = 0,
    on_picture: Callable[[int, int], None] | None = None,
) -> Study:
    """Make a study and write it, with copies of its pictures.

    Args:
        folder: Where it is written. It may not hold a study.
        methods: The folder of pictures by the name of the method; two or more.
        subjects: What the prompts name, with photos for the second question.
        seed: Of it and the rater's name follow the order and the sides.
        on_picture: Called after each copied picture with the number of copied pictures and the number of all.

    Raises:
        OptionError: A name is empty or occurs twice, a folder is missing, no prompt was drawn by two methods, the seed
            is out of range, or the study cannot be written.
        PictureError: A picture has no prompt, or cannot be read.
    """
    if len(methods) < 2:
        raise OptionError(f"{len(methods)} methods are given; a study compares two or more. Name each with its folder.")
    if (folder / FILE).exists():
        raise OptionError(f"{folder} holds a study already. Choose another folder, so that its answers stay with it.")
    check_folder(folder)
    check_seeds([seed])  # a larger one could be written, but not read again
    for subject in subjects:
        if not subject.category:
            raise OptionError(f"The subject {subject.words!r} has no word for what it is. Write '<bear> teddy bear'.")
    drawn = {method: _drawn(place, subjects) for method, place in methods.items()}
    photos = [_photos(subject) for subject in subjects]
    together = _together(drawn)
    copy = _Copies(folder, total=sum(map(len, (*together.values(), *photos))), on_picture=on_picture)
    targets = [
        Target(words=subject.category, photos=tuple(map(copy.of, files)))
        for subject, files in zip(subjects, photos, strict=True)
    ]
    study = Study(
        methods=tuple(methods),
        targets=tuple(targets),
        items=tuple(
            Item(
                prompt=prompt,
                targets=tuple(n for n, target in enumerate(targets) if _names(prompt, target.words)),
                pictures={method: copy.of(path) for method, path in paths.items()},
            )
            for (prompt, _), paths in together.items()
        ),
        seed=seed,
    )
    write_atomically(folder / FILE, (json.dumps(study.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
    return study


def prompt_and_seed(path: Path) -> tuple[str, str]:
    """Return the prompt of a picture, and its seed, or else its file name without the ending.

    Raises:
        PictureError: Neither the picture nor a text file beside it has a prompt, or it cannot be read.
    """
    texts = _texts(path) if path.suffix.lower() == ".png" else {}
    try:
        facts = parse_json(texts["moongate"])
        return str(facts["prompt"]), str(facts["seed"])
    except (LookupError, TypeError, ValueError):
        pass
    if "parameters" in texts:
        prompt = re.split(r"\n(?:Negative prompt|Steps): ", texts["parameters"])[0]
        seed = re.search(r"\bSeed: (\d+)", texts["parameters"])
        return prompt.strip(), seed[1] if seed else path.stem
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise PictureError(
            f"{path} does not say what it was drawn for. Write its prompt into {beside.name} in the same folder."
        )
    try:
        return " ".join(read_text(beside).split()), path.stem
    except ValueError as error:
        raise PictureError(f"{beside} cannot be read: {error}. Save it as UTF-8.") from error


def _texts(path: Path) -> Mapping[str, str]:
    """Return the texts in a PNG file by their names. Raises PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{path} is too large ({error}). Shrink it or remove it.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{path} is damaged or not a PNG file ({error}). Remove it.") from error


def _drawn(folder: Path, subjects: Sequence[Subject]) -> dict[tuple[str, str], Path]:
    """Return the pictures of one method by prompt, without tokens, and seed."""
    if not folder.is_dir():
        raise OptionError(f"There is no folder of pictures {folder}. Check the path.")
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(path for path in contents(folder).photos if not _is_sheet(path)):
        prompt, seed = prompt_and_seed(path)
        words = " ".join(re.sub(r"<[^<>\s]+>", "", without_tokens(prompt, subjects)).split())
        if not words:
            raise PictureError(
                f"The prompt {prompt!r:.80} of {path} has no words for raters to read. Remove the picture, or name "
                "its subject and photos (--subject)."
            )
        if (words, seed) in found:
            raise OptionError(
                f"{found[words, seed].name} and {path.name} in {folder} are both of {words!r} with the seed {seed}. "
                "Keep one, and give each method a folder of its own."
            )
        found[words, seed] = path
    return found


def _names(prompt: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE) is not None


def _is_sheet(path: Path) -> bool:
    """Return whether `moongate generate` wrote a picture as an overview of others."""
    return path.stem.startswith(("contact-sheet", "comparison"))


def _together(drawn: Mapping[str, Mapping[tuple[str, str], Path]]) -> dict[tuple[str, str], dict[str, Path]]:
    """Return the pictures of each prompt and seed that two or more methods drew, by method."""
    keys = dict.fromkeys(key for pictures in drawn.values() for key in pictures)
    sets = {key: {method: drawn[method][key] for method in drawn if key in drawn[method]} for key in keys}
    together = {key: paths for key, paths in sets.items() if len(paths) > 1}
    if not together:
        examples = [f"{method}: {next(iter(pictures))[0]!r}" for method, pictures in drawn.items() if pictures]
        raise OptionError(
            f"No prompt was drawn with the same seed by two methods ({'; '.join(examples) or 'no pictures'}). "
            "Draw the same prompts and seeds with each."
        )
    if alone := [path.name for key, paths in sets.items() if key not in together for path in paths.values()]:
        warn(f"{len(alone)} pictures have no partner of the same prompt and seed: {listed(alone, at_most=3)}.")
    return together


def _photos(subject: Subject) -> list[Path]:
    """Return some photos of a subject, from the whole of its folder."""
    if not subject.photos.is_dir():
        raise OptionError(f"There is no folder of photos {subject.photos} of {subject.category!r}. Check the path.")
    photos = sorted(contents(subject.photos).photos)
    if not photos:
        raise OptionError(f"{subject.photos} holds no photos of {subject.category!r}.")
    count = min(PHOTOS, len(photos))
    return [photos[index * len(photos) // count] for index in range(count)]


class _Copies:
    """Copies pictures into a study, without what their files say of themselves."""

    def __init__(self, folder: Path, *, total: int, on_picture: Callable[[int, int], None] | None) -> None:
        self._folder, self._total, self._on_picture, self._done = folder, total, on_picture, 0

    def of(self, path: Path) -> str:
        """Return the name of the copy; its content gives it."""
        image = read_picture(path)
        name = f"{digest(repr(image.shape), image.tobytes(), length=16)}.png"
        if not (self._folder / PICTURES / name).exists():
            write_atomically(self._folder / PICTURES / name, png_bytes(image))
        self._done += 1
        if self._on_picture:
            self._on_picture(self._done, self._total)
        return name
