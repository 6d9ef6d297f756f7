"""The records: what is measured once for the tables, and the file that keeps it.

All records are in one file, `experiments/results/records.jsonl`: a line of settings, then a line for each record that
was measured with these settings; other settings may follow with their records. The pictures of a record are a WebP file
in `pictures/` in the same folder. A run keeps each new record in a file of its own until `Results.fold` moves them all
into the one file, so that an interrupted run loses nothing.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments.study import Size, Study
from moongate import METHODS, Concept, compress, sample
from moongate.analysis import spectra, weight_changes, word_maps
from moongate.data import photo_of, with_article
from moongate.evaluation import EvaluationOptions, Reference, Targets, evaluate, read_prompts
from moongate.evaluation.prompts import filled
from moongate.extras import versions
from moongate.files import write_atomically
from moongate.pocket import weights_digest

__all__ = [
    "Attention",
    "Base",
    "Pair",
    "Record",
    "Results",
    "Row",
    "Single",
    "Spectrum",
    "Unrelated",
    "Weights",
    "webp_row",
]

PICTURE = "picture"
"""Key under which `Record.measure` returns a WebP file; it is kept as a file, not in the record."""
SIGNIFICANT_DIGITS = 8
"""Digits kept of each number; with six, a plot differs by a pixel from that of the exact numbers."""


class Record(Protocol):
    """Something that can be measured; equal records are measured once."""

    @property
    def key(self) -> str:
        """Name that no other record has, such as `single/jar-dreambooth-0`."""
        ...

    def measure(self, study: Study) -> dict[str, Any]:
        """Train and draw what is missing, and return the values as plain JSON (only `PICTURE` holds bytes)."""
        ...


@dataclass(frozen=True)
class Single:
    """One subject taught by one method: alignments over twenty prompts, and KID to real pictures of its category."""

    example: str
    method: str
    seed: int = 0
    steps: int | None = None
    """Training steps, where they are not the method's own."""
    energy: float | None = None
    """Share of the sum of the singular values that compression keeps, from 0 to 1; no compression when None."""
    kid: bool = True

    @property
    def key(self) -> str:
        options = "".join(
            f"-{value}-{name}" for name, value in (("steps", self.steps), ("energy", self.energy)) if value
        )
        return f"single/{self.example}-{self.method}-{self.seed}{options}{'' if self.kid else '-no-kid'}"

    def concept(self, study: Study) -> Concept:
        """Return the concept that is evaluated."""
        concept = study.single(self.example, self.method, self.seed, steps=self.steps)
        return compress(concept, energy=self.energy).concept if self.energy else concept

    def measure(self, study: Study) -> dict[str, Any]:
        concept = self.concept(study)
        comparisons: list[Targets | Reference] = [study.held_out(self.example)]
        if self.kid:
            comparisons.append(study.pool(concept.subjects[0].category).reference)
        measures = _evaluation(study, concept, read_prompts("pocket"), comparisons, seed=self.seed)
        training = {key: value for key, value in concept.record.items() if key != "versions"}
        return {"training": training, "bytes": _size_bytes(concept), **measures}


@dataclass(frozen=True)
class Base:
    """Pocket without a concept, asked for the category of an example."""

    example: str

    @property
    def key(self) -> str:
        return f"base/{self.example}"

    def measure(self, study: Study) -> dict[str, Any]:
        category = study.subject(self.example).category
        worded = (re.sub(r"\ba \{\}", with_article(category), prompt) for prompt in read_prompts("pocket"))
        prompts = [filled(prompt, [category]) for prompt in worded]
        return _evaluation(study, None, prompts, [study.pool(category).reference])


@dataclass(frozen=True)
class Pair:
    """Two subjects in one picture, composed in one of the ways."""

    pair: tuple[str, str]
    way: str
    """`joint`, `merge`, `sequential`, or the method of a baseline."""
    seed: int = 0

    @property
    def key(self) -> str:
        return f"pair/{'-'.join(self.pair)}-{self.way}-{self.seed}"

    def concept(self, study: Study) -> Concept:
        """Return the concept that is evaluated."""
        if self.way == "merge":
            return study.merged(self.pair, self.seed)
        if self.way == "sequential":
            return study.sequential(self.pair, self.seed)
        if self.way == "textual-inversion":
            return study.side_by_side(self.pair, self.way, self.seed)
        method = "custom-diffusion" if self.way == "joint" else self.way
        return study.joint(self.pair, method, self.seed)

    def measure(self, study: Study) -> dict[str, Any]:
        targets = [study.held_out(example, subject=index) for index, example in enumerate(self.pair)]
        prompts, count = read_prompts("pocket-pair"), study.size.pair_count
        return _evaluation(study, self.concept(study), prompts, targets, seed=self.seed, count=count)


