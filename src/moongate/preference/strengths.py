"""Bradley-Terry strengths of things that were compared two at a time.

Thing i is preferred to j with probability p_i / (p_i + p_j). The likelihood has one maximum if every thing beat every
other one, directly or through others (Ford 1957); then Hunter's iteration reaches it from anywhere, since each step
increases the likelihood (2004, "MM algorithms for generalized Bradley-Terry models", Eq. 3).
"""

import numpy as np
from jaxtyping import Bool, Float64

__all__ = ["fitted", "groups"]

ITERATIONS = 10_000
TOLERANCE = 1e-9
"""Largest change of a log-odd in the last step."""


def fitted(wins: Float64[np.ndarray, "tables things things"]) -> Float64[np.ndarray, "tables things"]:
    """Return the strengths of each table as log p_i with mean 0; not a number where no finite ones fit.

    Args:
        wins: `wins[t, i, j]` is how often, in table t, thing i was preferred to j.
    """
    finite = _reaches(wins).all((1, 2))
    found = np.full(wins.shape[:2], np.nan)
    todo = np.flatnonzero(finite)
    logs = np.zeros((len(todo), wins.shape[1]))
    for _ in range(ITERATIONS):
        if not len(todo):
            break
        table, odds = wins[todo], np.exp(logs)
        compared = (table + table.swapaxes(1, 2)) / (odds[:, :, None] + odds[:, None, :])
        stepped = np.log(table.sum(2) / compared.sum(2))
        stepped -= stepped.mean(1, keepdims=True)
        is_done = np.abs(stepped - logs).max(1) < TOLERANCE
        found[todo] = stepped
        todo, logs = todo[~is_done], stepped[~is_done]
    return found


def groups(wins: Float64[np.ndarray, "things things"]) -> list[list[int]]:
    """Return the groups within which each thing beat each other one, directly or through others; winners come first.

    Args:
        wins: `wins[i, j]` is how often i was preferred to j. A symmetric table gives the groups that are connected.
    """
    reaches = _reaches(wins[None])[0]
    both = reaches & reaches.T
    parts = {tuple(np.flatnonzero(row)) for row in both}
    return [list(map(int, part)) for part in sorted(parts, key=lambda part: (-int(reaches[part[0]].sum()), part))]


def _reaches(wins: Float64[np.ndarray, "tables things things"]) -> Bool[np.ndarray, "tables things things"]:
    """Return which things beat which, directly or through others; each one reaches itself."""
    size = wins.shape[1]
    reaches = (wins > 0) | np.eye(size, dtype=bool)
    for middle in range(size):
        reaches |= reaches[:, :, middle, None] & reaches[:, middle, None, :]
    return reaches
