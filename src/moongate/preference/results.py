"""What raters prefer: the share that chose each method of a pair (paper, Table 2), and strengths of several methods.

Answers of one rater are alike, and so are those on one prompt. The intervals therefore resample raters and prompts,
both at once and with replacement (Owen 2007, "The pigeonhole bootstrap"): an answer counts as often as its rater times
its prompt was drawn. Skipped trials count for neither side.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from moongate.preference.answers import Answer
from moongate.preference.strengths import fitted, groups
from moongate.preference.study import Question, Study

__all__ = [
    "LEVEL",
    "PREFERENCE_HEAD",
    "STRENGTHS_HEAD",
    "Preference",
    "Results",
    "Strengths",
    "preference_rows",
    "results_of",
    "strength_rows",
]

LEVEL = 0.95
RESAMPLES = 4000
SEED = 0
LEFT_OUT = 0.05
"""Share of resamples without finite strengths above which the others give no interval."""

PREFERENCE_HEAD = ("question", "preferred", "over", "share", f"{LEVEL:.0%} interval", "answers", "skipped", "left")
STRENGTHS_HEAD = ("method", "strength", f"{LEVEL:.0%} interval")

Weights = Float64[np.ndarray, "resamples answers"]


@dataclass(frozen=True, kw_only=True)
class Preference:
    """How two methods compare on one question."""

    question: Question
    first: str
    second: str
    share: float | None
    """Share of the answers that chose the first, from 0 to 1; None without an answer."""
    low: float | None
    """The interval at `LEVEL`; None where the answers give none: of one rater on one prompt, or all alike."""
    high: float | None
    answers: int
    """Answers that chose one."""
    skips: int
    raters: int
    prompts: int
    left: float | None
    """Share of the answers that chose the picture on the left; far from one half, raters did not look."""


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Bradley-Terry strengths of all methods on one question, as natural log-odds with mean 0.

    Of two methods with the strengths a and b, the first is preferred with probability 1 / (1 + exp(b - a)).
    """

    question: Question
    methods: tuple[str, ...]
    values: tuple[float, ...] | None
    """None where no finite strengths fit the answers; `problem` says why."""
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All results of a study."""

    preferences: tuple[Preference, ...]
    strengths: tuple[Strengths, ...]
    """One for each question, for more than two methods."""
    raters: tuple[str, ...]
    trials: int
    """Trials of each rater."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {"level": LEVEL, **asdict(self)}


def results_of(study: Study, answers: Iterable[Answer]) -> Results:
    """Return how often each method was preferred, with intervals, and the strengths of more than two methods.

    Args:
        study: The study.
        answers: Its answers, at most one of each rater and trial, as `read_answers` returns them.
    """
    given = list(answers)
    preferences, strengths = [], []
    for question in study.questions:
        asked = [one for one in given if one.trial.question == question]
        for first, second in combinations(study.methods, 2):
            pair = [one for one in asked if {one.trial.left, one.trial.right} == {first, second}]
            preferences.append(_preference(study, question, (first, second), pair))
        if len(study.methods) > 2:
            strengths.append(_strengths(study, question, [one for one in asked if one.preferred]))
    return Results(
        preferences=tuple(preferences),
        strengths=tuple(strengths),
        raters=tuple(dict.fromkeys(one.rater for one in given)),
        trials=len(study.keys),
    )


def preference_rows(results: Results) -> list[tuple[str, ...]]:
    """Return a row of texts for each preference, in the order of `PREFERENCE_HEAD`, the preferred method first."""
    return [_row(one) for one in results.preferences]


def strength_rows(strengths: Strengths) -> list[tuple[str, ...]]:
    """Return a row of texts for each method, in the order of `STRENGTHS_HEAD`, the strongest first."""
    values, low, high = strengths.values or (), strengths.low, strengths.high
    rows: list[tuple[str, ...]] = []
    for index in sorted(range(len(values)), key=lambda index: -values[index]):
        interval = f"{low[index]:+.2f} to {high[index]:+.2f}" if low and high else "unknown"
        rows.append((strengths.methods[index], f"{values[index]:+.2f}", interval))
    return rows


def _row(one: Preference) -> tuple[str, ...]:
    share, low, high = one.share, one.low, one.high
    first, second = one.first, one.second
    if share is None:
        return one.question, first, second, "no answers", "", "0", str(one.skips), ""
    if share < 0.5:
        first, second, share = second, first, 1 - share
        low, high = (None, None) if low is None or high is None else (1 - high, 1 - low)
    if low is not None:
        interval = f"{low:.1%} to {high:.1%}"
    else:
        interval = f"unknown: {'all agree' if share == 1 and one.answers > 1 else 'ask more raters or prompts'}"
    left = f"{one.left:.0%}"
    return one.question, first, second, f"{share:.1%}", interval, str(one.answers), str(one.skips), left


