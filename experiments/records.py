"""The records: what is measured once for the tables, and the file that keeps it.

All records are in one file, `experiments/results/records.jsonl`: a line of settings, then a line for each record that
was measured with these settings; other settings may follow with their records. The pictures of a record are a WebP file
in `pictures/` in the same folder. A run keeps each new record in a file of its own until `Results.fold` moves them all
into the one file, so that an interrupted run loses nothing.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments.study import Size, Study
from moongate.errors import OptionError, first_line
from moongate.evaluation import read_prompts
from moongate.extras import versions
from moongate.files import write_atomically
from moongate.pocket import weights_digest

__all__ = ["PICTURE", "Needs", "Record", "Results", "Training", "webp_bytes", "webp_row"]

PICTURE = "picture"
"""Key under which `Record.measure` returns a WebP file; it is kept as a file, not in the record."""
SIGNIFICANT_DIGITS = 8
"""Digits kept of each number; with six, a plot differs by a pixel from that of the exact numbers."""


@dataclass(frozen=True)
class Training:
    """A training that records need; equal ones are trained once."""

    examples: tuple[str, ...]
    method: str
    seed: int
    steps: int | None = None
    """Steps where they are not the method's own."""
    after: str | None = None
    """The example whose concept the training begins with."""


@dataclass(frozen=True)
class Needs:
    """What measuring a record takes, for `experiments.plan`."""

    trainings: tuple[Training, ...]
    pictures: int


