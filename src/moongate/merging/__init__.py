"""Merge finished concepts into one without training, and take subjects out again (paper, Sec. 3.2, Eq. 4-5).

`features` reads the features of words, `constraints` says which of them keep which values, `edits` which words are
erased or protected, `neutral` which features should not move, `closed_form` solves, `report` measures, and `page`
writes the report. A merge reads text only; it never touches pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept, LowRank
from moongate.errors import OptionError
from moongate.extras import versions
from moongate.files import digest
from moongate.merging.closed_form import Factorized, factorize
from moongate.merging.constraints import (
    CONTEXTS,
    Constraints,
    KeptSubject,
    check_mergeable,
    kept_subjects,
    with_unique_tokens,
)
from moongate.merging.edits import Edit, agreeing, check_words, edits_of, rows_of
from moongate.merging.features import feature_width, leading
from moongate.merging.neutral import (
    empty_prompt_features,
    neutral_captions,
    regularization_gram,
    weighted_grams,
)
from moongate.merging.report import MergeReport, measure
from moongate.provenance import names_of_edits

__all__ = ["MergeOptions", "Merged", "merge"]

RIDGE = 1e-6
"""Cost of all change relative to that of neutral features; text features are float32 and no more exact than that."""
FIXED_SHARE = 0.125
"""Largest share of the features' directions that the empty prompt may take: 96 for the 77 tokens of SD 1.5."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What a merge keeps and what it should not change."""

    captions: tuple[str, ...] = ()
    """Neutral captions in addition to the thousand that come with the package."""
    contexts: int | None = 1
    """Number of contexts in which each subject keeps its values exactly, from 1 to 8; as many as fit when None."""
    elsewhere: float = 300.0
    """Weight of each subject's and edit's values in many further contexts, relative to one neutral caption; 0 leaves
    them out."""
    without: tuple[str, ...] = ()
    """Subjects to leave out, by token or by words. This takes a subject out of an earlier merge."""
    erase: tuple[str, ...] = ()
    """Words to erase, each with those that the model draws instead: "snowman=>object"."""
    protect: tuple[str, ...] = ()
    """Words whose keys and values must stay the base's."""
    only: Literal["both", "keys", "values"] = "both"
    """Which matrices the merge changes."""
    unconditional: Literal["fixed", "free"] = "fixed"
    """Whether the empty prompt, which guidance subtracts, keeps the base's keys and values exactly."""
    neutral: Literal["alike", "in-danger"] = "alike"
    """Whether all neutral captions count alike, or in each layer by how far the concepts' own changes move them."""
    cache: Path | None = None
    """Folder in which the Gram matrix of the neutral captions is kept for each base; not kept when None."""

    def __post_init__(self) -> None:
        if self.contexts is not None and not 1 <= self.contexts <= len(CONTEXTS):
            raise OptionError(f"contexts is {self.contexts}; it must be from 1 to {len(CONTEXTS)}.")
        if not 0 <= self.elsewhere < float("inf"):
            raise OptionError(f"elsewhere is {self.elsewhere}; it must be a weight of at least 0, such as 300.")
        edits_of(self.erase, self.protect)


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """The merged concept and the report on it."""

    concept: Concept
    """Its changes are low-rank factors, of the rank of the constraints."""
    report: MergeReport


def merge(backbone: Backbone, concepts: Sequence[Concept] = (), *, options: MergeOptions | None = None) -> Merged:
    """Merge concepts into one in which each subject has the values that its own concept gives it (Eq. 4-5).

    One concept alone is cleaned: it keeps what it says of its own words, and the rest returns toward the base. The
    order of the concepts does not change the weights. Without a concept, words of the base are erased or protected.

    A merged concept stores what it kept. Merging it with another gives the same tensors as merging all at once, bit for
    bit, as long as the options are the same and `neutral` is "alike".

    Args:
        backbone: The base model, with no concept applied.
        concepts: Any number of concepts, with or without tokens; they may have been trained jointly, compressed or
            merged before. A token that an earlier concept uses too is renamed.
        options: What is kept and what should not change.

    Returns:
        The merged concept and a report on what was kept and what moved.

    Raises:
        BaseMismatchError: A concept is for another base.
        OptionError: There is nothing to do; a concept changes more than the keys and values of text, or nothing; a
            subject to leave out does not exist; edits contradict subjects; or the constraints fill all dimensions.
        TokenError: Words do not fit into the captions that are to be kept.
    """
    options = options or MergeOptions()
    edits = _checked_edits(backbone, concepts, options)
    # What is kept, and what should not change.
    width = feature_width(backbone)
    fixed = empty_prompt_features(backbone)
    fixed = leading(fixed, int(FIXED_SHARE * width)) if options.unconditional == "fixed" else fixed[:0]
    concepts, renamed = with_unique_tokens(concepts)
    subjects, edited, contexts = kept_subjects(
        backbone,
        concepts,
        contexts=options.contexts,
        without=options.without,
        edits=[edit.words for edit in edits],
        room=width - len(fixed),
    )
    tokens = {token: row for concept in concepts for token, row in concept.tokens.items()}
    captions = neutral_captions(options.captions)
    layers = _layers(backbone, subjects, options.only, all_of_them=bool(edits or edited))
    # Solve and report.
    with backbone.tokens(tokens):
        edited += [rows_of(backbone, edit, layers, contexts=contexts, elsewhere=options.elsewhere) for edit in edits]
        constraints = Constraints.of(backbone, subjects, edited, layers=layers, elsewhere=options.elsewhere)
        factorized = _factorized(backbone, constraints, captions, fixed, options)
        deltas = {
            layer: LowRank(up=factorized[layer].solve(values), down=factorized[layer].down)
            for layer, values in constraints.values.items()
        }
        report = measure(
            backbone, constraints, factorized, deltas, captions=captions, cache=options.cache, renamed=renamed
        )
    concept = _concept(backbone, concepts, constraints, deltas, options)
    return Merged(concept=concept, report=report)


