"""The closed form of the merge (paper, Sec. 3.2, Eq. 4-5; derived in App. A), as plain algebra in float64.

The paper looks for the matrix W that keeps prescribed values and otherwise moves regularization features least:

    W = argmin_W |W C_reg^T - W0 C_reg^T|_F   subject to   W C^T = V                                    (Eq. 4)
    W = W0 + v^T d,   d = C (C_reg^T C_reg)^-1,   v^T = (V - W0 C^T) (d C^T)^-1                         (Eq. 5)

    C      [constraints, width]   features whose values are prescribed          (here: rows)
    C_reg  [features, width]      features whose values should move least       (here: gram = C_reg^T C_reg)
    V      [out, constraints]     prescribed values                             (here: values = (V - W0 C^T)^T)

Here D = W - W0 is the unknown, because a concept stores changes. With the Gram matrix plus a ridge factorized by
Cholesky, C_reg^T C_reg + r I = L L^T, and the whitened constraints A = L^-1 C^T [width, constraints], Eq. 5 becomes

    D = (V - W0 C^T) A^+ L^-1

With features Z that must not move at all, D Z^T = 0 joins the constraints of Eq. 4. Let the columns of Q [width, free]
be an orthonormal basis of the directions orthogonal to Z. Then D = E Q^T with any E. So Eq. 4 is solved for E, with C Q
for C and Q^T C_reg^T C_reg Q for the Gram matrix, and D Z^T is zero to rounding whatever the constraints are.

Soft rows P with wanted values U add the cost |D P^T - U^T|^2 for rows scaled by the root of their weight. After the
constraints have been met with D1, the directions that are left satisfy, with B = L^-1 P^T without its part in the span
of A,

    D = D1 + (U - P D1^T)^T (B^T B + I)^-1 B^T L^-1

Four things differ from the paper's formula:

- The pseudo-inverse A^+ comes from a singular value decomposition of A. Eq. 5 inverts d C^T = A^T A, whose condition
  number is the square of A's; in float32, on the shapes of Stable Diffusion, that misses the constraints visibly
  (`benchmarks/merge.py`).
- Constraints that depend on one another are counted instead of being divided by, and contradicting constraints get
  their least-squares compromise. Eq. 5 exists for independent constraints only.
- The ridge r is a small cost of all change. Layer normalization leaves directions in which features hold nothing but
  the rounding of float32; without a ridge the solution has its largest numbers there.
- The solution is kept as low-rank factors with orthonormal rows, so that rounding them to float32 is relative to the
  change itself.

The module knows nothing of models or concepts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moongate.errors import OptionError

__all__ = ["Factorized", "factorize"]

JITTER = 1e-14
"""If rounding has made the matrix indefinite, this share of its mean diagonal is added, and then tenfold more."""
RANK_TOLERANCE = 1e-8
"""A direction counts as independent when its singular value is above this share of the largest one."""
SOFT_TOLERANCE = 0.03
"""Soft rows count in directions in which they cost more than this, squared, relative to neutral features: 0.1 %."""
FIXED_TOLERANCE = 1e-12
"""Fixed features fill the directions whose singular value is above this share of the largest: all but rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Factorized:
    """The factorized constraints; `solve` then takes one product of matrices for each layer that reads the features."""

    rank: int
    """Number of independent constraints."""
    capacity: int
    """Number of further independent constraints that would fit."""
    condition: float
    """Condition number of the independent constraints, each scaled to length one."""
    cosines: Float[Tensor, "rows rows"]
    """Cosine between each two constraints in the metric of the cost, <L^-1 c_i, L^-1 c_j>; 0 where one is soft."""
    down: Float[Tensor, "rank width"]
    """Orthonormal rows. Every solution is `up @ down`."""
    exact: Bool[Tensor, " rows"]
    """Which rows are constraints; the others are soft."""
    scales: Float[Tensor, " rows"]
    """What each row's values are multiplied by: 1 / |L^-1 c_i|, or the root of a soft row's weight."""
    solver: Float[Tensor, "rows rank"]
    """Maps the scaled values to `up`."""
    reach: Float[Tensor, "rows rank"]
    """The rows in the coordinates of `down`, C down^T."""

    def solve(self, values: Float[Tensor, "rows out"]) -> Float[Tensor, "out rank"]:
        """Solve Eq. 4 for one matrix.

        Args:
            values: The wanted change of each row's value, (V - W0 C^T)^T.

        Returns:
            The factor `up`; the change of the matrix is `up @ down`. If constraints contradict one another, it is their
            least-squares solution, each constraint scaled to length one, and `residual` is not zero.
        """
        values = values.double()
        up = (values * self.scales[:, None]).T @ self.solver
        missed = (values - self.reach @ up.T) * self.exact[:, None]
        return up + (missed * self.scales[:, None]).T @ self.solver  # one refinement: the factors are rounded

    def residual(self, up: Float[Tensor, "out rank"], values: Float[Tensor, "rows out"]) -> float:
        """Return |D C^T - V|_F / |V|_F over the constraints for D = up @ down; 0 when all values are 0."""
        wanted = values.double()[self.exact]
        norm = float(wanted.norm())
        return float((self.reach[self.exact] @ up.T - wanted).norm()) / norm if norm else 0.0


