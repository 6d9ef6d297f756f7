"""Records of scores: alignments over sets of prompts, KID and FID, and what the recognizer counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.records import Needs, Training
from experiments.study import Size, Study
from moongate import Concept, compress
from moongate.data import photo_of, with_words
from moongate.evaluation import EvaluationOptions, Reference, Targets, evaluate, read_prompts
from moongate.evaluation.prompts import PROMPT_SETS, filled, subject_words
from moongate.merging import Merged, MergeOptions

__all__ = ["MERGES", "Base", "Several", "Single", "Unrelated", "prompts_for", "worded", "words_of"]

OURS, BASE = "custom-diffusion", "base"
MERGES: Mapping[str, MergeOptions] = {
    "the paper's formula": MergeOptions(elsewhere=0, unconditional="free"),
    "with the empty prompt fixed": MergeOptions(elsewhere=0),
    "with further contexts": MergeOptions(unconditional="free"),
    "with both": MergeOptions(),
    "both, further contexts a tenth": MergeOptions(elsewhere=30),
    "both, further contexts ten times": MergeOptions(elsewhere=3000),
    "both, four exact contexts": MergeOptions(contexts=4),
    "both, all exact contexts that fit": MergeOptions(contexts=None),
    "both, neutral captions by layer": MergeOptions(neutral="in-danger"),
    "both, keys only": MergeOptions(only="keys"),
    "both, values only": MergeOptions(only="values"),
}
"""The ways to merge that the ablation compares. Further contexts are fifty soft rows for each subject: 28 with the
subject alone, 24 where it follows a rare token that is perturbed at random."""
DEFAULT = next(name for name, options in MERGES.items() if options == MergeOptions())
KEPT = ("measure", "features", "subject", "value", "low", "high")
"""What a record keeps of each measure."""


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

    def needs(self, size: Size) -> Needs:
        training = Training((self.example,), self.method, self.seed, self.steps)
        return Needs((training,), 20 * size.count + (size.references if self.kid else 0))

    def concept(self, study: Study) -> Concept:
        """Return the concept that is evaluated."""
        concept = study.single(self.example, self.method, self.seed, steps=self.steps)
        return compress(concept, energy=self.energy).concept if self.energy else concept

    def measure(self, study: Study) -> dict[str, Any]:
        concept = self.concept(study)
        comparisons: list[Targets | Reference] = [study.held_out(self.example)]
        if self.kid:
            comparisons.append(study.pool(concept.subjects[0].category).reference)
        measures = _evaluated(study, concept, read_prompts("pocket"), comparisons, seed=self.seed)
        training = {key: value for key, value in concept.record.items() if key != "versions"}
        return {"training": training, "bytes": _size_bytes(concept), **measures}


@dataclass(frozen=True)
class Base:
    """Pocket without a concept, asked for the category of an example."""

    example: str

    @property
    def key(self) -> str:
        return f"base/{self.example}"

    def needs(self, size: Size) -> Needs:
        return Needs((), 20 * size.count + size.references)

    def measure(self, study: Study) -> dict[str, Any]:
        category = study.subject(self.example).category
        prompts = worded(read_prompts("pocket"), [category])
        return _evaluated(study, None, prompts, [study.pool(category).reference])


@dataclass(frozen=True)
class Several:
    """Two, three or four subjects in one picture, composed in one of the ways.

    The recognizer counts the pictures in which it sees the categories of all subjects. Prompts that name a further
    object do not count, because its category would be among those that score highest.
    """

    examples: tuple[str, ...]
    way: str
    """`base` (pocket itself, asked for the categories), `joint`, `merge`, `sequential`, or the method of a baseline."""
    seed: int = 0
    merging: str = DEFAULT
    """A key of `MERGES`, where the way is `merge`."""

    @property
    def key(self) -> str:
        number = list(MERGES).index(self.merging)
        way = self.way if self.merging == DEFAULT else f"{self.way}{number}"
        return f"several/{'-'.join(self.examples)}-{way}-{self.seed}"

    def needs(self, size: Size) -> Needs:
        trainings = tuple(Training((example,), OURS, self.seed) for example in self.examples)
        if self.way == BASE:
            trainings = ()
        elif self.way == "sequential":
            trainings = (trainings[0], Training(self.examples[1:], OURS, self.seed, after=self.examples[0]))
        elif self.way == "textual-inversion":
            trainings = tuple(Training((example,), self.way, self.seed) for example in self.examples)
        elif self.way != "merge":
            trainings = (Training(self.examples, OURS if self.way == "joint" else self.way, self.seed),)
        return Needs(trainings, 12 * size.pair_count)

    def concept(self, study: Study) -> Concept | None:
        """Return the concept that is evaluated; None for pocket itself."""
        return self._composed(study)[0]

    def measure(self, study: Study) -> dict[str, Any]:
        concept, merged = self._composed(study)
        prompts, count = prompts_for(len(self.examples)), study.size.pair_count
        if not concept:
            prompts = worded(prompts, self._categories(study))
        targets = [study.held_out(example, subject=index) for index, example in enumerate(self.examples)]
        comparisons = targets if concept else []
        values = _evaluated(study, concept, prompts, comparisons, seed=self.seed, count=count)
        values["recognized"] = self._recognized(study, concept)
        if merged:
            kept = [fit.share_kept for fit in merged.report.subjects]
            values["merge"] = {"drift": merged.report.drift, "unconditional": merged.report.unconditional, "kept": kept}
        return values

    def _composed(self, study: Study) -> tuple[Concept | None, Merged | None]:
        if self.way == BASE:
            return None, None
        if self.way == "merge":
            merged = study.merged(self.examples, self.seed, MERGES[self.merging])
            return merged.concept, merged
        if self.way == "sequential":
            return study.sequential(self.examples, self.seed), None
        if self.way == "textual-inversion":
            return study.side_by_side(self.examples, self.way, self.seed), None
        return study.joint(self.examples, OURS if self.way == "joint" else self.way, self.seed), None

    def _categories(self, study: Study) -> list[str]:
        return [study.subject(example).category for example in self.examples]

    def _recognized(self, study: Study, concept: Concept | None) -> dict[str, Any]:
        """Count the pictures in which the recognizer sees the categories of all, and of each subject."""
        categories = self._categories(study)
        prompts = prompts_for(len(self.examples), others=False)
        words = words_of(concept)
        texts = [filled(prompt, words) for prompt in prompts] if concept else worded(prompts, categories)
        pictures = study.drawn(concept, texts, seed=self.seed, count=study.size.pair_count)
        seen = study.recognizer.sees(pictures, categories)
        return {"all": int(seen.all(1).sum()), "each": seen.sum(0).tolist(), "pictures": len(pictures)}


@dataclass(frozen=True)
class Unrelated:
    """What a concept does to other categories: FID between pictures drawn from unrelated captions and real ones."""

    example: str
    method: str | None
    """None for pocket without a concept."""

    @property
    def key(self) -> str:
        return f"unrelated/{self.example}-{self.method or 'base'}"

    def needs(self, size: Size) -> Needs:
        return Needs((Training((self.example,), self.method, 0),) if self.method else (), 1 + size.unrelated)

    def measure(self, study: Study) -> dict[str, Any]:
        category = study.subject(self.example).category
        concept = study.single(self.example, self.method, 0) if self.method else None
        return _evaluated(study, concept, [photo_of(category)], [study.unrelated([category])])


def prompts_for(subjects: int, *, others: bool = True) -> list[str]:
    """Return twelve prompts for 2 to 4 subjects, or those nine of them that name no other object.

    Those for two are the set `pocket-pair`; further subjects follow the second: "a {0} and a {1} and a {2} on the
    beach".
    """
    kinds = PROMPT_SETS["pocket-pair"]
    pairs = [prompt for kind, prompts in kinds.items() if others or kind != "insertion" for prompt in prompts]
    further = "".join(f" and a {{{number}}}" for number in range(2, subjects))
    return [prompt.replace("{1}", "{1}" + further) for prompt in pairs]


def words_of(concept: Concept | None) -> list[str]:
    """Return the words of each subject of a concept as its method words them; none for pocket itself."""
    return subject_words(concept) if concept else []


def worded(prompts: Sequence[str], categories: Sequence[str]) -> list[str]:
    """Return prompts with categories in their places, "an armchair" where "a {}" was."""
    return [
        with_words(prompt, r"\{(?P<number>\d?)\}", lambda place: categories[int(place["number"] or 0)])
        for prompt in prompts
    ]


def _evaluated(
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
    rows = [{name: value for name, value in row.items() if name in KEPT} for row in evaluation["measures"]]
    return {"concept": concept.hash if concept else None, "measures": rows}


def _size_bytes(concept: Concept) -> int:
    return sum(tensor.nbytes for change in concept.deltas.values() for tensor in change.tensors().values())
