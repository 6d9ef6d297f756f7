"""Evaluate a concept: prompts and seeds to pictures, pictures to measures, all in one record (paper, Sec. 4).

Pictures are kept in a folder under a name that identifies all they depend on, so that only missing ones are drawn. The
module knows nothing of training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import square, without_tokens
from moongate.data.pictures import as_tensor, read_picture
from moongate.errors import OptionError
from moongate.evaluation.metrics import check_level, fid, image_alignment, kid_interval, mean_interval, text_alignment
from moongate.evaluation.networks import Network, load_network
from moongate.evaluation.prompts import default_prompts, filled, subject_words
from moongate.evaluation.record import (
    BaseFacts,
    ConceptFacts,
    Evaluation,
    Measure,
    ReferenceFacts,
    TargetFacts,
    Wording,
)
from moongate.extras import versions
from moongate.files import digest
from moongate.limits import check_count
from moongate.sampling import SampleOptions, draw_missing

__all__ = ["EvaluationOptions", "Reference", "Targets", "default_features", "evaluate"]

DEFAULT_FEATURES = ("clip", "dino")
"""Networks for a model whose `moongate.json` names none."""
PICTURES_AT_ONCE = 64
"""Pictures that a network gets in one batch."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How many pictures are drawn, how they are drawn, and how intervals are computed."""

    count: int = 5
    """Pictures for each prompt."""
    seed: int = 0
    """Seed of the first picture of a prompt; the next pictures have the next seeds."""
    sampling: SampleOptions = field(default_factory=SampleOptions)
    resamples: int = 1000
    """Bootstrap resamples of the prompts for an interval."""
    level: float = 0.95
    """Confidence level of the intervals, between 0 and 1."""

    def __post_init__(self) -> None:
        for name in ("count", "resamples"):
            check_count(name, getattr(self, name))
        check_level(self.level)


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """Pictures of a subject that drawn pictures should resemble."""

    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    kind: Literal["held out", "training"] = "held out"
    """Whether training saw them."""
    subject: int = 0
    """Index of the subject in the concept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real pictures of the category with captions; pictures drawn from the captions should have their distribution."""

    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    captions: Sequence[str]


