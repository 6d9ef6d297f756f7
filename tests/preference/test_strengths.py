"""Bradley-Terry strengths against closed forms and a general optimizer."""

import numpy as np
import pytest
from scipy.optimize import minimize

from moongate.preference.strengths import fitted, groups


def log_likelihood(logs: np.ndarray, wins: np.ndarray) -> float:
    return float(-(wins * np.log1p(np.exp(logs[None, :] - logs[:, None]))).sum())


def optimized(wins: np.ndarray) -> np.ndarray:
    size = len(wins)
    found = minimize(lambda x: -log_likelihood(np.append(x, -x.sum()), wins), np.zeros(size - 1), tol=1e-12)
    return np.append(found.x, -found.x.sum())


def test_two_things_have_the_log_odds_of_their_wins() -> None:
    (found,) = fitted(np.array([[[0.0, 30], [10, 0]]]))
    assert found == pytest.approx([np.log(3) / 2, -np.log(3) / 2])


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_those_of_a_general_optimizer(seed: int) -> None:
    wins = np.random.default_rng(seed).integers(1, 20, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    assert fitted(wins[None])[0] == pytest.approx(optimized(wins), abs=1e-4)


def test_expected_wins_are_the_wins() -> None:
    """The likelihood's gradient is 0: Zermelo's condition (1929)."""
    wins = np.array([[0.0, 7, 0, 2], [3, 0, 9, 0], [0, 1, 0, 5], [1, 0, 4, 0]])  # not each pair was compared
    odds = np.exp(fitted(wins[None])[0])
    chance = odds[:, None] / (odds[:, None] + odds[None, :])
    assert ((wins + wins.T) * chance).sum(1) == pytest.approx(wins.sum(1), abs=1e-6)


def test_strengths_that_drew_the_answers_are_found() -> None:
    true = np.array([0.8, 0.1, -0.3, -0.6])
    generator = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(true[None, :] - true[:, None]))
    wins = np.triu(generator.binomial(20_000, chance), 1).astype(float)
    wins += np.tril(20_000 - wins.T, -1)
    assert fitted(wins[None])[0] == pytest.approx(true, abs=0.03)


def test_tables_are_fitted_as_each_alone_and_without_finite_strengths_not_at_all() -> None:
    tables = np.array([[[0.0, 3], [1, 0]], [[0, 4], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [1, 0]]])
    found = fitted(tables)
    assert np.isnan(found).all(1).tolist() == [False, True, True, False]
    assert found[0] == pytest.approx(fitted(tables[:1])[0])
    assert found[3] == pytest.approx([0, 0])


def test_one_win_of_many_converges() -> None:
    (found,) = fitted(np.array([[[0.0, 500, 500], [1, 0, 250], [1, 250, 0]]]))
    assert found == pytest.approx([2 * np.log(500) / 3, -np.log(500) / 3, -np.log(500) / 3], abs=1e-6)


def test_groups_are_named_strongest_first() -> None:
    wins = np.zeros((4, 4))
    wins[2, 0] = wins[2, 1] = wins[0, 1] = wins[1, 0] = wins[0, 3] = 1
    assert groups(wins) == [[2], [0, 1], [3]]
    apart = np.zeros((4, 4))
    apart[0, 2] = apart[2, 0] = apart[1, 3] = apart[3, 1] = 1
    assert groups(apart) == [[0, 2], [1, 3]]