def factorize(
    rows: Tensor, gram: Tensor, *, ridge: float = 0.0, fixed: Tensor | None = None, weights: Tensor | None = None
) -> Factorized:
    """Factorize the left side of Eq. 4-5, which is the same for all layers that share a cost.

    Args:
        rows: C, the features whose values are prescribed, [rows, width] with at least one row.
        gram: C_reg^T C_reg, the sum of f f^T over the regularization features f, [width, width].
        ridge: r as a share of the mean diagonal of `gram`, at least 0.
        fixed: Z, features whose values must not move at all, [fixed, width].
        weights: The weight of each row, above 0. Infinity, as without `weights`, makes it a constraint; a finite
            weight w makes it soft, with the cost w |D c - v|^2.

    Returns:
        The factorized problem in float64.

    Raises:
        OptionError: The shapes disagree, a number is not finite, or `gram` is no such sum or zero.
    """
    rows, gram = rows.double(), gram.double()
    fixed = rows.new_zeros(0, rows.shape[-1]) if fixed is None else fixed.double()
    _check(rows, gram, fixed)
    weights = torch.full((len(rows),), torch.inf, dtype=rows.dtype) if weights is None else weights.double()
    exact = weights.isinf()
    free = _free(fixed)
    lower = _cholesky(free.T @ gram @ free, ridge)
    whitened = torch.linalg.solve_triangular(lower, _free_parts(rows, free).T, upper=False)
    lengths = whitened.norm(dim=0)
    scales = torch.where(exact, torch.where(lengths > 0, 1 / lengths, 0.0), weights.sqrt())
    hard, soft = (whitened * scales)[:, exact], (whitened * scales)[:, ~exact]
    left, values, right = _svd(hard, above=lambda largest: RANK_TOLERANCE * largest)
    more, strengths, mixed = _svd(soft - left @ (left.T @ soft), above=lambda _: SOFT_TOLERANCE)
    # What the soft rows still want after the constraints, times s / (1 + s^2) in each of their directions.
    filtered = mixed * (strengths / (1 + strengths.square()))
    solver = rows.new_zeros(len(rows), len(values) + len(strengths))
    solver[exact, : len(values)] = right / values
    solver[exact, len(values) :] = -(right / values) @ (left.T @ soft) @ filtered
    solver[~exact, len(values) :] = filtered
    directions = torch.linalg.solve_triangular(lower.T, torch.cat([left, more], 1), upper=True)
    basis, triangle = torch.linalg.qr(free @ directions)
    cosines = (whitened * scales * exact).T @ (whitened * scales * exact)
    return Factorized(
        rank=len(values),
        capacity=free.shape[1] - len(values),
        condition=float(values[0] / values[-1]) if len(values) else 1.0,
        cosines=cosines,
        down=basis.T,
        exact=exact,
        scales=scales,
        solver=solver @ triangle.T,
        reach=rows @ basis,
    )


def _free(fixed: Float[Tensor, "fixed width"]) -> Float[Tensor, "width free"]:
    """Return an orthonormal basis of all directions that are orthogonal to the fixed features."""
    if not len(fixed):
        return torch.eye(fixed.shape[1], dtype=fixed.dtype)
    _, values, right = torch.linalg.svd(fixed)
    return right[int((values > FIXED_TOLERANCE * values[0]).sum()) :].T


def _free_parts(rows: Float[Tensor, "rows width"], free: Float[Tensor, "width free"]) -> Float[Tensor, "rows free"]:
    """Return the rows in the free coordinates; a row of which only rounding is left there becomes 0."""
    parts = rows @ free
    return torch.where((parts.norm(dim=1) > RANK_TOLERANCE * rows.norm(dim=1))[:, None], parts, 0.0)


def _svd(
    matrix: Float[Tensor, "width rows"], *, above: Callable[[Tensor], Tensor | float]
) -> tuple[Float[Tensor, "width rank"], Float[Tensor, " rank"], Float[Tensor, "rows rank"]]:
    """Return the left vectors, singular values and right vectors of values above a bound, given the largest value."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > above(values[0])).sum()) if len(values) else 0
    return left[:, :rank], values[:rank], right[:rank].T


def _check(rows: Tensor, gram: Tensor, fixed: Tensor) -> None:
    width = gram.shape[0]
    shapes_fit = rows.ndim == fixed.ndim == gram.ndim == 2 and {*gram.shape, rows.shape[1], fixed.shape[1]} == {width}
    if not shapes_fit or not len(rows):
        raise OptionError(
            f"Rows of shape {tuple(rows.shape)} and a Gram matrix of shape {tuple(gram.shape)} do not fit together. "
            "Give rows [constraints, width] and a Gram matrix [width, width] of the same text features."
        )
    if not all(numbers.isfinite().all() for numbers in (rows, gram, fixed)):
        raise OptionError("A feature or the Gram matrix has a number that is not finite. Train the concepts again.")


def _cholesky(gram: Float[Tensor, "width width"], ridge: float) -> Float[Tensor, "width width"]:
    """Return L with L L^T = gram + r I, adding jitter if rounding has made that matrix indefinite."""
    mean = float(gram.diagonal().mean())
    if mean <= 0:
        raise OptionError("The Gram matrix is zero: there are no regularization features. Give captions.")
    unit = torch.eye(len(gram), dtype=gram.dtype)
    for jitter in (0.0, *(JITTER * 10**power for power in range(8))):
        lower, failed = torch.linalg.cholesky_ex(gram + (ridge + jitter) * mean * unit)
        if not failed:
            return lower
    raise OptionError("The Gram matrix is not positive semi-definite; it must be a sum of f f^T over features.")