def evaluate(
    backbone: Backbone,
    concept: Concept | None,
    prompts: Sequence[str] | None = None,
    networks: Sequence[Network] | None = None,
    *,
    folder: Path,
    comparisons: Sequence[Targets | Reference] = (),
    options: EvaluationOptions | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Draw pictures of a concept, measure them, and return one record of every setting and value.

    Each network gives the alignment with the text (V* removed) if it reads text, that with each of the `Targets`, and
    KID and FID to each `Reference`, whose captions are drawn too. Intervals hold for similar prompts; one gives none.

    Args:
        backbone: The base model, with no concept applied.
        concept: The concept; None evaluates the base model.
        prompts: Prompts with a place for the subject, `{}`, or with tokens; by default the set that suits the model.
        networks: The feature networks; by default those that suit the model.
        folder: Where pictures are kept; a picture that is there already is not drawn again.
        comparisons: Target and reference pictures.
        options: How many pictures, how they are drawn, how intervals are computed.
        on_picture: Called after each drawn picture with the number of pictures that exist and the number wanted.

    Raises:
        OptionError: There is nothing to measure, or the arguments do not fit each other. Raised before any drawing.
        TokenError: A prompt has a `<token>` that the concept does not have. Raised before any drawing.
    """
    options = options or EvaluationOptions()
    if prompts is None:
        prompts = default_prompts(backbone, len(concept.subjects) if concept else 0)
    if networks is None:
        networks = [load_network(name, device=str(backbone.device)) for name in default_features(backbone)]
    wordings = _wordings(concept, prompts)
    _check(concept, wordings, networks, comparisons)
    targets = [part for part in comparisons if isinstance(part, Targets)]
    references = [part for part in comparisons if isinstance(part, Reference)]
    sets = [[(wording.drawn, options.seed + index) for wording in wordings for index in range(options.count)]]
    sets += [[(text, options.seed + index) for index, text in enumerate(part.captions)] for part in references]
    texts, seeds = zip(*(pair for pairs in sets for pair in pairs), strict=True)
    paths = iter(
        draw_missing(
            backbone,
            texts,
            seeds=seeds,
            folder=folder,
            concept=concept,
            options=options.sampling,
            on_picture=on_picture,
        )
    )
    drawn, *from_captions = ([read_picture(next(paths)) for _ in pairs] for pairs in sets)
    measures: list[Measure] = []
    for network in networks:
        measures += _alignments(network, drawn, wordings, targets, options, backbone.resolution_px)
        for pictures, reference in zip(from_captions, references, strict=True):
            measures += _distances(network, pictures, reference, options, backbone.resolution_px)
    return _record(backbone, concept, wordings, networks, comparisons, options, measures)


def default_features(backbone: Backbone) -> Sequence[str]:
    """Return the names of the networks that suit a model: those of its `moongate.json`, or else clip and dino."""
    return backbone.settings.features or DEFAULT_FEATURES


def _wordings(concept: Concept | None, prompts: Sequence[str]) -> list[Wording]:
    """Return the prompts as they are drawn, with tokens, and as networks read them, with categories only."""
    if not prompts:
        raise OptionError("There is no prompt. Name a set or a file of prompts.")
    subjects = concept.subjects if concept else ()
    words = subject_words(concept) if concept else []
    drawn = [filled(prompt, words) for prompt in prompts]
    drawn = [concept.spelled(text) for text in drawn] if concept else drawn
    return [
        Wording(given=given, drawn=text, read=without_tokens(text, subjects))
        for given, text in zip(prompts, drawn, strict=True)
    ]


def _check(
    concept: Concept | None,
    wordings: Sequence[Wording],
    networks: Sequence[Network],
    comparisons: Sequence[Targets | Reference],
) -> None:
    """Refuse what cannot be measured, before anything is drawn."""
    drawn = [wording.drawn for wording in wordings]
    if len(set(drawn)) < len(drawn):
        twice = next(prompt for prompt in drawn if drawn.count(prompt) > 1)
        raise OptionError(f"The prompt {twice!r} is given twice. Remove one.")
    subjects = len(concept.subjects) if concept else 0
    for comparison in comparisons:
        if isinstance(comparison, Targets) and not comparison.pictures:
            raise OptionError("There are no target pictures to compare with. Give some, or leave the targets out.")
        if isinstance(comparison, Targets) and not 0 <= comparison.subject < subjects:
            raise OptionError(
                f"Pictures of subject {comparison.subject + 1} were given, but the concept has {subjects}. Leave them "
                "out."
            )
        if isinstance(comparison, Reference) and len(comparison.pictures) < 2:
            raise OptionError("KID and FID need at least two real pictures, and many to be meaningful. Give more.")
        if isinstance(comparison, Reference) and len(comparison.pictures) != len(comparison.captions):
            raise OptionError(
                f"{len(comparison.pictures)} real pictures have {len(comparison.captions)} captions. Give each one."
            )
    if not networks:
        raise OptionError("There is no feature network to measure with. Name one, or leave them to the model.")
    if not comparisons and not any(network.caption_features for network in networks):
        raise OptionError(
            f"Nothing can be measured: {', '.join(network.name for network in networks)} reads no text and there are "
            "no pictures to compare with. Give held-out pictures (--pictures), or features that read text."
        )


def _alignments(
    network: Network,
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
    wordings: Sequence[Wording],
    targets: Sequence[Targets],
    options: EvaluationOptions,
    side_px: int,
) -> Iterator[Measure]:
    """Yield the alignment with the text and with each set of target pictures."""
    features = _features(network, as_tensor(np.stack(pictures)))
    prompts = torch.arange(len(wordings)).repeat_interleave(options.count)

    def measure(name: str, values: Float[Tensor, " n"], *, part: Targets | None = None) -> Measure:
        interval = mean_interval(
            values, prompts, generator=_generator(options), resamples=options.resamples, level=options.level
        )
        has_interval = len(wordings) > 1  # one prompt says nothing of others
        return Measure(
            measure=name,
            features=network.name,
            value=interval.value,
            low=interval.low if has_interval else None,
            high=interval.high if has_interval else None,
            by_prompt=tuple(float(values[prompts == prompt].mean()) for prompt in range(len(wordings))),
            pictures=part.kind if part else None,
            subject=part.subject if part else None,
        )

    if network.caption_features:
        read = network.caption_features([wording.read for wording in wordings]).cpu()[prompts]
        yield measure("text alignment", text_alignment(features, read))
    for part in targets:
        wanted = _features(network, _squares(part.pictures, side_px))
        yield measure("image alignment", image_alignment(features, wanted), part=part)


def _distances(
    network: Network,
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
    reference: Reference,
    options: EvaluationOptions,
    side_px: int,
) -> Iterator[Measure]:
    """Yield KID and FID between pictures drawn from the captions of real ones and these."""
    drawn = _features(network, as_tensor(np.stack(pictures)))
    real = _features(network, _squares(reference.pictures, side_px))
    interval = kid_interval(
        drawn,
        real,
        _indices(reference.captions),
        generator=_generator(options),
        resamples=options.resamples,
        level=options.level,
    )
    has_interval = len(set(reference.captions)) > 1
    yield Measure(
        measure="KID",
        features=network.name,
        value=interval.value,
        low=interval.low if has_interval else None,
        high=interval.high if has_interval else None,
    )
    yield Measure(measure="FID", features=network.name, value=fid(drawn, real))


def _indices(captions: Sequence[str]) -> Int[Tensor, " n"]:
    """Return the same index for equal captions."""
    index = {caption: position for position, caption in enumerate(dict.fromkeys(captions))}
    return torch.tensor([index[caption] for caption in captions])


def _squares(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], side_px: int) -> Float[Tensor, "n 3 {side_px} {side_px}"]:
    """Return pictures in -1..1 in the size of the backbone."""
    return torch.stack([square(picture, side_px) for picture in pictures])


def _features(network: Network, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
    return torch.cat([network.image_features(part).cpu() for part in torch.split(images, PICTURES_AT_ONCE)])


def _record(
    backbone: Backbone,
    concept: Concept | None,
    wordings: Sequence[Wording],
    networks: Sequence[Network],
    comparisons: Sequence[Targets | Reference],
    options: EvaluationOptions,
    measures: Sequence[Measure],
) -> Evaluation:
    words = [subject.words for subject in concept.subjects] if concept else []
    return Evaluation(
        versions=versions(),
        base=BaseFacts(name=backbone.name, fingerprint=backbone.fingerprint.short, dtype=str(backbone.dtype)),
        concept=ConceptFacts(hash=concept.hash, method=concept.method, subjects=tuple(words)) if concept else None,
        count=options.count,
        seeds=tuple(range(options.seed, options.seed + options.count)),
        sampling=options.sampling.for_model(backbone),
        level=options.level,
        resamples=options.resamples,
        features=tuple(network.name for network in networks),
        prompts=tuple(wordings),
        targets=tuple(
            TargetFacts(words=words[t.subject], kind=t.kind, pictures=len(t.pictures), content=_digest(t.pictures))
            for t in comparisons
            if isinstance(t, Targets)
        ),
        references=tuple(
            ReferenceFacts(pictures=len(reference.pictures), content=_digest(reference.pictures))
            for reference in comparisons
            if isinstance(reference, Reference)
        ),
        measures=tuple(measures),
    )


def _digest(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> str:
    return digest(*(picture.tobytes() for picture in pictures))


def _generator(options: EvaluationOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)
