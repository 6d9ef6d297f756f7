"""What is measured once and kept as one JSON file each: a thing, a pair, or a look into a concept."""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from moongate import METHODS, Concept, compress, sample
from moongate.analysis import spectra, weight_changes, word_maps
from moongate.data import photo_of
from moongate.evaluation import EvaluationOptions, Reference, Targets, evaluate, read_prompts
from moongate.evaluation.prompts import filled
from moongate.files import write_atomically
from moongate.pocket import weights_digest

from .study import Size, Study

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
    "as_picture",
]


class Record(Protocol):
    """Something that can be measured; equal ones are measured once."""

    @property
    def key(self) -> str:
        """Path of its file without the suffix."""
        ...

    def measure(self, study: Study) -> dict[str, Any]:
        """Return it as plain JSON, training and drawing whatever is missing."""
        ...


@dataclass(frozen=True)
class Single:
    """One thing taught by one method: alignments over twenty prompts, and KID to real pictures of its category."""

    example: str
    method: str
    seed: int = 0
    steps: int | None = None
    """Other than the method's."""
    energy: float | None = None
    """Share of the singular values that compression keeps; all when None."""
    kid: bool = True

    @property
    def key(self) -> str:
        more = "".join(f"-{value}-{name}" for name, value in (("steps", self.steps), ("energy", self.energy)) if value)
        return f"single/{self.example}-{self.method}-{self.seed}{more}{'' if self.kid else '-no-kid'}"

    def concept(self, study: Study) -> Concept:
        """Return what is judged."""
        concept = study.single(self.example, self.method, self.seed, steps=self.steps)
        return compress(concept, energy=self.energy).concept if self.energy else concept

    def measure(self, study: Study) -> dict[str, Any]:
        concept = self.concept(study)
        comparisons: list[Targets | Reference] = [study.held_out(self.example)]
        if self.kid:
            comparisons.append(study.pool(concept.subjects[0].category).reference)
        judged = _judged(study, concept, read_prompts("pocket"), comparisons, seed=self.seed)
        return {"training": dict(concept.record), "bytes": _bytes(concept), **judged}


@dataclass(frozen=True)
class Base:
    """Pocket itself, asked for the category alone."""

    example: str

    @property
    def key(self) -> str:
        return f"base/{self.example}"

    def measure(self, study: Study) -> dict[str, Any]:
        category = study.subject(self.example).category
        prompts = [re.sub(r"\ba(?= [aeiou])", "an", filled(p, [category])) for p in read_prompts("pocket")]
        return _judged(study, None, prompts, [study.pool(category).reference])


@dataclass(frozen=True)
class Pair:
    """Two things in one picture, composed in one of the ways."""

    pair: tuple[str, str]
    way: str
    """joint, merge, sequential, or a baseline's method."""
    seed: int = 0

    @property
    def key(self) -> str:
        return f"pair/{'-'.join(self.pair)}-{self.way}-{self.seed}"

    def concept(self, study: Study) -> Concept:
        """Return what is judged."""
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
        count = study.size.pair_count
        return _judged(study, self.concept(study), read_prompts("pocket-pair"), targets, seed=self.seed, count=count)


@dataclass(frozen=True)
class Unrelated:
    """What became of everything else: FID between pictures drawn from unrelated captions and the real ones."""

    example: str
    method: str | None
    """None for pocket itself."""

    @property
    def key(self) -> str:
        return f"unrelated/{self.example}-{self.method or 'base'}"

    def measure(self, study: Study) -> dict[str, Any]:
        category = study.subject(self.example).category
        concept = study.single(self.example, self.method, 0) if self.method else None
        return _judged(study, concept, [photo_of(category)], [study.unrelated([category])])


