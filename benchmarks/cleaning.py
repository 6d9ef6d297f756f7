"""Measure what cleaning a concept keeps and what it restores, on one of pocket's examples.

    python benchmarks/cleaning.py [--example teddyBear] [--concept FILE] [--steps N] [--count N] [--json]

A concept is trained on the example (or read from a file) and cleaned, that is, merged alone. The same prompts and seeds
are drawn before and after. Image alignment is the mean cosine between EfficientNet-Lite0 features of the drawn pictures
and of the example's evaluation pictures, which were not trained on (the paper's measure, with another network). Drift
is the change of keys and values on held-out neutral captions. For comparison: the alignment of pictures that pocket
draws for the category words alone (a lower bound), and of the training pictures (an upper bound). Needs the extra
`evaluation`.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from moongate import Backbone, Concept, Regularization, Subject, TrainOptions, merge, pocket, sample, train
from moongate.data import photo_of
from moongate.data.pictures import as_tensor
from moongate.demo.single import PLACES, as_trained
from moongate.evaluation.networks.lite0 import lite0_features
from moongate.sampling import SampleOptions

Features = Callable[[list[np.ndarray]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how to print it."""

    example: str = "teddyBear"
    """Which of pocket's examples."""
    concept: Path | None = None
    """A concept of that example; one is trained when None."""
    steps: int | None = None
    """Training steps; the method's own when None."""
    count: int = 16
    """Pictures in each of the places that the demo draws in."""
    sampling_steps: int = 50
    json: bool = False
    """Print one line of JSON."""


def measure(options: Options) -> dict[str, float]:
    """Train or read, clean, draw and measure."""
    example = pocket.example(options.example)
    backbone = Backbone.load("pocket")
    subject = Subject.load(example.training, category=example.category, token=f"<{example.name.lower()}>")
    concept = Concept.load(options.concept) if options.concept else taught(backbone, subject, options.steps)
    evaluation = Subject.load(example.evaluation, category=example.category)
    features = unit_features()
    targets = features(as_trained(evaluation, backbone))

    def alignment(pictures: list[np.ndarray]) -> float:
        return round(float((features(pictures) @ targets.T).mean()), 4)

    cleaned = merge(backbone, [concept])
    words, sampling = concept.subjects[0].words, SampleOptions(steps=options.sampling_steps)
    return {
        "alignment_before": alignment(drawn(backbone, words, concept, options.count, sampling)),
        "alignment_after": alignment(drawn(backbone, words, cleaned.concept, options.count, sampling)),
        "alignment_of_the_category": alignment(drawn(backbone, example.category, None, options.count, sampling)),
        "alignment_of_training_pictures": alignment(as_trained(subject, backbone)),
        "drift_before": round(cleaned.report.subjects[0].drift_alone, 4),
        "drift_after": round(cleaned.report.drift, 4),
        "pictures": options.count * len(PLACES),
        "steps": concept.record["steps"],
    }


def taught(backbone: Backbone, subject: Subject, steps: int | None) -> Concept:
    """Train on the subject as `moongate demo` does."""
    prior = Regularization.load(pocket.pool_folder(), category=subject.category, only_category=True)
    return train(backbone, [subject], [prior], options=TrainOptions(steps=steps))


def drawn(
    backbone: Backbone, words: str, concept: Concept | None, count: int, options: SampleOptions
) -> list[np.ndarray]:
    """Return `count` pictures of the words in each of the demo's places, always with the same seeds."""
    prompts = [f"{photo_of(words)} {place}" for place in PLACES for _ in range(count)]
    with concept.applied(backbone) if concept else contextlib.nullcontext():
        return [picture.image for picture in sample(backbone, prompts, seeds=range(len(prompts)), options=options)]


def unit_features() -> Features:
    """Return a function from uint8 pictures to their features, as unit vectors."""
    network = lite0_features("cpu")

    @torch.no_grad()
    def features(pictures: list[np.ndarray]) -> Tensor:
        return torch.nn.functional.normalize(network(as_tensor(np.stack(pictures))), dim=1)

    return features


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    measured = measure(options)
    if options.json:
        print(json.dumps(measured))
        return
    print(f"{'':>24}  {'image alignment':>15}  {'drift':>7}")
    for name, words in (("before", "as trained"), ("after", "cleaned")):
        print(f"{words:>24}  {measured[f'alignment_{name}']:15.4f}  {measured[f'drift_{name}']:7.2%}")
    for name in ("the_category", "training_pictures"):
        print(f"{name.replace('_', ' '):>24}  {measured[f'alignment_of_{name}']:15.4f}")
    print(f"{measured['pictures']} pictures each, {measured['steps']} steps of training")


if __name__ == "__main__":
    main()