def _preference(study: Study, question: Question, pair: tuple[str, str], answers: Sequence[Answer]) -> Preference:
    decided = [one for one in answers if one.preferred]
    chosen = np.array([one.preferred == pair[0] for one in decided], dtype=np.float64)

    def share(weights: Weights) -> Float64[np.ndarray, "resamples 1"]:
        total = weights.sum(1)
        with np.errstate(invalid="ignore"):
            return (weights @ chosen / total)[:, None]  # not a number where no answer was drawn

    bounds = _interval(study, decided, share) if decided else None
    return Preference(
        question=question,
        first=pair[0],
        second=pair[1],
        share=float(chosen.mean()) if decided else None,
        low=float(bounds[0][0]) if bounds else None,
        high=float(bounds[1][0]) if bounds else None,
        answers=len(decided),
        skips=len(answers) - len(decided),
        raters=len({one.rater for one in answers}),
        prompts=len({study.items[one.trial.item].prompt for one in answers}),
        left=sum(one.choice == "left" for one in decided) / len(decided) if decided else None,
    )


def _strengths(study: Study, question: Question, decided: Sequence[Answer]) -> Strengths:
    methods, size = study.methods, len(study.methods)
    verdicts = [[methods.index(method) for method in one.verdict] for one in decided if one.verdict]
    # The table of wins as one row: a cell for each winner and loser.
    cells = np.array([winner * size + loser for winner, loser in verdicts], dtype=np.int64)
    wins = np.bincount(cells, minlength=size * size).reshape(size, size).astype(np.float64)
    if problem := _problem(wins, methods):
        return Strengths(question=question, methods=methods, values=None, low=None, high=None, problem=problem)
    values = fitted(wins[None])[0]

    def strengths(weights: Weights) -> Float64[np.ndarray, "resamples methods"]:
        tables = np.zeros((len(weights), size * size))
        for cell in range(size * size):
            tables[:, cell] = weights[:, cells == cell].sum(1)
        return fitted(tables.reshape(-1, size, size))

    bounds = _interval(study, decided, strengths)
    return Strengths(
        question=question,
        methods=methods,
        values=tuple(map(float, values)),
        low=tuple(map(float, bounds[0])) if bounds else None,
        high=tuple(map(float, bounds[1])) if bounds else None,
        problem="" if bounds else "There are too few answers for an interval.",
    )


def _problem(wins: Float64[np.ndarray, "methods methods"], methods: Sequence[str]) -> str:
    """Return why no finite strengths fit the answers; empty if some do (Ford 1957)."""
    parts = groups(wins + wins.T)
    if len(parts) > 1:
        names = "; ".join(", ".join(methods[index] for index in part) for part in parts)
        return f"No answers connect these groups of methods: {names}. Strengths compare methods within one group only."
    ranked = groups(wins)
    if len(ranked) > 1:
        names = "; ".join(", ".join(methods[index] for index in part) for part in ranked)
        return f"Some methods won against others every time, so strengths have no bound. Strongest first: {names}."
    return ""


def _interval(
    study: Study, answers: Sequence[Answer], measured: Callable[[Weights], Float64[np.ndarray, "resamples values"]]
) -> tuple[Float64[np.ndarray, " values"], Float64[np.ndarray, " values"]] | None:
    """Return the bounds of values over resampled raters and prompts; None where there is nothing to resample.

    Nor is there where all resamples are alike: bounds without width would claim certainty.
    """
    raters, rater_of = _numbered([one.rater for one in answers])
    prompts, prompt_of = _numbered([study.items[one.trial.item].prompt for one in answers])
    if raters < 2 and prompts < 2:
        return None
    generator = np.random.default_rng(SEED)
    weights = _counts(generator, raters)[:, rater_of] * _counts(generator, prompts)[:, prompt_of]
    values = measured(weights.astype(np.float64))
    usable = values[np.isfinite(values).all(1)]
    if len(usable) < (1 - LEFT_OUT) * len(values):
        return None
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return None if np.isclose(low, high).any() else (low, high)


def _numbered(names: Sequence[str]) -> tuple[int, Int64[np.ndarray, " answers"]]:
    """Return how many different names there are, and the number of each."""
    distinct = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return len(distinct), np.array([distinct[name] for name in names], dtype=np.int64)


def _counts(generator: np.random.Generator, size: int) -> Int64[np.ndarray, "resamples size"]:
    """Return how often each of `size` things is in each resample."""
    return generator.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.int64)
