"""Shares and intervals against closed forms of the bootstrap."""

from dataclasses import replace

import numpy as np
import pytest

from moongate.preference import Answer, results_of
from moongate.preference.results import preference_rows, strength_rows
from studying import bare_study, said


def answers_of(chosen: np.ndarray) -> list[Answer]:
    """Answers of raters (rows) on prompts (columns): 1 for ours, 0 for theirs, -1 to skip."""
    return [
        said(f"rater {r}", p, None)
        if value < 0
        else said(f"rater {r}", p, "ours" if value else "theirs", over="theirs" if value else "ours")
        for r, row in enumerate(chosen)
        for p, value in enumerate(row)
    ]


def test_the_share_is_that_of_the_answers_that_chose() -> None:
    one = results_of(bare_study(), answers_of(np.array([[1, 1, 0, -1], [1, 0, 1, 1]]))).preferences[0]
    assert (one.first, one.second, one.question) == ("ours", "theirs", "text")
    assert one.share == pytest.approx(5 / 7)
    assert (one.answers, one.skips, one.raters, one.prompts) == (7, 1, 2, 4)


def test_of_one_rater_the_interval_is_the_binomial_one() -> None:
    chosen = (np.random.default_rng(0).random((1, 400)) < 0.7).astype(int)
    one = results_of(bare_study(prompts=400), answers_of(chosen)).preferences[0]
    share = chosen.mean()
    half = 1.96 * (share * (1 - share) / 400) ** 0.5
    assert (one.low, one.high) == pytest.approx((share - half, share + half), abs=0.006)


def test_raters_and_prompts_are_both_resampled() -> None:
    """The variance of the pigeonhole bootstrap of a full table has a closed form (Owen 2007, Sec. 3)."""
    generator = np.random.default_rng(1)
    tendency = generator.normal(0, 1, (20, 1)) + generator.normal(0, 1, (1, 30))
    chosen = (generator.random((20, 30)) < 1 / (1 + np.exp(-tendency))).astype(int)
    one = results_of(bare_study(prompts=30), answers_of(chosen)).preferences[0]
    rows, columns, mean = chosen.mean(1, keepdims=True), chosen.mean(0, keepdims=True), chosen.mean()
    both = ((chosen - rows - columns + mean) ** 2).mean() / 600
    variance = ((rows - mean) ** 2).mean() / 20 + ((columns - mean) ** 2).mean() / 30 + both
    assert one.low is not None
    assert one.high is not None
    assert one.high - one.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.05)
    binomial = 2 * 1.96 * (mean * (1 - mean) / 600) ** 0.5
    assert one.high - one.low > 2 * binomial


def test_an_interval_needs_several_raters_or_prompts() -> None:
    results = results_of(bare_study(prompts=1), answers_of(np.array([[1]])))
    assert (results.preferences[0].low, results.preferences[0].high) == (None, None)
    assert "ask more raters or prompts" in preference_rows(results)[0][4]


def test_answers_that_all_agree_are_not_given_an_interval_without_width() -> None:
    for chosen in (0, 1):
        results = results_of(bare_study(), answers_of(np.full((3, 4), chosen)))
        assert (results.preferences[0].low, results.preferences[0].high) == (None, None)
        assert preference_rows(results)[0][3:5] == ("100.0%", "unknown: all agree")


def test_raters_who_each_choose_either_once_do_not_agree_and_have_no_interval() -> None:
    """Two pictures of one prompt: every resample of the raters has the same share."""
    study = bare_study(prompts=2)
    study = replace(study, items=tuple(replace(item, prompt="one prompt") for item in study.items))
    results = results_of(study, answers_of(np.array([[1, 0], [1, 0]])))
    assert preference_rows(results)[0][3:5] == ("50.0%", "unknown: ask more raters or prompts")
    first = results.to_json()["preferences"][0]
    assert (first["share"], first["low"], first["high"]) == (0.5, None, None)


def test_the_preferred_method_comes_first_in_a_row() -> None:
    results = results_of(bare_study(), answers_of(np.array([[0, 0, 0, 1], [0, 1, 0, 0]])))
    question, first, second, share, interval, *_ = preference_rows(results)[0]
    assert (question, first, second, share) == ("text", "theirs", "ours", "75.0%")
    one = results.preferences[0]
    assert one.low is not None
    assert interval.endswith(f"to {1 - one.low:.1%}")


def test_a_question_without_answers_says_so() -> None:
    results = results_of(bare_study(), [])
    assert [row[3] for row in preference_rows(results)] == ["no answers", "no answers"]


def test_the_share_on_the_left_shows_who_did_not_look() -> None:
    study = bare_study(prompts=100)
    answers = [Answer.now("anna", trial, "left") for trial in study.trials("anna")]
    one = results_of(study, answers).preferences[0]
    assert one.left == 1
    assert one.share == pytest.approx(0.5, abs=0.2)


def test_the_same_answers_give_the_same_interval() -> None:
    answers = answers_of((np.random.default_rng(0).random((5, 4)) < 0.5).astype(int))
    assert results_of(bare_study(), answers) == results_of(bare_study(), answers)


def rounds(*pairs: tuple[str, str, int]) -> list[Answer]:
    """Answers by winner, loser and how often, each on another prompt and of one of three raters."""
    wins = [(winner, loser) for winner, loser, count in pairs for _ in range(count)]
    return [said(f"rater {n % 3}", n, winner, over=loser) for n, (winner, loser) in enumerate(wins)]


def test_three_methods_have_strengths_with_intervals_around_them() -> None:
    study = bare_study(("a", "b", "c"), prompts=120)
    answers = rounds(("a", "b", 30), ("b", "a", 10), ("b", "c", 30), ("c", "b", 10), ("a", "c", 36), ("c", "a", 4))
    found = results_of(study, answers).strengths[0]
    assert found.values == pytest.approx([np.log(3), 0, -np.log(3)], abs=1e-5)  # these wins fit the model exactly
    assert found.low is not None
    assert found.high is not None
    assert all(low < value < high for low, value, high in zip(found.low, found.values or (), found.high, strict=True))
    assert [row[0] for row in strength_rows(found)] == ["a", "b", "c"]


def test_methods_that_no_answers_connect_are_named() -> None:
    study = bare_study(("a", "b", "c", "d"), prompts=10)
    answers = rounds(("a", "b", 2), ("b", "a", 2), ("c", "d", 2), ("d", "c", 2))
    found = results_of(study, answers).strengths[0]
    assert found.values is None
    assert "No answers connect these groups of methods: a, b; c, d." in found.problem


def test_methods_that_won_everything_are_named() -> None:
    study = bare_study(("a", "b", "c"), prompts=10)
    found = results_of(study, rounds(("b", "a", 2), ("a", "c", 2), ("c", "a", 2))).strengths[0]
    assert found.values is None
    assert "Strongest first: b; a, c." in found.problem


def test_few_answers_have_strengths_but_no_interval() -> None:
    study = bare_study(("a", "b", "c"), prompts=10)
    found = results_of(study, rounds(("a", "b", 1), ("b", "c", 1), ("c", "a", 1))).strengths[0]
    assert found.values == pytest.approx([0, 0, 0])
    assert found.low is None
    assert "too few answers" in found.problem
