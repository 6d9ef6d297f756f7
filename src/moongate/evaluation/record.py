"""The record of an evaluation: every setting and every value, as dataclasses and as plain JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moongate.sampling import SampleOptions

__all__ = ["BaseFacts", "ConceptFacts", "Evaluation", "Measure", "ReferenceFacts", "TargetFacts", "Wording"]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """One prompt in its three forms."""

    given: str
    """As the caller wrote it, with `{}` for the subject."""
    drawn: str
    """As the denoiser reads it, with tokens."""
    read: str
    """As feature networks read it, with the category in place of the token (paper, App. C)."""


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """The base model."""

    name: str
    fingerprint: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ConceptFacts:
    """The concept that was evaluated."""

    hash: str
    method: str
    subjects: tuple[str, ...]
    """The words for each subject in a prompt, such as "<bear> teddy bear"."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """Pictures of a subject that drawn pictures were compared with."""

    words: str
    """The words for the subject."""
    kind: str
    """"held out" or "training"."""
    pictures: int
    """Number of pictures."""
    content: str
    """Digest of the pictures."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """Real pictures of the category that drawn pictures were compared with."""

    pictures: int
    """Number of pictures."""
    content: str
    """Digest of the pictures."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One value of one network, with its interval where it has one."""

    measure: str
    """"text alignment", "image alignment", "KID" or "FID"."""
    features: str
    """Name of the feature network."""
    pictures: str | None = None
    """For an image alignment: which kind of target pictures, "held out" or "training"."""
    subject: int | None = None
    """For an image alignment: index of the subject in the concept."""
    value: float
    low: float | None = None
    """Lower bound of the interval."""
    high: float | None = None
    """Upper bound of the interval."""
    by_prompt: tuple[float, ...] | None = None
    """Mean value for each prompt."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without those that this measure does not have."""
        values = asdict(self) | {"by_prompt": self.by_prompt and list(self.by_prompt)}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` returns: all settings, and the measures of each network in turn."""

    versions: Mapping[str, str]
    base: BaseFacts
    concept: ConceptFacts | None
    count: int
    """Pictures for each prompt."""
    seeds: tuple[int, ...]
    sampling: SampleOptions
    level: float
    """Confidence level of the intervals."""
    resamples: int
    """Bootstrap resamples of the prompts."""
    features: tuple[str, ...]
    """Names of the networks."""
    prompts: tuple[Wording, ...]
    targets: tuple[TargetFacts, ...]
    references: tuple[ReferenceFacts, ...]
    measures: tuple[Measure, ...]

    def compared_with(self, measure: Measure) -> str:
        """Return which photos an image alignment is with; nothing for another measure."""
        if measure.subject is None or self.concept is None:
            return ""
        return f"{measure.pictures} photos of {self.concept.subjects[measure.subject]}"

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {
            "versions": dict(self.versions),
            "base": asdict(self.base),
            "concept": self.concept
            and {"hash": self.concept.hash, "method": self.concept.method, "subjects": list(self.concept.subjects)},
            "count": self.count,
            "seeds": list(self.seeds),
            "sampling": asdict(self.sampling),
            "intervals": {"level": self.level, "resamples": self.resamples, "over": "prompts"},
            "features": list(self.features),
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "targets": [
                {"subject": facts.words, "kind": facts.kind, "pictures": facts.pictures, "content": facts.content}
                for facts in self.targets
            ],
            "references": [asdict(facts) for facts in self.references],
            "measures": [measure.to_json() for measure in self.measures],
        }