@dataclass(frozen=True)
class Weights:
    """How far each kind of layer moves when all may (paper, Sec. 3.1)."""

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
        found = spectra(study.single(self.example, "custom-diffusion", 0))
        return {
            "values": {name: [round(float(v), 6) for v in s.values / s.values[0]] for name, s in found.items()},
            "rank_at_60": {name: s.rank(0.6) for name, s in found.items()},
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
            (found,) = word_maps(study.backbone, prompt, options=study.size.sampling)
        maps = [{"word": word, "map": where.round(3).tolist()} for word, where in found.words]
        return {"prompt": prompt, "picture": _as_text([found.picture.image]), "words": maps}


@dataclass(frozen=True)
class Row:
    """Pictures to look at: the thing as it is, then the first pictures of some prompts."""

    examples: tuple[str, ...]
    method: str
    """A method, or for a pair a way to compose."""
    prompts: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"row/{'-'.join(self.examples)}-{self.method}"

    def measure(self, study: Study) -> dict[str, Any]:
        made: Single | Pair = Single(self.examples[0], self.method)
        if len(self.examples) == 2:
            made = Pair((self.examples[0], self.examples[1]), self.method)
        concept = made.concept(study)
        method = METHODS[concept.method] if concept.method in METHODS else METHODS["custom-diffusion"]
        words = [method.worded(s.words, token=s.token, category=s.category) for s in concept.subjects]
        prompts = [filled(prompt, words) for prompt in self.prompts]
        with concept.applied(study.backbone):
            drawn = list(sample(study.backbone, prompts, seeds=[0] * len(prompts), options=study.size.sampling))
        return {"prompts": prompts, "pictures": _as_text([picture.image for picture in drawn])}


@dataclass(frozen=True)
class Results:
    """The records that there are, in a folder, of one size."""

    folder: Path
    size: Size
    weights: str = field(default_factory=weights_digest)
    """Which weights of pocket they should be of."""

    def absent(self, records: Iterable[Record]) -> list[Record]:
        """Return those that were never measured, or with another size."""
        return [record for record in dict.fromkeys(records) if not self._has(record)]

    def stale(self, records: Iterable[Record]) -> list[Record]:
        """Return those that are there, but of other weights."""
        return [record for record in self.missing(records) if self._has(record)]

    def missing(self, records: Iterable[Record]) -> list[Record]:
        """Return those that are to be measured: absent and stale ones."""
        return [r for r in dict.fromkeys(records) if not self._has(r) or self[r].get("weights") != self.weights]

    def put(self, record: Record, found: Mapping[str, Any]) -> None:
        """Keep one."""
        text = json.dumps({"size": asdict(self.size), "weights": self.weights, **found}, indent=1)
        write_atomically(self._path(record), (text + "\n").encode())

    def __getitem__(self, record: Record) -> dict[str, Any]:
        """Return one that is there."""
        return json.loads(self._path(record).read_text())

    def figures(self, records: Sequence[Record], measure: str, features: str) -> list[float]:
        """Return one measure of all records; of a pair, for each thing."""
        return [
            row["value"]
            for record in records
            for row in self[record]["measures"]
            if (row["measure"], row["features"]) == (measure, features)
        ]

    def _has(self, record: Record) -> bool:
        return self._path(record).exists() and self[record]["size"] == asdict(self.size)

    def _path(self, record: Record) -> Path:
        return self.folder / f"{record.key}.json"


def _judged(
    study: Study,
    concept: Concept | None,
    prompts: Sequence[str],
    comparisons: Sequence[Targets | Reference],
    *,
    seed: int = 0,
    count: int | None = None,
) -> dict[str, Any]:
    options = EvaluationOptions(count=count or study.size.count, seed=100 * seed, sampling=study.size.sampling)
    return evaluate(
        study.backbone,
        concept,
        prompts,
        study.networks,
        folder=study.pictures,
        comparisons=comparisons,
        options=options,
    )


def _as_text(images: Sequence[np.ndarray]) -> str:
    """Return pictures side by side as a WebP file in base64."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(images, axis=1)).save(file, format="WEBP", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def as_picture(text: str) -> Image.Image:
    """Return what `_as_text` wrote."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def _bytes(concept: Concept) -> int:
    return sum(tensor.nbytes for change in concept.deltas.values() for tensor in change.tensors().values())
