import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Regularization, Subject
from moongate.errors import OptionError
from moongate.merging.neutral import held_out_features, neutral_captions, regularization_gram
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS, trainable
from moongate.training.neutral_decay import NeutralDecay

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


@pytest.fixture
def gram(tiny: Backbone) -> torch.Tensor:
    """The Gram matrix of neutral captions, with a mean eigenvalue of 1."""
    gram = regularization_gram(tiny, neutral_captions())
    return gram / torch.linalg.eigvalsh(gram).mean()


def test_a_decayed_change_is_the_nearest_one_that_neutral_captions_cost_less(
    tiny: Backbone, gram: torch.Tensor
) -> None:
    strength = 0.05
    with trainable(tiny, METHOD, {}) as moving:
        name, weight = next(iter(moving.weights.items()))
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            weight.add_(change)
        NeutralDecay(tiny, strength).apply(moving, torch.tensor(1.0))
        decayed = (weight - moving.pretrained[name]).detach().double()
    # At the least cost its gradient, E - D + s E G, is zero.
    gradient = decayed - change.double() + strength * decayed @ gram
    assert gradient.norm() < 1e-5 * change.norm()
    assert decayed.norm() < change.norm()


def test_a_step_that_did_not_move_anything_is_not_decayed(tiny: Backbone) -> None:
    with trainable(tiny, METHOD, {}) as moving:
        with torch.no_grad():
            for weight in moving.weights.values():
                weight.add_(1.0)
        before = moving.state()["weights"]
        NeutralDecay(tiny, 1.0).apply(moving, torch.tensor(0.0))
        assert all(torch.equal(before[name], weight) for name, weight in moving.weights.items())


def test_weights_that_read_no_text_are_not_decayed(tiny: Backbone) -> None:
    with trainable(tiny, METHODS["custom-diffusion-cross-attention"], {}) as moving:
        with torch.no_grad():
            for weight in moving.weights.values():
                weight.add_(1.0)
        before = moving.state()["weights"]
        NeutralDecay(tiny, 1.0).apply(moving, torch.tensor(1.0))
        decayed = {name for name, weight in moving.weights.items() if not torch.equal(before[name], weight)}
    assert decayed == set(tiny.weights("cross-attention-kv"))


def test_a_training_with_it_moves_captions_that_it_never_saw_less(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    features = held_out_features(tiny, neutral_captions()).float()

    def taught(**options: object) -> Concept:
        chosen = TrainOptions(**{"steps": 4, "batch": 2, **options})
        return train(tiny, [make_subject()], [prior], METHOD, options=chosen)

    def moved(concept: Concept) -> float:
        return float(sum((features @ change.full().T).square().sum() for change in concept.deltas.values()))

    plain, guarded = taught(), taught(neutral_decay=0.1, run_folder=tmp_path / "whole")
    assert moved(guarded) < 0.5 * moved(plain)
    assert guarded.record["neutral_decay"] == 0.1
    assert "neutral_decay" not in plain.record
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["neutral_decay"] == 0.1


def test_what_the_concept_to_start_from_changes_is_not_decayed(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    first = train(tiny, [make_subject()], [prior], METHOD, options=TrainOptions(steps=1, batch=1))
    with trainable(tiny, METHOD, {}, start_from=first) as moving:
        NeutralDecay(tiny, 1.0, start_from=first).apply(moving, torch.tensor(1.0))
        for name, change in moving.deltas().items():
            torch.testing.assert_close(change, first.deltas[name].full(), rtol=0, atol=1e-6)


def test_a_strength_below_zero_is_refused() -> None:
    with pytest.raises(OptionError, match="neutral_decay is -1; it must be 0 or more, such as 0.003"):
        TrainOptions(neutral_decay=-1)
