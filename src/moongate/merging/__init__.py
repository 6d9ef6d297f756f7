"""Merge finished concepts into one without training, and take subjects out again (paper, Sec. 3.3, Eq. 4-5).

`constraints` says which features keep which values, `neutral` which features should not move, `closed_form` solves,
`report` measures, and `page` writes the report. A merge reads text only; it never touches pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from moongate.merging.neutral import neutral_captions, regularization_gram
from moongate.merging.report import MergeReport, measure

__all__ = ["MergeOptions", "Merged", "merge"]

RIDGE = 1e-6
"""Cost of all change relative to that of neutral features; text features are float32 and no more exact than that."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What a merge keeps and what it should not change."""

    captions: tuple[str, ...] = ()
    """Neutral captions in addition to the thousand that come with the package."""
    contexts: int | None = None
    """Number of contexts in which each subject keeps its values, from 1 to 8; as many as fit when None."""
    without: tuple[str, ...] = ()
    """Subjects to leave out, by token or by words. This takes a subject out of an earlier merge."""
    cache: Path | None = None
    """Folder in which the Gram matrix of the neutral captions is kept for each base; not kept when None."""

    def __post_init__(self) -> None:
        if self.contexts is not None and not 1 <= self.contexts <= len(CONTEXTS):
            raise OptionError(f"contexts is {self.contexts}; it must be from 1 to {len(CONTEXTS)}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """The merged concept and the report on it."""

    concept: Concept
    """Its changes are low-rank factors, of the rank of the constraints."""
    report: MergeReport


def merge(backbone: Backbone, concepts: Sequence[Concept], *, options: MergeOptions | None = None) -> Merged:
    """Merge concepts into one in which each subject has the values that its own concept gives it (Eq. 4-5).

    One concept alone is cleaned: it keeps what it says of its own words, and the rest returns toward the base. The
    order of the concepts does not change the weights.

    Args:
        backbone: The base model, with no concept applied.
        concepts: Any number of concepts, with or without tokens; they may have been trained jointly, compressed or
            merged before. A token that an earlier concept uses too is renamed.
        options: What is kept and what should not change.

    Returns:
        The merged concept and a report on what was kept and what moved.

    Raises:
        BaseMismatchError: A concept is for another base.
        OptionError: A concept changes more than the keys and values of text, or nothing; a subject to leave out does
            not exist; or the constraints fill all dimensions of the text features.
        TokenError: A subject's words do not fit into the captions that are to be kept.
    """
    options = options or MergeOptions()
    # Check.
    if not concepts:
        raise OptionError("There is no concept to merge. Give at least one.")
    for concept in concepts:
        check_mergeable(backbone, concept)
    # What is kept, and what should not change.
    concepts, renamed = with_unique_tokens(concepts)
    subjects = kept_subjects(backbone, concepts, contexts=options.contexts, without=options.without)
    tokens = {token: row for concept in concepts for token, row in concept.tokens.items()}
    captions = neutral_captions(options.captions)
    gram = regularization_gram(backbone, captions, cache=options.cache)
    # Solve and report.
    with backbone.tokens(tokens):
        constraints = Constraints.of(backbone, subjects)
        factorized = _factorized(constraints, gram)
        deltas = {
            layer: LowRank(up=factorized.solve(values), down=factorized.down)
            for layer, values in constraints.values.items()
        }
        report = measure(backbone, constraints, factorized, deltas, captions=captions, renamed=renamed)
    names = {token for kept in subjects for token in kept.record.tokens}
    concept = Concept(
        deltas={layer: LowRank(up=change.up.float(), down=change.down.float()) for layer, change in deltas.items()},
        tokens={token: row for token, row in tokens.items() if token in names},
        token_widths=backbone.token_widths,
        subjects=tuple(kept.record for kept in subjects),
        base=concepts[0].base,
        fingerprint=concepts[0].fingerprint,
        method="merge",
        record=_record(subjects, options),
    )
    return Merged(concept=concept, report=report)


def _factorized(constraints: Constraints, gram: Float[Tensor, "width width"]) -> Factorized:
    factorized = factorize(constraints.rows, gram, ridge=RIDGE)
    if factorized.rank == factorized.width:
        raise OptionError(
            f"{len(constraints.rows)} constraints fill all {factorized.width} dimensions of the text features, which "
            "leaves no room for the rest. Merge fewer subjects, or keep fewer contexts (--contexts 1)."
        )
    return factorized


def _record(subjects: Sequence[KeptSubject], options: MergeOptions) -> dict[str, Any]:
    """Return what a later merge and a reader must know: the contexts, the user's own captions, versions."""
    record: dict[str, Any] = {"contexts": [list(kept.contexts) for kept in subjects]}
    if options.captions:
        content = digest("\n".join(options.captions), length=64)
        record["further_captions"] = {"count": len(options.captions), "sha256": content}
    return record | {"versions": versions()}
