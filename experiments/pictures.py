"""Records of pictures to look at: rows by prompts, what a word alone draws, where words look."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from experiments.records import PICTURE, Needs, Training, webp_row
from experiments.scores import BASE, OURS, Several, Single, worded, words_of
from experiments.study import Size, Study
from moongate import Concept
from moongate.analysis import word_maps
from moongate.evaluation.metrics import image_alignment
from moongate.evaluation.prompts import filled

__all__ = ["Attention", "Row", "Word"]

SHOWN = 6
"""Pictures of a word that are kept."""


@dataclass(frozen=True)
class Row:
    """Pictures to look at: the first pictures of each of some prompts, side by side."""

    examples: tuple[str, ...]
    method: str
    """A method, or for several subjects a way to compose; `base` is pocket itself, asked for the categories."""
    prompts: tuple[str, ...]
    """With `{}`, or `{0}` and `{1}`, for the words of the subjects, if they are named at all."""
    figure: str = "fig6"
    energy: float | None = None
    """Share of the sum of the singular values that compression keeps; no compression when None."""
    count: int = 1
    """Pictures of each prompt."""

    @property
    def key(self) -> str:
        energy = f"-{self.energy}-energy" if self.energy else ""
        return f"row/{self.figure}/{'-'.join(self.examples)}-{self.method}{energy}"

    def needs(self, size: Size) -> Needs:
        trainings = () if self.method == BASE else self._source.needs(size).trainings
        return Needs(trainings, len(self.prompts) * self.count)

    def measure(self, study: Study) -> dict[str, Any]:
        concept = None if self.method == BASE else self._source.concept(study)
        words = words_of(concept) or [study.subject(example).category for example in self.examples]
        prompts = worded(self.prompts, words)
        pictures = study.drawn(concept, prompts, seed=0, count=self.count)
        return {"prompts": prompts, PICTURE: webp_row(pictures)}

    @property
    def _source(self) -> Single | Several:
        if len(self.examples) > 1:
            return Several(self.examples, self.method)
        return Single(self.examples[0], self.method, energy=self.energy)


@dataclass(frozen=True)
class Word:
    """What a prompt without the token draws: how much of the subject has leaked into the word of its category.

    Image alignment is with the held-out pictures of the subject, so lower is better unless the prompt describes the
    subject; diversity is the mean of 1 - cosine over pairs of pictures, in features of EfficientNet-Lite0.
    """

    example: str
    method: str
    """A method, or `base`."""
    prompt: str
    """With `{}` for the word of the category."""
    figure: str

    @property
    def key(self) -> str:
        return f"word/{self.figure}/{self.example}-{self.method}"

    def needs(self, size: Size) -> Needs:
        trainings = () if self.method == BASE else (Training((self.example,), self.method, 0),)
        return Needs(trainings, size.word_count)

    def measure(self, study: Study) -> dict[str, Any]:
        concept: Concept | None = None if self.method == BASE else study.single(self.example, self.method, 0)
        category = study.subject(self.example).category
        (prompt,) = worded([self.prompt], [category])
        pictures = study.drawn(concept, [prompt], seed=0, count=study.size.word_count)
        drawn, wanted = study.features(pictures), study.features(study.held_out(self.example).pictures)
        return {
            "prompt": prompt,
            "image": {name: float(image_alignment(drawn[name], wanted[name]).mean()) for name in drawn},
            "diversity": _diversity(drawn["efficientnet-lite0"]),
            "recognized": int(study.recognizer.sees(pictures, [category]).sum()),
            "pictures": len(pictures),
            PICTURE: webp_row(pictures[:SHOWN]),
        }


@dataclass(frozen=True)
class Attention:
    """Where each word of a prompt looks (paper, Fig. 16)."""

    example: str
    prompt: str

    @property
    def key(self) -> str:
        return f"attention/{self.example}"

    def needs(self, size: Size) -> Needs:
        return Needs((Training((self.example,), OURS, 0),), 1)

    def measure(self, study: Study) -> dict[str, Any]:
        concept = study.single(self.example, OURS, 0)
        prompt = filled(self.prompt, [concept.subjects[0].words])
        with concept.applied(study.backbone):
            (attention,) = word_maps(study.backbone, prompt, options=study.size.sampling)
        maps = [{"word": word, "map": where.round(3).tolist()} for word, where in attention.words]
        return {"prompt": prompt, "words": maps, PICTURE: webp_row([attention.picture.image])}


def _diversity(features: Float[Tensor, "n width"]) -> float:
    """Return the mean of 1 - cosine over all pairs of different pictures."""
    unit = F.normalize(features.double(), dim=1)
    cosines, count = unit @ unit.T, len(unit)
    return float(1 - (cosines.sum() - cosines.trace()) / max(count * (count - 1), 1))
