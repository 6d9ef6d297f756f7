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
from moongate.merging import CONTEXTS, MergeOptions, merge
from moongate.merging.neutral import neutral_captions, regularization_gram
from moongate.merging.page import verdict, write_report


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


@pytest.fixture
def pair(tiny: Backbone) -> list[Concept]:
    return [invented(tiny, ("<one>", "bear"), seed=1), invented(tiny, ("<two>", "cat"), seed=2)]


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


def test_the_report_measures_what_the_projections_do(tiny: Backbone, pair: Sequence[Concept]) -> None:
    """Drift, recomputed from the model's own projections on the captions that were held out."""
    merged = merge(tiny, pair)
    captions = neutral_captions()[::10]

    def projected() -> torch.Tensor:
        ids = tiny.token_ids(captions)
        lengths = (ids == tiny.tokenizer.eos_token_id).int().argmax(1)
        text = tiny.encode_text(captions).features
        rows = torch.cat([features[: length + 1] for features, length in zip(text, lengths, strict=True)])
        return torch.cat([module(rows).flatten() for module in tiny.kv_projections()])

    with torch.no_grad():
        before = projected()
        with merged.concept.applied(tiny):
            after = projected()
    assert merged.report.drift == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-3)


def test_the_report_counts_the_users_own_captions_too(tiny: Backbone, pair: Sequence[Concept]) -> None:
    own = tuple(f"photo of a red {word}" for word in ("dog", "cat", "chair"))
    report = merge(tiny, pair, options=MergeOptions(captions=(*own, own[0], " "))).report
    assert report.neutral_captions == len(neutral_captions()) + 3 == merge(tiny, pair).report.neutral_captions + 3


def test_a_merge_did_not_record_the_users_own_captions(tiny: Backbone, pair: Sequence[Concept]) -> None:
    own = ("zebra", "unicorn", "dragon")
    recorded = [
        merge(tiny, pair, options=MergeOptions(captions=given)).concept.record.get("further_captions")
        for given in ((), own, own[:2])
    ]
    assert recorded[0] is None
    assert [each["count"] for each in recorded[1:]] == [3, 2]
    assert recorded[1]["sha256"] == hashlib.sha256(b"zebra\nunicorn\ndragon").hexdigest()


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


def test_a_token_that_two_concepts_use_is_renamed_with_a_notice(tiny: Backbone) -> None:
    concepts = [invented(tiny, ("<new1>", word), seed=seed) for seed, word in enumerate(("bear", "cat", "dog"))]
    merged = merge(tiny, concepts)
    assert list(merged.concept.tokens) == ["<new1>", "<new2>", "<new3>"]
    torch.testing.assert_close(merged.concept.tokens["<new2>"], concepts[1].tokens["<new1>"])
    assert merged.report.renamed == (("<new1>", "<new2>"), ("<new1>", "<new3>"))
    assert any("is now <new3>" in line for line in verdict(merged.report))


def test_a_renamed_token_never_takes_the_name_of_a_later_one(tiny: Backbone) -> None:
    concepts = [
        invented(tiny, ("<new1>", "bear"), seed=0),
        invented(tiny, ("<new1>", "cat"), ("<new2>", "dog"), seed=1),
    ]
    assert list(merge(tiny, concepts).concept.tokens) == ["<new1>", "<new3>", "<new2>"]


def test_contradicting_concepts_are_reported_and_named(tiny: Backbone) -> None:
    report = merge(tiny, [invented(tiny, (None, "bear"), seed=1), invented(tiny, (None, "bear"), seed=2)]).report
    assert not report.feasible
    assert report.predicted_to_lose == "bear"
    conflict = report.conflicts[0]
    assert (conflict.first, conflict.second) == ("bear", "bear")
    assert conflict.cosine == pytest.approx(1)
    assert "token" in conflict.advice
    assert any("contradict" in line for line in verdict(report))


def test_tokens_that_began_from_the_same_row_are_named_as_a_conflict(tiny: Backbone) -> None:
    first, second = invented(tiny, ("<one>", "bear"), seed=1), invented(tiny, ("<two>", "cat"), seed=2)
    second = replace(second, tokens={"<two>": first.tokens["<one>"] + 1e-4})
    report = merge(tiny, [first, second], options=MergeOptions(contexts=1)).report
    assert [(c.first, c.second) for c in report.conflicts] == [("<one> bear", "<two> cat")]
    assert "--rare-token" in report.conflicts[0].advice
    assert not merge(tiny, [first, invented(tiny, ("<two>", "cat"), seed=2)]).report.conflicts


def test_more_subjects_than_the_features_have_room_for_are_refused(tiny: Backbone) -> None:
    words = ("bear", "cat", "dog", "chair", "beach")
    concepts = [invented(tiny, (f"<{word}>", word), seed=seed) for seed, word in enumerate(words)]
    with pytest.raises(OptionError, match=r"fill all 16 dimensions.*Merge fewer"):
        merge(tiny, [*concepts, invented(tiny, ("<x>", "red"), seed=9)])


def test_contexts_are_left_out_until_the_constraints_fit(tiny: Backbone, pair: Sequence[Concept]) -> None:
    assert {fit.contexts for fit in merge(tiny, pair).report.subjects} == {1}
    assert {fit.contexts for fit in merge(tiny, pair[:1]).report.subjects} == {2}
    assert {fit.contexts for fit in merge(tiny, pair, options=MergeOptions(contexts=2)).report.subjects} == {2}


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


