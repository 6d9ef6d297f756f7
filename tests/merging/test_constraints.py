from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept, SubjectRecord
from moongate.errors import OptionError, TokenError
from moongate.merging import MergeOptions, merge
from moongate.merging.constraints import CONTEXTS, Constraints, kept_subjects
from moongate.merging.features import filled
from moongate.merging.page import summary_rows, verdict


def test_a_token_that_two_concepts_use_is_renamed_with_a_notice(tiny: Backbone) -> None:
    concepts = [invented(tiny, ("<new1>", word), seed=seed) for seed, word in enumerate(("bear", "cat", "dog"))]
    merged = merge(tiny, concepts)
    assert list(merged.concept.tokens) == ["<new1>", "<new2>", "<new3>"]
    torch.testing.assert_close(merged.concept.tokens["<new2>"], concepts[1].tokens["<new1>"])
    assert merged.report.renamed == (("<new1>", "<new2>"), ("<new1>", "<new3>"))
    assert any("is now <new3>" in line for line in verdict(merged.report))


def test_tokens_that_differ_in_case_alone_are_one_word_of_which_one_is_renamed(tiny: Backbone) -> None:
    concepts = [
        invented(tiny, ("<Rex>", "bear"), seed=0),
        invented(tiny, ("<rex>", "cat"), ("<REX2>", "dog"), seed=1),
    ]
    merged = merge(tiny, concepts)
    assert list(merged.concept.tokens) == ["<Rex>", "<rex3>", "<REX2>"]
    assert merged.report.renamed == (("<rex>", "<rex3>"),)
    with pytest.raises(TokenError, match="one word to the model"), concepts[0].applied(tiny), concepts[1].applied(tiny):
        pass


def test_a_renamed_token_never_takes_the_name_of_a_later_one(tiny: Backbone) -> None:
    concepts = [
        invented(tiny, ("<new1>", "bear"), seed=0),
        invented(tiny, ("<new1>", "cat"), ("<new2>", "dog"), seed=1),
    ]
    assert list(merge(tiny, concepts).concept.tokens) == ["<new1>", "<new3>", "<new2>"]


def test_contexts_are_left_out_until_the_constraints_fit(tiny: Backbone, pair: Sequence[Concept]) -> None:
    fitting = MergeOptions(contexts=None)
    assert {fit.contexts for fit in merge(tiny, pair, options=fitting).report.subjects} == {1}
    assert {fit.contexts for fit in merge(tiny, pair[:1], options=fitting).report.subjects} == {2}
    assert {fit.contexts for fit in merge(tiny, pair, options=MergeOptions(contexts=2)).report.subjects} == {2}


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


def test_a_concept_of_tokens_alone_is_refused_with_what_to_do(tiny: Backbone, pair: Sequence[Concept]) -> None:
    with pytest.raises(OptionError, match=r"'<two> cat' changes no weights.*--together add"):
        merge(tiny, [pair[0], replace(pair[1], deltas={})])


@pytest.mark.parametrize(
    ("context", "words", "caption"),
    [
        ("photo of a {}", ("<one> bear",), "photo of a <one> bear"),
        ("a {} on the beach", ("armchair",), "an armchair on the beach"),
        ("a red {}", ("armchair",), "a red armchair"),
        ("photo of an {}", ("armchair",), "photo of an armchair"),
        ("photo of a {} and a {}", ("owl", "bear"), "photo of an owl and a bear"),
        ("{}", ("owl",), "owl"),
    ],
)
def test_an_article_before_a_subject_agrees_with_its_words(context: str, words: tuple[str, ...], caption: str) -> None:
    assert filled(context, *words) == caption


