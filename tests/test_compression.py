from dataclasses import replace

import pytest
import torch

from making import invented
from moongate.backbone import Backbone
from moongate.compression import compress, low_rank
from moongate.concept import Concept, Dense, LowRank
from moongate.errors import OptionError


def with_delta(concept: Concept, delta: torch.Tensor) -> Concept:
    return replace(concept, deltas={"some.weight": Dense(delta=delta)})


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.6, 2), (0.75, 2), (0.76, 3), (1.0, 4)])
def test_it_keeps_the_fewest_singular_values_that_sum_to_the_share(tiny: Backbone, energy: float, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(40, 4, generator=generator))[0] for _ in range(2))
    delta = left @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])) @ right.T
    compressed = compress(with_delta(invented(tiny, ("<one>", "bear")), delta), energy=energy)
    change = compressed.concept.deltas["some.weight"]
    assert change.rank == rank
    cut = torch.tensor([4.0, 2.0, 1.0, 1.0])[rank:].square().sum().sqrt()
    assert float((change.full() - delta).norm()) == pytest.approx(float(cut), abs=1e-4)
    assert compressed.report.error == pytest.approx(float(cut / delta.norm()), abs=1e-4)
    assert compressed.report.layers["some.weight"].error == pytest.approx(compressed.report.error, abs=1e-6)


def test_no_layer_that_changed_is_lost_however_little_is_kept(tiny: Backbone) -> None:
    concept = invented(tiny, ("<one>", "bear"))
    compressed = compress(concept, energy=1e-6)
    assert compressed.concept.deltas.keys() == concept.deltas.keys()
    assert {layer.rank for layer in compressed.report.layers.values()} == {1}
    assert compressed.report.bytes_after < compressed.report.bytes_before / 4
    assert all(change.full().any() for change in compressed.concept.deltas.values())


def test_a_low_rank_change_keeps_its_rank_and_its_values(tiny: Backbone) -> None:
    concept = invented(tiny, ("<one>", "bear"), rank=2)
    dense = replace(concept, deltas={name: Dense(delta=change.full()) for name, change in concept.deltas.items()})
    compressed = compress(dense, energy=1.0)
    assert {change.rank for change in compressed.concept.deltas.values()} == {2}
    assert compressed.report.error < 1e-5
    for name, change in compressed.concept.deltas.items():
        torch.testing.assert_close(change.full(), concept.deltas[name].full(), rtol=1e-4, atol=1e-5)


def test_what_two_factors_would_enlarge_is_kept_as_it_is(tiny: Backbone) -> None:
    concept = invented(tiny, ("<one>", "bear"))
    compressed = compress(concept, energy=1.0)
    assert compressed.report.kept_whole == tuple(concept.deltas)
    assert compressed.report.bytes_after == compressed.report.bytes_before
    assert compressed.report.error == 0


def test_a_layer_without_change_is_dropped_and_a_bias_is_kept(tiny: Backbone) -> None:
    concept = invented(tiny, ("<one>", "bear"))
    deltas = {"zero": Dense(delta=torch.zeros(8, 8)), "bias": Dense(delta=torch.ones(8))}
    compressed = compress(replace(concept, deltas=deltas), energy=0.6)
    assert list(compressed.concept.deltas) == ["bias"]
    assert compressed.report.unchanged == ("zero",)
    assert compressed.report.kept_whole == ("bias",)


def test_it_can_be_applied_saved_and_compressed_again(tiny: Backbone) -> None:
    once = compress(invented(tiny, ("<one>", "bear")), energy=0.8).concept
    twice = compress(once, energy=0.5).concept
    assert all(isinstance(change, LowRank) for change in twice.deltas.values())
    assert twice.record["energy"] == 0.5
    with twice.applied(tiny):
        pass


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.01])
def test_an_energy_outside_its_range_is_refused(tiny: Backbone, energy: float) -> None:
    with pytest.raises(OptionError, match=r"above 0 and at most 1, such as 0\.6"):
        compress(invented(tiny, ("<one>", "bear")), energy=energy)


def test_low_rank_factors_are_compressed_without_multiplying_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(300_000, 4, generator=generator), torch.randn(4, 200_000, generator=generator)
    monkeypatch.setattr(LowRank, "full", lambda _: pytest.fail("multiplied out"))
    change, cut = low_rank(LowRank(up=up, down=down), 2)
    assert (change.rank, change.shape) == (2, (300_000, 200_000))
    assert cut > 0


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_the_singular_values_of_factors_are_those_of_their_product(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = LowRank(up=scale * torch.randn(9, 3, generator=generator), down=torch.randn(3, 7, generator=generator))
    expected = torch.linalg.svdvals(factors.up.double() @ factors.down.double())[:3]
    torch.testing.assert_close(torch.linalg.svdvals(factors.core()), expected)
    kept, cut = low_rank(factors, 1)
    torch.testing.assert_close(torch.linalg.svdvals(kept.core()), expected[:1], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(cut, float(expected[1:].square().sum()))
