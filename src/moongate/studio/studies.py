"""What a study can be made of in the studio: folders of the gallery as methods, and folders of photos."""

from collections.abc import Sequence
from pathlib import Path

from moongate.errors import OptionError
from moongate.files import file_name
from moongate.preference.study import FILE
from moongate.studio.commands import Command
from moongate.studio.pictures import pictures
from moongate.studio.places import PICTURES, Places

__all__ = ["folders_of_photos", "folders_of_pictures", "make_command"]


def folders_of_pictures(places: Places) -> list[str]:
    """Return the folders of the gallery with pictures that say how they were drawn, the newest first."""
    found = dict.fromkeys(picture.file.parent for picture in pictures(places))
    return [folder.relative_to(places.gallery).as_posix() for folder in found if folder != places.gallery]


def folders_of_photos(places: Places) -> list[str]:
    """Return the folders of photos of the page Teach."""
    found = {file.parent for ending in PICTURES for file in places.photos.glob(f"*/*/*{ending}")}
    return sorted(folder.relative_to(places.photos).as_posix() for folder in found)


def make_command(places: Places, name: str, methods: Sequence[str], *, words: str = "", photos: str = "") -> Command:
    """Return the command that makes a study.

    Args:
        places: The chosen folders.
        name: What the study is called.
        methods: Folders in the gallery, as `folders_of_pictures` names them.
        words: The words of the subject in prompts; none asks about the text alone.
        photos: The folder of its photos, as `folders_of_photos` names it.

    Raises:
        OptionError: The name is empty or taken, there are fewer than two methods, or words or photos are missing.
    """
    if not name.strip():
        raise OptionError("The name is empty. Give the study a name.")
    folder = places.studies / file_name(name)
    if (folder / FILE).exists():
        raise OptionError(f"There is already a study called {folder.name!r}. Choose another name.")
    if len(methods) < 2:
        raise OptionError("Fewer than two methods are chosen. Choose two or more folders of pictures.")
    if bool(words.strip()) != bool(photos):
        raise OptionError("The second question needs both the words of the subject and its photos. Give both or none.")
    found = ["judge", "make", str(folder)]
    for name, method in zip(_short(methods), methods, strict=True):
        found += ["--method", f"{name}={places.inside(places.gallery / method)}"]
    if photos:
        found += ["--subject", f"{' '.join(words.split())}={places.inside(places.photos / photos)}"]
    return Command(tuple(found))


def _short(methods: Sequence[str]) -> list[str]:
    """Return the last parts of folders' names as the methods' names, or whole names where those are not different."""
    last = [Path(method).name for method in methods]
    return last if len(set(last)) == len(last) else [method.replace("/", "-") for method in methods]