class Record(Protocol):
    """Something that can be measured; equal records are measured once."""

    @property
    def key(self) -> str:
        """Name that no other record has, such as `single/jar-dreambooth-0`."""
        ...

    def needs(self, size: Size) -> Needs:
        """Return the trainings and the number of pictures that the values are made of."""
        ...

    def measure(self, study: Study) -> dict[str, Any]:
        """Train and draw what is missing, and return the values as plain JSON (only `PICTURE` holds bytes)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Results:
    """All records that are measured: those of the one file, and new ones that are not folded into it yet."""

    file: Path
    """The one file; `pictures/` in its folder holds the pictures."""
    new: Path
    """Folder of the records measured since, one JSON file each; they replace those of the same key."""
    size: Size
    """The size that records must have; one of another size counts as absent. Their precision may differ."""
    weights: str = field(default_factory=weights_digest)
    """Digest of the weights of pocket that records should be of; one of other weights is stale."""

    def absent(self, records: Iterable[Record]) -> list[Record]:
        """Return the records that were never measured, or only with another size or other prompts."""
        return [record for record in dict.fromkeys(records) if not self._has(record)]

    def stale(self, records: Iterable[Record]) -> list[Record]:
        """Return the records that were measured on other weights."""
        return [record for record in self.missing(records) if self._has(record)]

    def missing(self, records: Iterable[Record]) -> list[Record]:
        """Return the records to measure: absent and stale ones."""
        return [r for r in dict.fromkeys(records) if not self._has(r) or self._settings(r)["weights"] != self.weights]

    def present(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that were measured on the present weights."""
        missing = {record.key for record in self.missing(records)}
        return [record for record in dict.fromkeys(records) if record.key not in missing]

    def put(self, record: Record, values: Mapping[str, Any]) -> None:
        """Keep what `record.measure` returned, in the folder of new records."""
        content = _rounded({"settings": self._own_settings, **{k: v for k, v in values.items() if k != PICTURE}})
        if PICTURE in values:
            write_atomically(self.new / f"{record.key}.webp", values[PICTURE])
        write_atomically(self.new / f"{record.key}.json", json.dumps(content).encode())
        self._contents[record.key] = content

    def fold(self, known: Collection[str] | None = None) -> None:
        """Move the new records into the one file, sorted by settings and key, and their pictures into its folder.

        Records and pictures whose keys are not `known`, those of earlier tables, are dropped; none if it is None.
        """
        new = self.unfolded
        if not new:
            return
        for picture in sorted(self.new.rglob("*.webp")):
            write_atomically(self._pictures / picture.relative_to(self.new), picture.read_bytes())
            picture.unlink()
        by_settings: dict[str, list[str]] = {}
        for key in [key for key in self._contents if known is not None and key not in known]:
            del self._contents[key]
            (self._pictures / f"{key}.webp").unlink(missing_ok=True)
        for key, content in sorted(self._contents.items()):
            values = {name: value for name, value in content.items() if name != "settings"}
            by_settings.setdefault(_line({"settings": content["settings"]}), []).append(_line({"key": key, **values}))
        text = "".join(settings + "".join(by_settings[settings]) for settings in sorted(by_settings))
        write_atomically(self.file, text.encode())
        for path in new:
            path.unlink()

    @property
    def unfolded(self) -> list[Path]:
        """The files of new records."""
        return sorted(self.new.rglob("*.json"))

    def precisions(self, records: Iterable[Record]) -> dict[str, int]:
        """Return how many of the records that were measured are of each precision."""
        return dict(Counter(self._settings(record)["size"]["dtype"] for record in records if self._has(record)))

    def __getitem__(self, record: Record) -> dict[str, Any]:
        """Return the values of a record that is there."""
        return self._contents[record.key]

    def picture(self, record: Record) -> Image.Image:
        """Return the pictures of a record, side by side."""
        new = self.new / f"{record.key}.webp"
        return Image.open(new if new.exists() else self._pictures / f"{record.key}.webp").convert("RGB")

    def values(self, records: Sequence[Record], measure: str, features: str) -> list[float]:
        """Return one measure of all records; a pair has a value for each of its subjects."""
        return [
            row["value"]
            for record in records
            for row in self[record]["measures"]
            if (row["measure"], row["features"]) == (measure, features)
        ]

    @property
    def _pictures(self) -> Path:
        return self.file.parent / "pictures"

    @cached_property
    def _contents(self) -> dict[str, dict[str, Any]]:
        """All records by key, each with its settings."""
        contents: dict[str, dict[str, Any]] = {}
        settings: dict[str, Any] = {}
        for number, text in enumerate(self.file.read_bytes().splitlines() if self.file.exists() else (), 1):
            with _damage_named(f"Line {number} of {self.file}", "Restore the file, or delete the line if it has a key"):
                line = json.loads(text)
                if "settings" in line:
                    settings = {"settings": dict(line["settings"])}
                else:
                    key = line.pop("key")
                    contents[key] = {"settings": settings["settings"], **line}
        for path in self.unfolded:
            with _damage_named(str(path), "Delete it"):
                content = json.loads(path.read_bytes())
                key = path.relative_to(self.new).with_suffix("").as_posix()
                contents[key] = {"settings": content["settings"], **content}
        return contents

    @cached_property
    def _own_settings(self) -> dict[str, Any]:
        prompts = {name: read_prompts(name) for name in ("pocket", "pocket-pair")}
        return {"size": asdict(self.size), "weights": self.weights, "versions": versions(), "prompts": prompts}

    def _settings(self, record: Record) -> dict[str, Any]:
        settings: dict[str, Any] = self[record]["settings"]
        return settings

    def _has(self, record: Record) -> bool:
        if record.key not in self._contents:
            return False
        settings, own = self._settings(record), self._own_settings
        return _drawn(settings["size"]) == _drawn(own["size"]) and settings["prompts"] == own["prompts"]


@contextlib.contextmanager
def _damage_named(place: str, remedy: str) -> Iterator[None]:
    """Raise OptionError, which names the place, for what is no record."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error).removesuffix(".")
        raise OptionError(f"{place} is no record: {what}. {remedy}: the record is measured again.") from error


def _drawn(size: Mapping[str, Any]) -> dict[str, Any]:
    """Return a size without its precision, which depends on the machine."""
    return {name: value for name, value in size.items() if name != "dtype"}


def webp_row(images: Iterable[UInt8[np.ndarray, "height _ 3"]]) -> bytes:
    """Return pictures of one height side by side, as a WebP file."""
    return webp_bytes(Image.fromarray(np.concatenate(list(images), axis=1)))


def webp_bytes(image: Image.Image) -> bytes:
    """Return the content of a WebP file, an eighth of what PNG takes for pictures that pocket draws."""
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=85)
    return file.getvalue()


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    """Return JSON with every float rounded to `SIGNIFICANT_DIGITS`."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
