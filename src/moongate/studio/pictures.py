"""The pictures of the gallery, as their own files describe them: prompt, seed, concepts and how they were drawn.

There is no index: `moongate generate` and `edit` write all this into the PNG files, so that pictures drawn in a shell
are found too, and one that is moved takes everything along. What was read of a file is kept until it changes.
"""

import contextlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from moongate.studio.places import Places
from moongate.texts import parse_json

__all__ = ["Picture", "Used", "differences", "holds_words", "pictures"]

DEPTH = 4
"""Pictures are looked for this many folders deep."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """A concept that a picture was drawn with."""

    file: str
    """The file's name when it was drawn."""
    hash: str
    strength: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was drawn."""

    file: Path
    changed: int
    """Time of the last change in nanoseconds since 1970."""
    width_px: int
    height_px: int
    prompt: str
    seed: int
    model: str = ""
    concepts: tuple[Used, ...] = ()
    together: str = ""
    steps: int | None = None
    guidance: float | None = None
    scheduler: str = ""
    negative_prompt: str = ""
    regions: tuple[str, ...] = ()
    """As options of `moongate generate --region`."""
    has_region_texts: bool = False
    """Whether a region had a prompt of its own, which only a file of regions can say."""
    source: str = ""
    """The prompt of the picture that an edit began with."""

    def matches(self, query: str) -> bool:
        """Return whether all words of a search occur in what the picture's file says."""
        return holds_words((self.prompt, f"seed {self.seed}", self.model, self.together, self.described), query)

    @property
    def described(self) -> str:
        """The concepts with their strengths and hashes."""
        return ", ".join(f"{used.file} at {used.strength:g} ({used.hash})" for used in self.concepts) or "no concept"


def holds_words(texts: Iterable[str], query: str) -> bool:
    """Return whether all words of a search occur in the texts, in capitals or not."""
    joined = " ".join(texts).casefold()
    return all(word in joined for word in query.casefold().split())


def pictures(places: Places, folder: Path | None = None) -> list[Picture]:
    """Return the pictures of the gallery that say how they were drawn, the newest first.

    Those that a link leads to outside of the chosen folders are left out: they may not be shown.

    Args:
        places: The chosen folders.
        folder: A folder in the gallery; all of it when None.
    """
    files: Iterable[Path] = (
        file for depth in range(DEPTH) for file in (folder or places.gallery).glob("*/" * depth + "*.png")
    )
    found, are_here = [], dict[Path, bool]()
    for file in files:
        with contextlib.suppress(OSError):  # it has just been moved
            if file.parent not in are_here:
                are_here[file.parent] = places.holds(file.parent)
            is_here = are_here[file.parent] and (not file.is_symlink() or places.holds(file))
            status = file.stat()
            if not is_here or file.name.startswith(".") or not stat.S_ISREG(status.st_mode):
                continue
            if picture := _read(file, status.st_mtime_ns):
                found.append(picture)
    return sorted(found, key=lambda picture: (-picture.changed, picture.file.name))


def differences(first: Picture, second: Picture) -> list[tuple[str, str, str]]:
    """Return each property in which two pictures differ: its name, and both values."""
    rows = [(name, str(value), str(_shown(second)[name])) for name, value in _shown(first).items()]
    return [row for row in rows if row[1] != row[2]]


def _shown(picture: Picture) -> dict[str, Any]:
    return {
        "prompt": picture.prompt,
        "seed": picture.seed,
        "concepts": picture.described,
        "together": picture.together if len(picture.concepts) > 1 else "",
        "regions": ", ".join(picture.regions),
        "negative prompt": picture.negative_prompt,
        "steps": picture.steps,
        "guidance": picture.guidance,
        "scheduler": picture.scheduler,
        "model": picture.model,
        "size": f"{picture.width_px} x {picture.height_px}",
        "edited from": picture.source,
    }


@lru_cache(maxsize=50_000)
def _read(file: Path, changed: int) -> Picture | None:
    """Read a file of which this is the last change."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            text, size = image.info.get("moongate"), image.size
        facts = parse_json(text) if isinstance(text, str) else None
        return _picture(file, changed, size, facts) if isinstance(facts, dict) else None
    except (OSError, SyntaxError, ValueError, OverflowError, TypeError, LookupError, Image.DecompressionBombError):
        return None


def _picture(file: Path, changed: int, size: tuple[int, int], facts: Mapping[str, Any]) -> Picture:
    steps, guidance, regions = facts.get("steps"), facts.get("guidance"), facts.get("regions") or ()
    return Picture(
        file=file,
        changed=changed,
        width_px=size[0],
        height_px=size[1],
        prompt=str(facts["prompt"]),
        seed=int(facts["seed"]),
        model=str(facts.get("model", "")),
        concepts=tuple(
            Used(file=str(used["file"]), hash=str(used["hash"]), strength=float(used["strength"]))
            for used in facts.get("concepts") or ()
        ),
        together=str(facts.get("together", "")),
        steps=None if steps is None else int(steps),
        guidance=None if guidance is None else float(guidance),
        scheduler=str(facts.get("scheduler", "")),
        negative_prompt=str(facts.get("negative_prompt", "")),
        regions=tuple(map(_region, regions)),
        has_region_texts=any(region.get("prompt") for region in regions),
        source=str(facts.get("source", "")),
    )


def _region(facts: Mapping[str, Any]) -> str:
    return f"{facts['words']}=" + ",".join(f"{float(edge):g}" for edge in facts["box"])
