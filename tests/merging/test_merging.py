import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.linalg
import torch

from making import invented
from moongate.backbone import Backbone
from moongate.compression import compress
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.errors import BaseMismatchError, OptionError
from moongate.merging import MergeOptions, merge
from moongate.merging.constraints import CONTEXTS
from moongate.merging.neutral import neutral_captions, regularization_gram


def values_of_words(backbone: Backbone, concept: Concept, words: str, caption: str) -> torch.Tensor:
    """What the denoiser's own projections make of the words in a caption while the concept is applied."""
    with concept.applied(backbone), torch.no_grad():
        ids = backbone.tokenizer(caption).input_ids
        wanted = backbone.tokenizer(words).input_ids[1:-1]
        start = next(at for at in range(len(ids)) if ids[at : at + len(wanted)] == wanted)
        text = backbone.encode_text([caption]).features[0, start : start + len(wanted)]
        return torch.cat([module(text) for module in backbone.kv_projections()], -1)


def full(concept: Concept) -> dict[str, torch.Tensor]:
    return {name: change.full() for name, change in concept.deltas.items()}


def assert_alike(one: Concept, other: Concept, *, tolerance: float = 1e-4) -> None:
    assert one.deltas.keys() == other.deltas.keys()
    for name, change in full(one).items():
        assert (change - other.deltas[name].full()).norm() <= tolerance * change.norm(), name


def test_each_subject_keeps_the_values_its_own_concept_gives_it(each: Backbone, tmp_path: Path) -> None:
    pair = [invented(each, ("<one>", "bear"), seed=1), invented(each, ("<two>", "cat"), seed=2)]
    merged = merge(each, pair, options=MergeOptions(cache=tmp_path)).concept
    for concept, words in zip(pair, ("<one> bear", "<two> cat"), strict=True):
        caption = f"photo of a {words}"
        kept = values_of_words(each, merged, words, caption)
        torch.testing.assert_close(kept, values_of_words(each, concept, words, caption), rtol=1e-4, atol=1e-4)
        assert torch.equal(merged.tokens[words.split()[0]], concept.tokens[words.split()[0]])
    assert merged.token_widths == each.token_widths
    again = merge(each, pair, options=MergeOptions(cache=tmp_path)).concept  # with the Gram matrix that was kept
    assert again.hash == merged.hash


def test_one_concept_alone_is_cleaned(tiny: Backbone, pair: Sequence[Concept]) -> None:
    merged = merge(tiny, pair[:1])
    kept = values_of_words(tiny, merged.concept, "<one> bear", "photo of a <one> bear")
    torch.testing.assert_close(
        kept, values_of_words(tiny, pair[0], "<one> bear", "photo of a <one> bear"), rtol=1e-4, atol=1e-4
    )
    assert merged.report.drift < merged.report.subjects[0].drift_alone
    assert merged.report.subjects[0].worst_residual < 1e-9


def test_the_users_own_captions_are_recorded_by_number_and_digest(tiny: Backbone, pair: Sequence[Concept]) -> None:
    own = ("zebra", "unicorn", "dragon")
    nothing, three, two = (
        merge(tiny, pair, options=MergeOptions(captions=captions)).concept.record.get("further_captions", {})
        for captions in ((), own, own[:2])
    )
    assert nothing == {}
    assert (three["count"], two["count"]) == (3, 2)
    assert three["sha256"] == hashlib.sha256(b"zebra\nunicorn\ndragon").hexdigest()


def test_the_order_does_not_matter(tiny: Backbone, pair: Sequence[Concept]) -> None:
    assert_alike(merge(tiny, pair).concept, merge(tiny, pair[::-1]).concept)