@dataclass(frozen=True)
class Unrelated:
    """What a concept does to other categories: FID between pictures drawn from unrelated captions and real ones."""

    example: str
    method: str | None
    """None for pocket without a concept."""

    @property
    def key(self) -> str:
        return f"unrelated/{self.example}-{self.method or 'base'}"

    def measure(self, study: Study) -> dict[str, Any]:
        category = study.subject(self.example).category
        concept = study.single(self.example, self.method, 0) if self.method else None
        return _evaluation(study, concept, [photo_of(category)], [study.unrelated([category])])


@dataclass(frozen=True)
class Weights:
    """How far each kind of layer moves when all weights are trained (paper, Sec. 3.1)."""

    example: str

    @property
    def key(self) -> str:
        return f"weights/{self.example}"

    def measure(self, study: Study) -> dict[str, Any]:
        changes = weight_changes(study.backbone, study.single(self.example, "fine-tune-all", 0))
        return {"kinds": {change.kind: {"mean": change.mean, "share": change.share} for change in changes}}


@dataclass(frozen=True)
class Spectrum:
    """Singular values of each change, relative to the largest (paper, App. C)."""

    example: str

    @property
    def key(self) -> str:
        return f"spectrum/{self.example}"

    def measure(self, study: Study) -> dict[str, Any]:
        by_layer = spectra(study.single(self.example, "custom-diffusion", 0))
        return {
            "values": {name: [float(v) for v in s.values / s.values[0]] for name, s in by_layer.items()},
            "rank_at_60": {name: s.rank(0.6) for name, s in by_layer.items()},
        }


@dataclass(frozen=True)
class Attention:
    """Where each word of a prompt looks (paper, Fig. 16)."""

    example: str
    prompt: str

    @property
    def key(self) -> str:
        return f"attention/{self.example}"

    def measure(self, study: Study) -> dict[str, Any]:
        concept = study.single(self.example, "custom-diffusion", 0)
        prompt = filled(self.prompt, [concept.subjects[0].words])
        with concept.applied(study.backbone):
            (attention,) = word_maps(study.backbone, prompt, options=study.size.sampling)
        maps = [{"word": word, "map": where.round(3).tolist()} for word, where in attention.words]
        return {"prompt": prompt, "words": maps, PICTURE: webp_row([attention.picture.image])}


@dataclass(frozen=True)
class Row:
    """Pictures to look at: the first picture of each of some prompts, side by side."""

    examples: tuple[str, ...]
    method: str
    """A method, or for a pair a way to compose."""
    prompts: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"row/{'-'.join(self.examples)}-{self.method}"

    def measure(self, study: Study) -> dict[str, Any]:
        source: Single | Pair = Single(self.examples[0], self.method)
        if len(self.examples) == 2:
            source = Pair((self.examples[0], self.examples[1]), self.method)
        concept = source.concept(study)
        method = METHODS[concept.method] if concept.method in METHODS else METHODS["custom-diffusion"]
        words = [method.worded(s.words, token=s.token, category=s.category) for s in concept.subjects]
        prompts = [filled(prompt, words) for prompt in self.prompts]
        with concept.applied(study.backbone):
            pictures = list(sample(study.backbone, prompts, seeds=[0] * len(prompts), options=study.size.sampling))
        return {"prompts": prompts, PICTURE: webp_row([picture.image for picture in pictures])}


