from collections.abc import Mapping

import numpy as np
import pytest
import torch

from conftest import WIDTH
from moongate.analysis import edit_maps, spectra, weight_changes, word_maps
from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.errors import BaseMismatchError, OptionError
from moongate.sampling import SampleOptions, sample


def concept_of(backbone: Backbone, deltas: Mapping[str, Dense | LowRank]) -> Concept:
    return Concept(
        deltas=deltas,
        tokens={"<bear>": backbone.token_row(20)},
        token_widths=backbone.token_widths,
        subjects=(SubjectRecord(category="bear", token="<bear>"),),
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        method="custom-diffusion",
    )


def test_a_change_of_known_size_is_found_in_its_kind_of_layer(each: Backbone) -> None:
    """Every layer of one kind moves by a tenth, of another by a hundredth, and the rest stays."""
    weights = each.weights("denoiser")
    deltas = {n: Dense(delta=0.1 * w.detach()) for n, w in weights.items() if ".attn2." in n}
    deltas |= {n: Dense(delta=0.01 * w.detach()) for n, w in weights.items() if ".attn1." in n}
    changes = weight_changes(each, concept_of(each, deltas))
    assert [change.kind for change in changes] == ["cross-attention", "self-attention", "the rest"]
    assert [change.mean for change in changes] == pytest.approx([0.1, 0.01, 0], rel=1e-5)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    attending = [sum(size for name, size in sizes.items() if part in name) for part in (".attn2.", ".attn1.")]
    assert [change.share for change in changes[:2]] == pytest.approx([part / sum(sizes.values()) for part in attending])
    assert sum(change.share for change in changes) == pytest.approx(1)
    assert changes[0].layers == changes[0].changed == len(changes[0].by_layer) == 4 * len(each.cross_attentions())
    assert changes[2].changed == 0


def test_layers_that_stay_count_in_the_mean(tiny: Backbone) -> None:
    deltas = {n: Dense(delta=0.1 * w.detach()) for n, w in tiny.weights("cross-attention-kv").items()}
    (change,) = [c for c in weight_changes(tiny, concept_of(tiny, deltas)) if c.kind == "cross-attention"]
    assert change.mean == pytest.approx(0.05, rel=1e-5)  # keys and values of keys, values, queries and outputs
    assert change.changed * 2 == change.layers
    with pytest.raises(BaseMismatchError):
        weight_changes(tiny, concept_of(tiny, {"unet.nothing.weight": Dense(delta=torch.ones(2, 2))}))


def test_the_spectrum_of_known_singular_values(tiny: Backbone) -> None:
    left, right = (torch.linalg.qr(torch.randn(16, 4, generator=torch.Generator().manual_seed(s))).Q for s in (0, 1))
    values = torch.tensor([4.0, 3, 2, 1])
    kernel = (left * values) @ right.T
    deltas: dict[str, Dense | LowRank] = {
        "matrix": Dense(delta=kernel),
        "factors": LowRank(up=left * values, down=right.T),
        "convolution": Dense(delta=kernel.reshape(16, 4, 2, 2)),
        "bias": Dense(delta=torch.ones(16)),
        "still": Dense(delta=torch.zeros(4, 4)),
    }
    by_name = spectra(concept_of(tiny, deltas))
    assert set(by_name) == {"matrix", "factors", "convolution"}
    for spectrum in by_name.values():
        assert spectrum.values[:4].tolist() == pytest.approx([4, 3, 2, 1], rel=1e-5)
        assert spectrum.values[4:].abs().max() < 1e-5
        assert [spectrum.rank(energy) for energy in (0.4, 0.6, 0.95, 1.0)] == [1, 2, 4, 4]
    with pytest.raises(OptionError, match="only tokens"):
        spectra(concept_of(tiny, {}))


def test_each_word_has_one_map_whatever_its_pieces(each: Backbone) -> None:
    with each.tokens({"<bear>": each.token_row(20)}):
        prompt = "photo of a <bear> bear qq"
        (maps,) = word_maps(each, prompt, options=SampleOptions(steps=1))
        assert [word for word, _ in maps.words] == ["photo", "of", "a", "<bear>", "bear", "qq"]
        assert each.words(prompt)[-1] == ("qq", [6, 7])
    for _, where in maps.words:
        assert where.shape == (8, 8)
        assert where.max() == pytest.approx(1)
        assert where.min() >= 0
    assert maps.picture.image.shape == (64, 64, 3)
    assert each.token_widths[0] == WIDTH
    assert len({np.asarray(where).tobytes() for _, where in maps.words}) > 1


def test_each_seed_has_a_picture_and_maps_of_its_own(tiny: Backbone) -> None:
    options = SampleOptions(steps=1)
    _, second = word_maps(tiny, "a bear", seeds=(3, 4), options=options)
    (alone,) = word_maps(tiny, "a bear", seeds=(4,), options=options)
    (picture,) = sample(tiny, ["a bear"], seeds=[4], options=options)
    assert second.picture.seed == 4
    np.testing.assert_array_equal(second.picture.image, picture.image)
    np.testing.assert_array_equal(second.words[1][1], alone.words[1][1])


def test_an_edit_shows_the_maps_of_both_pictures_side_by_side(tiny: Backbone) -> None:
    options = SampleOptions(steps=1, scheduler="ddim")
    concept = concept_of(tiny, {})
    before, after = edit_maps(tiny, "photo of a bear", "photo of a <bear> bear", concept=concept, options=options)
    assert [word for word, _ in before.words] == ["photo", "of", "a", "bear"]
    assert [word for word, _ in after.words] == ["photo", "of", "a", "<bear>", "bear"]
    assert (before.picture.prompt, after.picture.prompt) == ("photo of a bear", "photo of a <bear> bear")
    np.testing.assert_allclose(after.words[-1][1], before.words[-1][1], atol=1e-5)


def test_low_rank_factors_have_the_spectrum_and_norm_of_their_product_and_are_not_multiplied_out(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(iter(tiny.weights("cross-attention-kv")))
    shape = tiny.parameter(name).shape
    change = LowRank(up=torch.randn(shape[0], 3), down=torch.randn(3, shape[1]))
    dense, low = (concept_of(tiny, {name: c}) for c in (Dense(delta=change.full()), change))
    expected, moved = spectra(dense)[name].values, weight_changes(tiny, dense)[0].mean
    monkeypatch.setattr(LowRank, "full", lambda _: pytest.fail("multiplied out"))
    values = spectra(low)[name].values
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    assert len(values) == min(shape)
    assert weight_changes(tiny, low)[0].mean == pytest.approx(moved, rel=1e-5)