def test_the_gram_matrix_is_kept_for_the_same_captions_alone(tiny: Backbone, tmp_path: Path) -> None:
    captions = ["photo of a dog", "a red chair", "teddy bear on the beach"]
    first = regularization_gram(tiny, captions, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    torch.testing.assert_close(regularization_gram(tiny, captions, cache=tmp_path), first)
    torch.testing.assert_close(regularization_gram(tiny, captions), first)
    regularization_gram(tiny, [*captions, "a cat"], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_padding_counts_once_whatever_its_length(tiny: Backbone) -> None:
    """By hand, for one caption: start, words and end in full, the padding by its mean square, then the empty prompt."""
    caption = "a red chair"
    gram = regularization_gram(tiny, ["left out", caption])
    with torch.no_grad():
        text, empty = tiny.encode_text([caption, ""]).features.double()
    expected = text[:5].T @ text[:5] + text[5:].T @ text[5:] / 11
    expected += 0.1 * (empty[:2].T @ empty[:2] + empty[2:].T @ empty[2:] / 14)
    torch.testing.assert_close(gram, expected)


def test_the_neutral_captions_are_a_thousand_different_ones() -> None:
    captions = neutral_captions(["photo of my own garden", " ", neutral_captions()[0]])
    assert len(captions) == len(set(captions)) == 1001
    assert all(caption == caption.strip() for caption in captions)


def test_the_report_is_written_as_json_and_as_one_page(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    page = write_report(merge(tiny, pair).report, tmp_path / "report").read_text()
    assert "&lt;one&gt; bear" in page
    assert "src=" not in page
    assert "http" not in page
    assert (tmp_path / "report" / "report.json").read_text().startswith("{")


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
        found = change.full().double()
        for concept, own in zip(pair, rows, strict=True):
            wanted = own @ concept.deltas[name].full().double().T
            assert (own @ found.T - wanted).norm() <= 1e-4 * wanted.norm()
        gradient = found @ cost
        assert (gradient @ free).norm() <= 1e-2 * gradient.norm()


@pytest.mark.parametrize(
    ("token", "caption", "context"),
    [
        ("<one>", "a red <one> bear", "a red {}"),
        ("<one>", "photo of a {red} <one> bear", CONTEXTS[0]),
        ("<one>", "a <one> bear and a <one> bear", CONTEXTS[0]),
        ("<one>", "a <one> bear and a <two> cat", CONTEXTS[0]),
        ("<one>", "far " * 16 + "<one> bear", CONTEXTS[0]),
        (None, "a bearskin on the beach", CONTEXTS[0]),
    ],
)
def test_a_caption_that_cannot_be_a_context_does_not_stop_a_merge(
    tiny: Backbone, token: str | None, caption: str, context: str
) -> None:
    concept = invented(tiny, (token, "bear"))
    taught = SubjectRecord(category="bear", token=token, prompts=(caption,))
    merged = merge(tiny, [replace(concept, subjects=(taught,))], options=MergeOptions(contexts=1))
    assert merged.concept.record["contexts"] == [[context]]


def test_the_word_within_anothers_words_is_not_its_own(tiny: Backbone) -> None:
    """A bear without a token beside <one> bear: it was predicted to be lost, by what the other's word had become."""
    plain = invented(tiny, (None, "bear"), seed=1)
    merged = merge(tiny, [plain, invented(tiny, ("<one>", "bear"), seed=2)], options=MergeOptions(contexts=1))
    captions = ["photo of a bear and a <one> bear", "photo of a <one> bear and a bear"]
    with tiny.tokens(merged.concept.tokens), torch.no_grad():
        bear = tiny.tokenizer("bear").input_ids[1]
        ids, features = tiny.token_ids(captions), tiny.encode_text(captions).features.double()
    places = [(row == bear).nonzero().flatten() for row in ids]
    rows = torch.stack([features[0, places[0][0]], features[1, places[1][1]]])
    own = torch.cat([rows @ change.full().double().T for change in plain.deltas.values()], 1)
    now = torch.cat([rows @ merged.concept.deltas[name].full().double().T for name in plain.deltas], 1)
    expected = float((now - own).norm() / own.norm())
    assert merged.report.subjects[0].joint_error == pytest.approx(expected, rel=1e-3)


def test_a_subject_named_in_anothers_context_can_be_taken_out_again(tiny: Backbone) -> None:
    """The captions' ends were no constraints while "cat" was in the merge, and came back with its values in them."""
    taught = SubjectRecord(category="bear", token="<one>", prompts=("a <one> bear in a cat",))
    bear = replace(invented(tiny, ("<one>", "bear"), seed=1), subjects=(taught,))
    once = merge(tiny, [bear], options=MergeOptions(contexts=1)).concept
    both = merge(tiny, [once, invented(tiny, (None, "cat"), seed=2)], options=MergeOptions(contexts=1)).concept
    assert_alike(merge(tiny, [both], options=MergeOptions(without=("cat",))).concept, once, tolerance=1e-3)


def test_a_concept_of_tokens_alone_is_refused_with_what_to_do(tiny: Backbone, pair: Sequence[Concept]) -> None:
    with pytest.raises(OptionError, match=r"'<two> cat' changes no weights.*--together add"):
        merge(tiny, [pair[0], replace(pair[1], deltas={})])


def test_a_cache_that_is_damaged_or_cannot_be_written_does_not_stop_a_merge(tiny: Backbone, tmp_path: Path) -> None:
    captions = ["photo of a dog", "a red chair"]
    expected = regularization_gram(tiny, captions, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    torch.testing.assert_close(regularization_gram(tiny, captions, cache=tmp_path / "cache"), expected)
    assert file.read_bytes() == whole
    torch.testing.assert_close(regularization_gram(tiny, captions, cache=file / "below"), expected)