def test_it_is_stored_by_its_own_low_rank(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    merged = merge(tiny, pair)
    assert {change.rank for change in merged.concept.deltas.values()} == {merged.report.rank}
    assert merged.report.rank + merged.report.capacity == 16
    back = Concept.load(merged.concept.save(tmp_path / "ab.safetensors"))
    assert back.hash == merged.concept.hash
    assert [subject.words for subject in back.subjects] == ["<one> bear", "<two> cat"]


def test_what_was_added_can_be_taken_out_again(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    both = merge(tiny, pair).concept
    third = invented(tiny, ("<three>", "dog"), seed=3)
    file = merge(tiny, [both, third]).concept.save(tmp_path / "abc.safetensors")
    options = MergeOptions(without=("<three>",))
    assert_alike(merge(tiny, [Concept.load(file)], options=options).concept, both, tolerance=1e-3)
    options = MergeOptions(without=("<one> bear", "<three>"))
    taken = merge(tiny, [Concept.load(file)], options=options).concept
    assert list(taken.tokens) == ["<two>"]
    assert_alike(taken, merge(tiny, pair[1:], options=MergeOptions(contexts=1)).concept, tolerance=1e-3)


def test_adding_one_by_one_is_merging_all(tiny: Backbone, pair: Sequence[Concept]) -> None:
    options = MergeOptions(contexts=1)
    third = invented(tiny, ("<three>", "dog"), seed=3)
    stepwise = merge(tiny, [merge(tiny, pair, options=options).concept, third], options=options).concept
    assert_alike(stepwise, merge(tiny, [*pair, third], options=options).concept, tolerance=1e-3)


def test_joint_tokenless_and_compressed_concepts_can_be_merged(tiny: Backbone) -> None:
    joint = invented(tiny, ("<one>", "bear"), ("<two>", "cat"), seed=1)
    plain = invented(tiny, (None, "teddy bear"), seed=2)
    small = compress(invented(tiny, ("<three>", "dog"), seed=3), energy=0.5).concept
    assert isinstance(next(iter(small.deltas.values())), LowRank)
    merged = merge(tiny, [joint, plain, small], options=MergeOptions(contexts=1))
    assert merged.report.feasible
    for concept, words in ((joint, "<one> bear"), (joint, "<two> cat"), (plain, "teddy bear"), (small, "<three> dog")):
        caption = f"photo of a {words}"
        kept = values_of_words(tiny, merged.concept, words, caption)
        torch.testing.assert_close(kept, values_of_words(tiny, concept, words, caption), rtol=1e-3, atol=1e-3)


def test_more_subjects_than_the_features_have_room_for_are_refused(tiny: Backbone) -> None:
    words = ("bear", "cat", "dog", "chair", "beach")
    concepts = [invented(tiny, (f"<{word}>", word), seed=seed) for seed, word in enumerate(words)]
    with pytest.raises(OptionError, match=r"fill all 16 dimensions.*Merge fewer"):
        merge(tiny, [*concepts, invented(tiny, ("<x>", "red"), seed=9)])


def test_another_base_and_other_weights_are_refused(
    tiny: Backbone, pair: Sequence[Concept], other_folder: Path
) -> None:
    with pytest.raises(BaseMismatchError, match="was made for"):
        merge(Backbone.load(other_folder, device="cpu"), pair)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    more = {**pair[0].deltas, name: Dense(delta=torch.zeros_like(tiny.parameter(name)))}
    with pytest.raises(OptionError, match=r"to_q.*only keys and values"):
        merge(tiny, [replace(pair[0], deltas=more)])
    with pytest.raises(OptionError, match=r"no subject '<x>'.*'<one> bear', '<two> cat'"):
        merge(tiny, pair, options=MergeOptions(without=("<x>",)))
    with pytest.raises(OptionError, match="no concept"):
        merge(tiny, [])
    with pytest.raises(OptionError, match=f"contexts is 99.*{len(CONTEXTS)}"):
        MergeOptions(contexts=99)


def test_of_all_changes_that_keep_the_words_it_moves_neutral_captions_least(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    """Stationarity, with rows and places found by hand: words and end of "photo of a <one> bear"."""
    merged = merge(tiny, pair, options=MergeOptions(contexts=1)).concept
    with tiny.tokens(merged.tokens), torch.no_grad():
        captions = ["photo of a <one> bear", "photo of a <two> cat"]
        rows = tiny.encode_text(captions).features[:, 4:7].double()
    gram = regularization_gram(tiny, neutral_captions())
    cost = gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    free = torch.from_numpy(scipy.linalg.null_space(rows.flatten(0, 1).numpy()))
    for name, change in merged.deltas.items():
        delta = change.full().double()
        for concept, own in zip(pair, rows, strict=True):
            wanted = own @ concept.deltas[name].full().double().T
            assert (own @ delta.T - wanted).norm() <= 1e-4 * wanted.norm()
        gradient = delta @ cost
        assert (gradient @ free).norm() <= 1e-2 * gradient.norm()


def test_a_subject_named_in_anothers_context_can_be_taken_out_again(tiny: Backbone) -> None:
    """The end of a context that names another subject stays a constraint of the subject whose context it is."""
    taught = SubjectRecord(category="bear", token="<one>", prompts=("a <one> bear in a cat",))
    bear = replace(invented(tiny, ("<one>", "bear"), seed=1), subjects=(taught,))
    once = merge(tiny, [bear], options=MergeOptions(contexts=1)).concept
    both = merge(tiny, [once, invented(tiny, (None, "cat"), seed=2)], options=MergeOptions(contexts=1)).concept
    assert_alike(merge(tiny, [both], options=MergeOptions(without=("cat",))).concept, once, tolerance=1e-3)
