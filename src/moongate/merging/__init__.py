"""Merge finished concepts into one without training, and take one out again (paper, Sec. 3.3, Eq. 4-5).

A subject's text features in a few contexts become rows of C, and the values its own concept gives them become V;
the features of neutral captions are what must move least. `closed_form` solves; this module knows which features
those are, and what to report. It never touches pictures.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.errors import OptionError, TokenError
from moongate.extras import versions
from moongate.merging.closed_form import ClosedForm
from moongate.merging.neutral import HELD_OUT_EVERY, encoded, neutral_captions, regularization_gram
from moongate.merging.report import INFEASIBLE, Conflict, MergeReport, SubjectFit

__all__ = ["MergeOptions", "Merged", "merge"]

CONTEXTS = (
    "photo of a {}",
    "{}",
    "a {} on the beach",
    "painting of a {}",
    "photo of a {} and a tree",
    "a {} in a room",
    "close up photo of a {}",
    "photo of a tree and a {}",
)
"""Captions in which a subject must keep its values; the features of a word depend on what stands before it."""
HELD_OUT_CONTEXTS = ("photo of a {} in the snow", "a red {} in a garden", "drawing of a {} at night")
JOINT_CONTEXT = "photo of a {} and a {}"
CAPACITY_SHARE = 0.5
"""Contexts are left out, last first, until the constraints take at most this share of the features' width."""
PARTNERS = 4
"""Others that a subject is put beside to measure the joint error."""
RIDGE = 1e-6
"""Cost of changing what no caption uses; features are float32, and hold nothing but rounding there."""
CONFLICT_COSINE = 0.95


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What must not change, and how much of each subject must be kept."""

    captions: tuple[str, ...] = ()
    """Neutral captions beside those that come with the package."""
    contexts: int | None = None
    """Contexts in which each subject keeps its values, 1 to 8; as many as there is room for when None."""
    without: tuple[str, ...] = ()
    """Subjects to leave out, by token or by words: how one is taken out of a merge again."""
    cache: Path | None = None
    """Folder in which the captions' Gram matrix is kept for each base; not kept when None."""

    def __post_init__(self) -> None:
        if self.contexts is not None and not 1 <= self.contexts <= len(CONTEXTS):
            raise OptionError(f"contexts is {self.contexts}; it must be from 1 to {len(CONTEXTS)}.")


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The concept, stored by its own low rank, and the report."""

    concept: Concept
    report: MergeReport


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A subject, the concept whose values it keeps, and the contexts in which it keeps them."""

    subject: SubjectRecord
    concept: Concept
    contexts: tuple[str, ...]

    def values(self, layer: str, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n out"]:
        change = self.concept.deltas.get(layer)
        if change is None:
            return rows.new_zeros(len(rows), 1)
        return _moved(change, rows)


def _moved(change: Dense | LowRank, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n out"]:
    """Return what a change adds to the values of some features, float64; a product is never multiplied out."""
    if isinstance(change, LowRank):
        return rows @ change.down.double().T @ change.up.double().T
    return rows @ change.full().double().T


def merge(backbone: Backbone, concepts: Sequence[Concept], *, options: MergeOptions | None = None) -> Merged:
    """Return one concept that holds all subjects of `concepts`, each with the values its own concept gives it.

    Any number of concepts, with or without tokens, trained jointly, compressed or merged before; one alone is
    cleaned: it keeps what it says of its own words, and the rest goes back toward the base. A token that an earlier
    concept uses too is renamed. The order of the concepts does not change the weights.

    Raises BaseMismatchError for a concept of another base, and OptionError for one that changes more than keys and
    values of text or when more is asked to be kept than features have dimensions.
    """
    options = options or MergeOptions()
    if not concepts:
        raise OptionError("There is no concept to merge. Give at least one.")
    for concept in concepts:
        concept.check_base(backbone)
        _check_mergeable(backbone, concept)
    concepts, renamed = _without_clashes(concepts)
    parts = _parts(backbone, concepts, options)
    tokens = {token: row for concept in concepts for token, row in concept.tokens.items()}
    kept = {token: row for token, row in tokens.items() if token in {part.subject.token for part in parts}}
    captions = neutral_captions(options.captions)
    gram = regularization_gram(backbone, captions, cache=options.cache)
    with backbone.tokens(tokens):
        problem = _Problem(backbone, parts, gram)
        deltas = problem.solution()
        report = problem.report(deltas, captions, renamed)
        concept = Concept(
            deltas={name: LowRank(up=change.up.float(), down=change.down.float()) for name, change in deltas.items()},
            tokens=kept,
            token_widths=backbone.token_widths,
            subjects=tuple(part.subject for part in parts),
            base=concepts[0].base,
            fingerprint=concepts[0].fingerprint,
            method="merge",
            record={"contexts": [list(part.contexts) for part in parts], **_further(options), "versions": versions()},
        )
    return Merged(concept=concept, report=report)


# --- what is kept -----------------------------------------------------------------------------------------------------


def _further(options: MergeOptions) -> dict[str, Any]:
    """Return what the record says of the user's own captions."""
    if not options.captions:
        return {}
    content = hashlib.sha256("\n".join(options.captions).encode())
    return {"further_captions": {"count": len(options.captions), "sha256": content.hexdigest()}}


def _check_mergeable(backbone: Backbone, concept: Concept) -> None:
    if not all(subject.words for subject in concept.subjects) or not concept.subjects:
        raise OptionError(
            f"A concept ({concept.method}) names no subject whose words could be kept. Give it its class word with "
            "`moongate convert FILE --to moongate --category WORD`."
        )
    known = backbone.weights("cross-attention-kv")
    other = sorted(set(concept.deltas) - set(known))
    if other:
        raise OptionError(
            f"The concept of {concept.subjects[0].words!r} also changes {other[0]!r}, which reads no text; only keys "
            "and values can be merged in closed form. Train it with --method custom-diffusion, train jointly, or add "
            "the changes up (`moongate generate --together add`)."
        )
    if not concept.deltas:
        raise OptionError(
            f"The concept of {concept.subjects[0].words!r} changes no weights, so that there is nothing to merge. "
            "Leave it out, and give it to `moongate generate --together add` beside the merge."
        )


def _without_clashes(concepts: Sequence[Concept]) -> tuple[list[Concept], list[tuple[str, str]]]:
    """Rename a token that an earlier concept uses: "<new1>" to the first of "<new2>", "<new3>", ... that is free."""
    used: set[str] = set()
    every = {token for concept in concepts for token in concept.tokens}
    result: list[Concept] = []
    renamed: list[tuple[str, str]] = []
    for concept in concepts:
        changes = {}
        for token in concept.tokens:
            name, number = token, 2
            while name in used or (name != token and name in every):
                name = f"{token.rstrip('>').rstrip('0123456789')}{number}" + (">" if token.endswith(">") else "")
                number += 1
            used.add(name)
            every.add(name)
            if name != token:
                changes[token] = name
        result.append(concept.renamed(changes) if changes else concept)
        renamed += changes.items()
    return result, renamed


def _parts(backbone: Backbone, concepts: Sequence[Concept], options: MergeOptions) -> list[_Part]:
    """Return a part for each subject; one that was merged before keeps the contexts it was merged with."""
    listed: list[tuple[SubjectRecord, Concept, list[str] | None]] = []
    for concept in concepts:
        before = concept.record.get("contexts") or [None] * len(concept.subjects)
        listed += [(subject, concept, old) for subject, old in zip(concept.subjects, before, strict=True)]
    unknown = set(options.without) - {name for subject, *_ in listed for name in (subject.token, subject.words)}
    if unknown:
        known = ", ".join(repr(subject.words) for subject, *_ in listed)
        raise OptionError(f"There is no subject {min(unknown)!r} to leave out. Subjects: {known}.")
    listed = [entry for entry in listed if not {entry[0].token, entry[0].words} & set(options.without)]
    if not listed:
        raise OptionError("Every subject is left out. Keep at least one.")
    width = backbone.weights("cross-attention-kv")[next(iter(listed[0][1].deltas))].shape[1]
    sizes = [len(backbone.tokenizer(subject.category).input_ids) for subject, *_ in listed]  # with token and end
    taken = sum(size * len(old) for size, (*_, old) in zip(sizes, listed, strict=True) if old)
    each = sum(size for size, (*_, old) in zip(sizes, listed, strict=True) if not old)
    room = int((CAPACITY_SHARE * width - taken) // each) if each else 0
    count = options.contexts or max(1, min(len(CONTEXTS), room))
    return [
        _Part(subject=subject, concept=concept, contexts=tuple(old or _contexts(backbone, subject)[:count]))
        for subject, concept, old in listed
    ]


def _contexts(backbone: Backbone, subject: SubjectRecord) -> list[str]:
    """Return the contexts of a subject: the first it was taught with, the usual ones, the others it was taught with.

    Of the captions it was taught with those count that name it once, name no other token, and are read to their end.
    """
    own = []
    for prompt in subject.prompts:
        around = re.split(rf"(?<!\w){re.escape(subject.words)}(?!\w)", prompt)
        fits = len(backbone.tokenizer.tokenize(prompt)) + 2 <= backbone.tokenizer.model_max_length  # with start and end
        if len(around) == 2 and fits and not re.search("[<>{}]", "".join(around)):
            own.append("{}".join(around))
    return list(dict.fromkeys([*own[:1], *CONTEXTS, *own[1:]]))


def _filled(context: str, *words: str) -> str:
    """Put words into a context, "a" becoming "an" before a vowel."""
    return re.sub(r"\ba(?= [aeiou])", "an", context.format(*words))


# --- the problem ------------------------------------------------------------------------------------------------------


class _Problem:
    """The constraints of all parts, solved for each layer."""

    def __init__(self, backbone: Backbone, parts: Sequence[_Part], gram: Float[Tensor, "width width"]) -> None:
        self.backbone = backbone
        self.parts = parts
        self.rows = [self._rows(part, part.contexts) for part in parts]
        self.form = ClosedForm(torch.cat(self.rows), gram, ridge=RIDGE)
        if self.form.rank == self.form.width:
            raise OptionError(
                f"{len(self.form.rows)} constraints fill all {self.form.width} dimensions of the text features, which "
                "leaves no room for the rest. Merge fewer subjects, or keep fewer contexts (--contexts 1)."
            )
        self.layers = sorted({name for part in parts for name in part.concept.deltas})

    def _rows(self, part: _Part, contexts: Sequence[str]) -> Float[Tensor, "rows width"]:
        """Return the features of the subject's words and of the caption's end in each context."""
        return self._words_of(part, [_filled(context, part.subject.words) for context in contexts], with_end=True)

    def _words_of(self, part: _Part, captions: Sequence[str], *, with_end: bool) -> Float[Tensor, "rows width"]:
        """Return the features of the subject's words in captions, less those that are part of another's longer words.

        `with_end` adds the end of each caption, which speaks of all that is in it.
        """
        words = [self.backbone.tokenizer(each.subject.words).input_ids[1:-1] for each in (part, *self.parts)]
        longer = [other for other in words if len(other) > len(words[0])]
        found = []
        read = [each for batch in encoded(self.backbone, captions) for each in zip(*batch, strict=True)]
        for caption, (features, ids, end) in zip(captions, read, strict=True):
            until = ids[: int(end)].tolist()
            others = {place for other in longer for place in _places(until, other)}
            places = [place for place in _places(until, words[0]) if place not in others]
            if not places:
                raise TokenError(
                    f"{part.subject.words!r} is not found in {caption!r} once that is cut to the {len(ids)} tokens "
                    "the model reads. Shorten the caption."
                )
            found.append(features[[*places, int(end)] if with_end else places])
        return torch.cat(found)

    @cached_property
    def _values(self) -> dict[str, Float[Tensor, "constraints out"]]:
        """What each constraint prescribes, by layer."""
        found = {}
        for name in self.layers:
            out = self.backbone.parameter(name).shape[0]
            each = [part.values(name, rows) for part, rows in zip(self.parts, self.rows, strict=True)]
            found[name] = torch.cat([values.expand(-1, out) for values in each])
        return found

    def solution(self) -> dict[str, LowRank]:
        """Return the change of each layer in float64, of a rank no higher than the constraints'."""
        return {name: LowRank(up=self.form.solve(v), down=self.form.down) for name, v in self._values.items()}

    # --- the report ---------------------------------------------------------------------------------------------------

    def report(
        self, deltas: Mapping[str, LowRank], captions: Sequence[str], renamed: Sequence[tuple[str, str]]
    ) -> MergeReport:
        """Measure what was kept and what moved; drift on the neutral captions that the cost left out."""
        neutral = [
            features[row, : ends[row] + 1]
            for features, _, ends in encoded(self.backbone, captions[::HELD_OUT_EVERY])
            for row in range(len(features))
        ]
        probe = torch.cat(neutral)
        scale = sum(float((probe @ self._base(name).T).square().sum()) for name in self.layers)
        moved = sum(float(_moved(change, probe).square().sum()) for change in deltas.values())
        return MergeReport(
            subjects=tuple(self._fit(index, deltas, probe, scale) for index in range(len(self.parts))),
            conflicts=tuple(self._conflicts()),
            drift=(moved / scale) ** 0.5,
            condition=self.form.condition,
            rank=self.form.rank,
            capacity=self.form.width - self.form.rank,
            neutral_captions=len(captions),
            renamed=tuple(renamed),
        )

    def _base(self, name: str) -> Float[Tensor, "out width"]:
        return self.backbone.parameter(name).detach().cpu().double()

    def _fit(self, index: int, deltas: Mapping[str, LowRank], probe: Tensor, scale: float) -> SubjectFit:
        part, rows = self.parts[index], self.rows[index]
        others = [self.parts[(index + step) % len(self.parts)] for step in range(1, len(self.parts))][:PARTNERS]
        pairs = [pair for other in others for pair in permutations((part.subject.words, other.subject.words))]
        beside = [_filled(JOINT_CONTEXT, *pair) for pair in pairs]
        joint = self._words_of(part, beside, with_end=False) if pairs else None
        alone = sum(float(part.values(name, probe).square().sum()) for name in part.concept.deltas)
        return SubjectFit(
            words=part.subject.words,
            contexts=len(part.contexts),
            constraints=len(rows),
            residual={name: _error(part, {name: deltas[name]}, rows) for name in self.layers},
            held_out_error=_error(part, deltas, self._rows(part, HELD_OUT_CONTEXTS)),
            joint_error=0.0 if joint is None else _error(part, deltas, joint),
            drift_alone=(alone / scale) ** 0.5,
        )

    def _conflicts(self) -> Iterator[Conflict]:
        """Yield the pairs of subjects with nearly the same rows but other values."""
        starts = [0]
        for rows in self.rows:
            starts.append(starts[-1] + len(rows))
        values = torch.cat([*self._values.values()], 1)
        for i, j in combinations(range(len(self.parts)), 2):
            own, others = (slice(starts[k], starts[k + 1]) for k in (i, j))
            alike = self.form.cosines[own, others]
            a, b = values[own], values[others]
            apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
            difference = apart / torch.maximum(a.norm(dim=1)[:, None], b.norm(dim=1)).clamp(min=1e-30)
            worst = int(torch.where(alike >= CONFLICT_COSINE, difference, -1.0).argmax())
            if alike.flatten()[worst] >= CONFLICT_COSINE and difference.flatten()[worst] > INFEASIBLE:
                first, second = self.parts[i].subject, self.parts[j].subject
                yield Conflict(
                    first=first.words,
                    second=second.words,
                    cosine=float(alike.flatten()[worst]),
                    difference=float(difference.flatten()[worst]),
                    advice=_advice(first, second),
                )


def _places(ids: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the places of all that belongs to an occurrence of `wanted` in `ids`."""
    starts = [at for at in range(len(ids)) if list(ids[at : at + len(wanted)]) == list(wanted)]
    return [at + offset for at in starts for offset in range(len(wanted))]


def _error(part: _Part, deltas: Mapping[str, LowRank], rows: Float[Tensor, "n width"]) -> float:
    """Return how far the merged changes are from the part's own on some features, relative to its own."""
    missed = moved = 0.0
    for name, change in deltas.items():
        own = part.values(name, rows)
        moved += float(own.square().sum())
        missed += float((_moved(change, rows) - own).square().sum())
    return (missed / moved) ** 0.5 if moved else missed**0.5


def _advice(first: SubjectRecord, second: SubjectRecord) -> str:
    if first.token and second.token:
        return (
            "Their tokens mean almost the same to the text encoder. Train one of them from another rare token "
            "(--rare-token 1), give it another category word, or train both jointly."
        )
    return "Give one of them a token or another category word, lower the strength of one, or train both jointly."