def _checked_edits(backbone: Backbone, concepts: Sequence[Concept], options: MergeOptions) -> tuple[Edit, ...]:
    """Check that everything can be merged, and return the edits of the base that no concept holds already."""
    edits, without = edits_of(options.erase, options.protect), options.without
    if not (concepts or edits):
        raise OptionError("There is no concept to merge. Give at least one, or words to erase or protect.")
    for concept in concepts:
        check_mergeable(backbone, concept)
    subjects = [subject for concept in concepts for subject in concept.subjects]
    kept = [subject.words for subject in subjects if not {subject.token, subject.words} & {*without}]
    names = [name for concept in concepts for name in names_of_edits(concept.record, len(concept.subjects))]
    earlier = [Edit.named(name) for name in names if name not in without]
    new = agreeing([*earlier, *edits], kept)[len(agreeing(earlier)) :]
    check_words(backbone, new)
    return new


def _layers(backbone: Backbone, subjects: Sequence[KeptSubject], only: str, *, all_of_them: bool) -> list[str]:
    """Return the names of the matrices that a merge changes."""
    everything = set(backbone.weights("cross-attention-kv"))
    changed = everything if all_of_them else {layer for kept in subjects for layer in kept.concept.deltas}
    ending = {"both": ".weight", "keys": ".to_k.weight", "values": ".to_v.weight"}[only]
    layers = sorted(layer for layer in changed if layer.endswith(ending))
    if not layers:
        raise OptionError(f"The concepts change no {only}, so nothing would be left of them. Merge keys and values.")
    return layers


def _factorized(
    backbone: Backbone,
    constraints: Constraints,
    captions: Sequence[str],
    fixed: Float[Tensor, "fixed width"],
    options: MergeOptions,
) -> Mapping[str, Factorized]:
    """Factorize the constraints once for all layers, or for each layer with its own cost."""
    rows, weights = constraints.rows, constraints.weights
    if options.neutral == "alike":
        gram = regularization_gram(backbone, captions, cache=options.cache)
        found = dict.fromkeys(constraints.values, factorize(rows, gram, ridge=RIDGE, fixed=fixed, weights=weights))
    else:
        own = list({id(kept.concept): kept.concept for kept in constraints.subjects}.values())
        if not own:
            raise OptionError("Without a concept no neutral caption is in danger. Leave the option --neutral out.")
        changes = {
            layer: [concept.deltas[layer].full() for concept in own if layer in concept.deltas]
            for layer in constraints.values
        }
        grams = weighted_grams(backbone, captions, changes)
        found = {
            layer: factorize(rows, gram, ridge=RIDGE, fixed=fixed, weights=weights) for layer, gram in grams.items()
        }
    first = next(iter(found.values()))
    if not first.capacity:
        raise OptionError(
            f"{int(first.exact.sum())} constraints fill all {first.rank} dimensions of the text features that are left "
            "beside the empty prompt, with no room for the rest. Merge fewer subjects, or keep fewer contexts "
            "(--contexts 1)."
        )
    return found


def _concept(
    backbone: Backbone,
    concepts: Sequence[Concept],
    constraints: Constraints,
    deltas: Mapping[str, LowRank],
    options: MergeOptions,
) -> Concept:
    """Return the merged concept, with what a later merge needs."""
    subjects = constraints.subjects
    names = {token for kept in subjects for token in kept.record.tokens}
    kept, blocks = constraints.stored
    known = [concept for concept in concepts if concept.fingerprint.norms]
    return Concept(
        deltas={layer: LowRank(up=change.up.float(), down=change.down.float()) for layer, change in deltas.items()},
        tokens={token: row for concept in concepts for token, row in concept.tokens.items() if token in names},
        token_widths=backbone.token_widths,
        subjects=tuple(kept.record for kept in subjects),
        base=known[0].base if known else backbone.name,
        fingerprint=known[0].fingerprint if known else backbone.fingerprint,
        method="merge",
        record=_record(subjects, blocks, options),
        kept=kept,
    )


def _record(
    subjects: Sequence[KeptSubject], blocks: Sequence[Mapping[str, Any]], options: MergeOptions
) -> dict[str, Any]:
    """Return what a later merge and a reader must know: contexts, rows, the user's own captions, options, versions."""
    record: dict[str, Any] = {"contexts": [list(kept.contexts) for kept in subjects], "rows": list(blocks)}
    if options.captions:
        content = digest("\n".join(options.captions), length=64)
        record["further_captions"] = {"count": len(options.captions), "sha256": content}
    defaults = MergeOptions()
    for name in ("elsewhere", "only", "unconditional", "neutral"):
        if getattr(options, name) != getattr(defaults, name):
            record[name] = getattr(options, name)
    return record | {"versions": versions()}
