from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.merging import MergeOptions, merge
from moongate.merging.neutral import neutral_captions
from moongate.merging.page import verdict
from moongate.merging.report import SubjectFit


def test_the_report_measures_what_the_projections_do(tiny: Backbone, pair: Sequence[Concept]) -> None:
    """Drift, recomputed from the model's own projections on the captions that were held out and the empty prompt."""
    report, merged = (one := merge(tiny, pair)).report, one.concept
    captions = neutral_captions()[::10]
    with torch.no_grad():
        lengths = (tiny.token_ids(captions) == tiny.tokenizer.eos_token_id).int().argmax(1)
        text = tiny.encode_text(captions).features
        held_out = torch.cat([features[: length + 1] for features, length in zip(text, lengths, strict=True)])
        empty = tiny.encode_text([""]).features[0]

    def moved(concept: Concept, rows: torch.Tensor) -> float:
        def projected() -> torch.Tensor:
            return torch.cat([module(rows).flatten() for module in tiny.kv_projections()])

        with torch.no_grad():
            before = projected()
            with concept.applied(tiny):
                after = projected()
        return float((after - before).norm() / before.norm())

    assert report.drift == pytest.approx(moved(merged, held_out), rel=1e-3)
    assert report.unconditional == pytest.approx(moved(merged, empty), rel=1e-3)
    alone = [moved(concept, held_out) for concept in pair]
    assert [fit.drift_alone for fit in report.subjects] == pytest.approx(alone, rel=1e-3)


def test_the_held_out_error_is_what_is_missed_in_other_contexts_relative_to_the_concepts_own_change(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    merged = merge(tiny, pair)
    parts = []
    with tiny.tokens(merged.concept.tokens), torch.no_grad():
        for context in ("photo of a {} in the snow", "a red {} in a garden", "drawing of a {} at night"):
            caption = context.format("<one> bear")
            assert not tiny.cut_off(caption)
            places = dict(tiny.words(caption))
            end = int((tiny.token_ids([caption])[0] == tiny.tokenizer.eos_token_id).int().argmax())
            parts.append(tiny.encode_text([caption]).features[0, [*places["<one>"], *places["bear"], end]].double())
    rows = torch.cat(parts)
    own = torch.cat([rows @ change.full().double().T for change in pair[0].deltas.values()], 1)
    now = torch.cat([rows @ merged.concept.deltas[name].full().double().T for name in pair[0].deltas], 1)
    expected = float((now - own).norm() / own.norm())
    assert merged.report.subjects[0].held_out_error == pytest.approx(expected, rel=1e-3)


def test_the_report_counts_the_users_own_captions_too(tiny: Backbone, pair: Sequence[Concept]) -> None:
    own = tuple(f"photo of a red {word}" for word in ("dog", "cat", "chair"))
    report = merge(tiny, pair, options=MergeOptions(captions=(*own, own[0], " "))).report
    assert report.neutral_captions == len(neutral_captions()) + 3 == merge(tiny, pair).report.neutral_captions + 3


def test_contradicting_concepts_are_reported_and_named(tiny: Backbone) -> None:
    concepts = [invented(tiny, (None, "bear"), seed=1), invented(tiny, (None, "bear"), seed=2)]
    report = merge(tiny, concepts).report
    assert not report.feasible
    assert report.predicted_to_lose == "bear"
    conflict = report.conflicts[0]
    assert (conflict.first, conflict.second) == ("bear", "bear")
    assert conflict.cosine == pytest.approx(1)
    with torch.no_grad():
        rows = tiny.encode_text(["photo of a bear"]).features[0, 4:6].double()  # the word and the end
    first, second = (
        torch.cat([rows @ change.full().double().T for change in concept.deltas.values()], 1) for concept in concepts
    )
    longer = torch.maximum(first.norm(dim=1), second.norm(dim=1))
    assert conflict.difference == pytest.approx(float(((first - second).norm(dim=1) / longer).max()), rel=1e-4)
    assert "token" in conflict.advice
    assert any("contradict" in line for line in verdict(report))


def test_tokens_that_began_from_the_same_row_are_named_as_a_conflict(tiny: Backbone) -> None:
    first, second = invented(tiny, ("<one>", "bear"), seed=1), invented(tiny, ("<two>", "cat"), seed=2)
    second = replace(second, tokens={"<two>": first.tokens["<one>"] + 1e-4})
    report = merge(tiny, [first, second], options=MergeOptions(contexts=1)).report
    assert [(c.first, c.second) for c in report.conflicts] == [("<one> bear", "<two> cat")]
    assert "--rare-token" in report.conflicts[0].advice
    assert not merge(tiny, [first, invented(tiny, ("<two>", "cat"), seed=2)]).report.conflicts


def test_the_word_within_anothers_words_is_not_its_own(tiny: Backbone) -> None:
    """The joint error of a bear without a token is measured at its own word, not at the one in `<one> bear`."""
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


def test_drift_alone_counts_the_matrices_that_are_merged(tiny: Backbone, pair: Sequence[Concept]) -> None:
    """With keys alone it is the drift of a concept that changes keys alone."""
    keys = {layer: change for layer, change in pair[0].deltas.items() if layer.endswith("to_k.weight")}
    less, whole = (
        merge(tiny, [concept], options=MergeOptions(only="keys")).report.subjects[0].drift_alone
        for concept in (replace(pair[0], deltas=keys), pair[0])
    )
    assert less == pytest.approx(whole)


def test_what_is_kept_of_a_subject_is_what_is_not_lost_next_to_others_if_there_are() -> None:
    facts = {"words": "a bear", "contexts": 1, "constraints": 3, "drift_alone": 0.1}
    beside = {"a cat": 0.1, "a dog": 0.25, "a cup": 0.2}
    residual = {"keys": 1e-9, "values": 2e-9}
    fit = SubjectFit(**facts, residual=residual, held_out_error=0.3, joint_error=0.2, beside=beside)
    assert (fit.worst_beside, fit.worst_residual) == (("a dog", 0.25), 2e-9)
    assert fit.share_kept == pytest.approx(0.8)
    assert replace(fit, residual={"keys": 0.0, "values": 0.6}).share_kept == pytest.approx(0.4)
    alone = replace(fit, beside={}, joint_error=0.0)
    assert (alone.worst_beside, alone.share_kept) == (("", 0.0), pytest.approx(0.7))
    assert replace(alone, held_out_error=1.5).share_kept == 0