def test_the_constraints_are_the_features_of_words_and_ends_with_their_own_values(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    with tiny.tokens({**pair[0].tokens, **pair[1].tokens}):
        subjects, _, _ = kept_subjects(tiny, pair, contexts=1, room=16)
        constraints = Constraints.of(tiny, subjects, layers=sorted(pair[0].deltas))
        with torch.no_grad():
            rows = tiny.encode_text(["photo of a <one> bear", "photo of a <two> cat"]).features[:, 4:7].double()
    torch.testing.assert_close(
        constraints.rows, rows.flatten(0, 1), atol=1e-5, rtol=1e-5
    )  # without the padding they are rounded otherwise
    rows = constraints.rows.unflatten(0, (2, 3))
    assert [constraints.slice_of(index) for index in (0, 1)] == [slice(0, 3), slice(3, 6)]
    assert list(constraints.values) == sorted(pair[0].deltas)
    for layer, values in constraints.values.items():
        expected = [own @ concept.deltas[layer].full().double().T for own, concept in zip(rows, pair, strict=True)]
        assert torch.equal(values, torch.cat(expected).float().double())  # as they are stored


def test_soft_rows_have_the_mean_gram_matrix_of_further_contexts_times_their_weight(
    tiny: Backbone, pair: Sequence[Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.merging.constraints.ELSEWHERE", ("{} dog", "far {}"))
    monkeypatch.setattr("moongate.merging.constraints.BESIDE", ())
    with tiny.tokens(pair[0].tokens), torch.no_grad():
        subjects, _, _ = kept_subjects(tiny, pair[:1], contexts=1, room=16)
        constraints = Constraints.of(tiny, subjects, layers=sorted(pair[0].deltas), elsewhere=9.0)
        dog, far = tiny.encode_text(["<one> bear dog", "far <one> bear"]).features.double()
    (block,) = constraints.blocks
    used = torch.cat([dog[[1, 2, 4]], far[[2, 3, 4]]])  # the words and the end
    soft = block.features[block.exact :]
    torch.testing.assert_close(soft.T @ soft, 9 * used.T @ used / 2, rtol=1e-4, atol=1e-4)
    assert constraints.weights.tolist() == [float("inf")] * 3 + [1.0] * 6


def test_a_layer_that_one_concept_leaves_alone_keeps_the_values_of_the_base_for_it(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    layer, *others = pair[0].deltas
    less = replace(pair[0], deltas={name: pair[0].deltas[name] for name in others})
    with tiny.tokens({**pair[0].tokens, **pair[1].tokens}):
        subjects, _, _ = kept_subjects(tiny, [less, pair[1]], contexts=1, room=16)
        constraints = Constraints.of(tiny, subjects, layers=sorted(pair[0].deltas))
    own = constraints.slice_of(0)
    assert not constraints.values[layer][own].any()
    assert constraints.values[others[0]][own].any()


def of_vectors(backbone: Backbone, count: int) -> Concept:
    tokens = [f"<bear-{number}>" for number in range(count)]
    record = SubjectRecord(category="bear", token=tokens[0], more_tokens=tuple(tokens[1:]))
    return replace(invented(backbone, *((token, "bear") for token in tokens)), subjects=(record,))


@pytest.mark.parametrize(("count", "is_joined"), [(4, True), (5, False), (10, None)])
def test_a_subject_of_many_vectors_is_merged_and_measured_where_its_words_fit(
    tiny: Backbone, pair: Sequence[Concept], count: int, is_joined: bool | None
) -> None:
    others = [] if is_joined is None else pair[1:]
    report = merge(tiny, [of_vectors(tiny, count), *others], options=MergeOptions(contexts=1)).report
    assert [bool(fit.beside) for fit in report.subjects] == [bool(is_joined)] * len(report.subjects)
    assert [bool(row[4]) for row in summary_rows(report)] == [bool(is_joined)] * len(report.subjects)
    assert report.subjects[0].held_out_error > 0


def test_a_subject_that_is_longer_than_a_caption_is_named_before_anything_is_computed(tiny: Backbone) -> None:
    with pytest.raises(TokenError, match=r"'<bear-0> .* takes 17 places .* have 16"):
        merge(tiny, [of_vectors(tiny, 14)])