@dataclass(frozen=True, kw_only=True)
class Results:
    """All records that are measured: those of the one file, and new ones that are not folded into it yet."""

    file: Path
    """The one file; `pictures/` in its folder holds the pictures."""
    new: Path
    """Folder of the records measured since, one JSON file each; they replace those of the same key."""
    size: Size
    """The size that records must have; one of another size counts as absent."""
    weights: str = field(default_factory=weights_digest)
    """Digest of the weights of pocket that records should be of; one of other weights is stale."""

    def absent(self, records: Iterable[Record]) -> list[Record]:
        """Return the records that were never measured, or only with another size."""
        return [record for record in dict.fromkeys(records) if not self._has(record)]

    def stale(self, records: Iterable[Record]) -> list[Record]:
        """Return the records that were measured on other weights."""
        return [record for record in self.missing(records) if self._has(record)]

    def missing(self, records: Iterable[Record]) -> list[Record]:
        """Return the records to measure: absent and stale ones."""
        return [r for r in dict.fromkeys(records) if not self._has(r) or self._settings(r)["weights"] != self.weights]

    def put(self, record: Record, values: Mapping[str, Any]) -> None:
        """Keep what `record.measure` returned, in the folder of new records."""
        content = _rounded({"settings": self._own_settings, **{k: v for k, v in values.items() if k != PICTURE}})
        if PICTURE in values:
            write_atomically(self.new / f"{record.key}.webp", values[PICTURE])
        write_atomically(self.new / f"{record.key}.json", json.dumps(content).encode())
        self._contents[record.key] = content

    def fold(self) -> None:
        """Move the new records into the one file, sorted by settings and key, and their pictures into its folder."""
        new = sorted(self.new.rglob("*.json"))
        if not new:
            return
        for picture in sorted(self.new.rglob("*.webp")):
            write_atomically(self._pictures / picture.relative_to(self.new), picture.read_bytes())
            picture.unlink()
        by_settings: dict[str, list[str]] = {}
        for key, content in sorted(self._contents.items()):
            values = {name: value for name, value in content.items() if name != "settings"}
            by_settings.setdefault(_line({"settings": content["settings"]}), []).append(_line({"key": key, **values}))
        text = "".join(settings + "".join(by_settings[settings]) for settings in sorted(by_settings))
        write_atomically(self.file, text.encode())
        for path in new:
            path.unlink()

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
        for text in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else ():
            line = json.loads(text)
            if "settings" in line:
                settings = line
            else:
                key = line.pop("key")
                contents[key] = settings | line
        for path in self.new.rglob("*.json"):
            contents[path.relative_to(self.new).with_suffix("").as_posix()] = json.loads(path.read_text())
        return contents

    @cached_property
    def _own_settings(self) -> dict[str, Any]:
        prompts = {name: read_prompts(name) for name in ("pocket", "pocket-pair")}
        return {"size": asdict(self.size), "weights": self.weights, "versions": versions(), "prompts": prompts}

    def _settings(self, record: Record) -> dict[str, Any]:
        settings: dict[str, Any] = self[record]["settings"]
        return settings

    def _has(self, record: Record) -> bool:
        return record.key in self._contents and self._settings(record)["size"] == asdict(self.size)


def webp_row(images: Sequence[UInt8[np.ndarray, "height _ 3"]]) -> bytes:
    """Return pictures of one height side by side, as a WebP file."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(images, axis=1)).save(file, format="WEBP", quality=85)
    return file.getvalue()


def _evaluation(
    study: Study,
    concept: Concept | None,
    prompts: Sequence[str],
    comparisons: Sequence[Targets | Reference],
    *,
    seed: int = 0,
    count: int | None = None,
) -> dict[str, Any]:
    """Evaluate, and return what depends on the record; what all records share is in the settings."""
    options = EvaluationOptions(count=count or study.size.count, seed=100 * seed, sampling=study.size.sampling)
    evaluation = evaluate(
        study.backbone,
        concept,
        prompts,
        study.networks,
        folder=study.pictures,
        comparisons=comparisons,
        options=options,
    ).to_json()
    return {
        "concept": concept.hash if concept else None,
        "targets": [_by_subject(target) for target in evaluation["targets"]],
        "references": evaluation["references"],
        "measures": [_by_subject(measure) for measure in evaluation["measures"]],
    }


def _by_subject(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"subject" if name == "thing" else name: value for name, value in row.items()}


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    """Return JSON with every float rounded to `SIGNIFICANT_DIGITS`."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _size_bytes(concept: Concept) -> int:
    return sum(tensor.nbytes for change in concept.deltas.values() for tensor in change.tensors().values())
