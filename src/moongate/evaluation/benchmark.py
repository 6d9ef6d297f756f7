"""Judge a concept: prompts and seeds to pictures, pictures to measures, all in one JSON record (paper, Sec. 4).

Pictures are kept in a folder under a name that says all they depend on, so that only missing ones are drawn. It
knows nothing of training.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import square
from moongate.data.pictures import as_tensor
from moongate.errors import OptionError
from moongate.evaluation.metrics import Interval, fid, image_alignment, kid_interval, mean_interval, text_alignment
from moongate.evaluation.networks import Network
from moongate.evaluation.prompts import filled, without_tokens
from moongate.extras import versions
from moongate.files import write_atomically
from moongate.sampling import SampleOptions, check_prompt, sample
from moongate.training.method import METHODS

__all__ = ["EvaluationOptions", "Reference", "Targets", "evaluate"]

SEEN_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How many pictures are drawn, how, and how sure the intervals are."""

    count: int = 5
    """Pictures for each prompt."""
    seed: int = 0
    """Seed of a prompt's first picture; the others follow."""
    sampling: SampleOptions = field(default_factory=SampleOptions)
    resamples: int = 1000
    level: float = 0.95

    def __post_init__(self) -> None:
        for name in ("count", "resamples"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.level < 1:
            raise OptionError(f"The level is {self.level}; it must be between 0 and 1, such as 0.95.")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Pictures of a thing that drawn ones should resemble: held out from training, or those trained on."""

    pictures: Sequence[np.ndarray]
    kind: Literal["held out", "training"] = "held out"
    subject: int = 0
    """Which thing of the concept they show."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real pictures of the category with captions: what is drawn from those captions should be distributed alike."""

    pictures: Sequence[np.ndarray]
    captions: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Pictures in -1..1, and the number of the prompt of each."""

    images: Float[Tensor, "n 3 height width"]
    prompts: Tensor

    def features(self, network: Network) -> Float[Tensor, "n width"]:
        return _features(network, self.images)


def evaluate(
    backbone: Backbone,
    concept: Concept | None,
    prompts: Sequence[str],
    networks: Sequence[Network],
    *,
    folder: Path,
    comparisons: Sequence[Targets | Reference] = (),
    options: EvaluationOptions | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw, measure, and return one record of every setting and figure, as plain JSON.

    `prompts` have a place for the thing, `{}`, or name tokens themselves; None for the concept judges the base. For
    each network there is the alignment with the text (V* removed) where it reads text, with each of the `Targets`,
    and KID and FID to each `Reference`, from whose captions further pictures are drawn. Intervals are for other
    prompts of the same kind. `on_picture` is told how many of how many pictures there are.
    """
    options = options or EvaluationOptions()
    targets = [given for given in comparisons if isinstance(given, Targets)]
    references = [given for given in comparisons if isinstance(given, Reference)]
    said, captions = _wordings(concept, prompts)
    _check(concept, said, networks, comparisons)
    asked = [(prompt, options.seed + index) for prompt in said for index in range(options.count)]
    asked += [(text, options.seed + index) for given in references for index, text in enumerate(given.captions)]
    pictures = _pictures(backbone, concept, asked, options.sampling, folder, on_picture)
    count = len(said) * options.count
    drawn = _Drawn(
        images=as_tensor(np.stack(pictures[:count])), prompts=torch.arange(len(said)).repeat_interleave(options.count)
    )
    measured: list[dict[str, Any]] = []
    for network in networks:
        measured += _alignments(network, drawn, captions, targets, options, backbone.resolution_px)
        first = count
        for reference in references:
            last = first + len(reference.captions)
            measured += _distances(network, pictures[first:last], reference, options, backbone.resolution_px)
            first = last
    settings = _settings(backbone, concept, options) | {
        "features": [network.name for network in networks],
        "prompts": [{"given": g, "drawn": s, "read": c} for g, s, c in zip(prompts, said, captions, strict=True)],
        "targets": [_facts(given, concept) for given in targets],
        "references": [{"pictures": len(r.captions), "content": _digest(r.pictures)} for r in references],
    }
    return {**settings, "measures": measured}


def _wordings(concept: Concept | None, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the prompts as they are drawn, with tokens, and as networks read them, with categories alone."""
    if not prompts:
        raise OptionError("There is no prompt. Name a set or a file of prompts.")
    subjects = concept.subjects if concept else ()
    method = METHODS.get(concept.method) if concept else None
    words = [
        method.worded(subject.words, token=subject.token, category=subject.category) if method else subject.words
        for subject in subjects
    ]
    said = [filled(prompt, words) for prompt in prompts]
    categories = {subject.token: subject.category for subject in subjects if subject.token}
    return said, [without_tokens(prompt, categories) for prompt in said]


def _check(
    concept: Concept | None,
    said: Sequence[str],
    networks: Sequence[Network],
    comparisons: Sequence[Targets | Reference],
) -> None:
    if len(set(said)) < len(said):
        twice = next(prompt for prompt in said if said.count(prompt) > 1)
        raise OptionError(f"The prompt {twice!r} is given twice. Remove one.")
    things = len(concept.subjects) if concept else 0
    for given in comparisons:
        if isinstance(given, Targets) and given.subject >= things:
            raise OptionError(f"Pictures of thing {given.subject + 1} were given, but the concept has {things}.")
        if isinstance(given, Reference) and len(given.pictures) < 2:
            raise OptionError("KID and FID need two real pictures or more, and many to mean something. Give more.")
    if not comparisons and not any(network.caption_features for network in networks):
        raise OptionError(
            f"Nothing can be measured: {', '.join(network.name for network in networks)} reads no text and there are "
            "no pictures to compare with. Give held-out pictures (--pictures), or features that read text."
        )


def _pictures(
    backbone: Backbone,
    concept: Concept | None,
    asked: Sequence[tuple[str, int]],
    options: SampleOptions,
    folder: Path,
    on_picture: Callable[[int, int], None] | None,
) -> list[np.ndarray]:
    """Draw what is missing in `folder`, and return all that is asked for, uint8 [height, width, 3]."""
    recipe = {key: value for key, value in dataclasses.asdict(options).items() if key != "batch"}
    recipe |= {"base": backbone.fingerprint.to_json(), "concept": concept.hash if concept else None}
    recipe |= {"dtype": str(backbone.dtype)}
    paths = [folder / _file_name(prompt, seed, recipe) for prompt, seed in asked]
    missing = {path: pair for path, pair in zip(paths, asked, strict=True) if not path.exists()}
    if missing:
        with concept.applied(backbone) if concept else contextlib.nullcontext():
            for prompt, _ in missing.values():
                check_prompt(backbone, prompt)
            pairs = list(missing.values())
            drawn = sample(backbone, [p for p, _ in pairs], seeds=[s for _, s in pairs], options=options)
            for index, (path, picture) in enumerate(zip(missing, drawn, strict=True)):
                png = io.BytesIO()
                Image.fromarray(picture.image).save(png, format="PNG")
                write_atomically(path, png.getvalue())
                if on_picture:
                    on_picture(len(set(paths)) - len(missing) + index + 1, len(set(paths)))
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def _file_name(prompt: str, seed: int, recipe: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([prompt, seed, recipe], sort_keys=True).encode()).hexdigest()[:10]
    return f"{re.sub(r'[^a-z0-9]+', '-', prompt.lower()).strip('-')[:60]}-{seed}-{digest}.png"


def _alignments(
    network: Network,
    drawn: _Drawn,
    captions: Sequence[str],
    targets: Sequence[Targets],
    options: EvaluationOptions,
    side_px: int,
) -> Iterator[dict[str, Any]]:
    """Yield the alignment with the text and with each set of target pictures."""
    features = drawn.features(network)

    def figure(measure: str, values: Tensor, **more: Any) -> dict[str, Any]:
        found = mean_interval(values, drawn.prompts, generator=_generator(options), **_certainty(options))
        means = [float(values[drawn.prompts == prompt].mean()) for prompt in range(len(captions))]
        return _figure(measure, network, found, **more) | {"by_prompt": means}

    if network.caption_features:
        read = network.caption_features(captions).cpu()[drawn.prompts]
        yield figure("text alignment", text_alignment(features, read))
    for given in targets:
        wanted = _features(network, torch.stack([square(picture, side_px) for picture in given.pictures]))
        values = image_alignment(features, wanted)
        yield figure("image alignment", values, pictures=given.kind, thing=given.subject)


def _distances(
    network: Network,
    pictures: Sequence[np.ndarray],
    reference: Reference,
    options: EvaluationOptions,
    side_px: int,
) -> Iterator[dict[str, Any]]:
    """Yield KID and FID between pictures drawn from the captions of real ones, and these."""
    drawn = _features(network, as_tensor(np.stack(pictures)))
    real = _features(network, torch.stack([square(picture, side_px) for picture in reference.pictures]))
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(reference.captions))}
    prompts = torch.tensor([numbers[caption] for caption in reference.captions])
    found = kid_interval(drawn, real, prompts, generator=_generator(options), **_certainty(options))
    yield _figure("KID", network, found)
    yield {"measure": "FID", "features": network.name, "value": fid(drawn, real)}


def _figure(measure: str, network: Network, found: Interval, **more: Any) -> dict[str, Any]:
    return {"measure": measure, "features": network.name, **more, **dataclasses.asdict(found)}


def _settings(backbone: Backbone, concept: Concept | None, options: EvaluationOptions) -> dict[str, Any]:
    subjects = concept.subjects if concept else ()
    return {
        "versions": versions(),
        "base": {"name": backbone.name, "fingerprint": backbone.fingerprint.short, "dtype": str(backbone.dtype)},
        "concept": concept
        and {
            "hash": concept.hash,
            "method": concept.method,
            "things": [subject.words for subject in subjects],
        },
        "count": options.count,
        "seeds": list(range(options.seed, options.seed + options.count)),
        "sampling": dataclasses.asdict(options.sampling),
        "intervals": {"level": options.level, "resamples": options.resamples, "over": "prompts"},
    }


def _facts(given: Targets, concept: Concept | None) -> dict[str, Any]:
    words = concept.subjects[given.subject].words if concept else ""
    return {
        "thing": words,
        "kind": given.kind,
        "pictures": len(given.pictures),
        "content": _digest(given.pictures),
    }


def _features(network: Network, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n width"]:
    return torch.cat([network.image_features(part).cpu() for part in images.split(SEEN_AT_ONCE)])


def _digest(pictures: Sequence[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:12]


def _generator(options: EvaluationOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def _certainty(options: EvaluationOptions) -> dict[str, Any]:
    return {"resamples": options.resamples, "level": options.level}
