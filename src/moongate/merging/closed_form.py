"""The closed form of the merge (paper, Sec. 3.3, Eq. 4-5; derived in App. A), as plain algebra in float64.

The paper looks for the matrix W that keeps prescribed values and otherwise moves regularization features least:

    W = argmin_W |W C_reg^T - W0 C_reg^T|_F   subject to   W C^T = V                                    (Eq. 4)
    W = W0 + v^T d,   d = C (C_reg^T C_reg)^-1,   v^T = (V - W0 C^T) (d C^T)^-1                         (Eq. 5)

    C      [constraints, width]   features whose values are prescribed          (here: rows)
    C_reg  [features, width]      features whose values should move least       (here: gram = C_reg^T C_reg)
    V      [out, constraints]     prescribed values                             (here: values = (V - W0 C^T)^T)

Here D = W - W0 is the unknown, because a concept stores changes. With the Gram matrix plus a ridge factorized by
Cholesky, C_reg^T C_reg + r I = L L^T, and the whitened constraints A = L^-1 C^T [width, constraints], Eq. 5 becomes

    D = (V - W0 C^T) A^+ L^-1

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

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.errors import OptionError

__all__ = ["Factorized", "factorize"]

JITTER = 1e-14
"""If rounding has made the matrix indefinite, this share of its mean diagonal is added, and then tenfold more."""
RANK_TOLERANCE = 1e-8
"""A direction counts as independent when its singular value is above this share of the largest one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Factorized:
    """The factorized constraints; `solve` then takes one product of matrices for each layer that reads the features."""

    rank: int
    """Number of independent constraints."""
    condition: float
    """Condition number of the independent constraints, each scaled to length one."""
    cosines: Float[Tensor, "constraints constraints"]
    """Cosine between each two constraints in the metric of the cost, <L^-1 c_i, L^-1 c_j>."""
    down: Float[Tensor, "rank width"]
    """Orthonormal rows. Every solution is `up @ down`."""
    lengths: Float[Tensor, " constraints"]
    """Length of each whitened constraint, |L^-1 c_i|."""
    solver: Float[Tensor, "constraints rank"]
    """Maps values, divided by `lengths`, to `up`."""
    reach: Float[Tensor, "constraints rank"]
    """The constraints in the coordinates of `down`, C down^T."""

    @property
    def width(self) -> int:
        """Width of the features, the largest possible number of independent constraints."""
        return self.down.shape[1]

    def solve(self, values: Float[Tensor, "constraints out"]) -> Float[Tensor, "out rank"]:
        """Solve Eq. 4 for one matrix.

        Args:
            values: The prescribed change of values, (V - W0 C^T)^T.

        Returns:
            The factor `up`; the change of the matrix is `up @ down`. If constraints contradict one another, it is their
            least-squares solution, each constraint scaled to length one, and `residual` is not zero.
        """
        values = values.double()
        up = (values / self.lengths[:, None]).T @ self.solver
        missed = values - self.reach @ up.T
        return up + (missed / self.lengths[:, None]).T @ self.solver  # one refinement: the factors are rounded

    def residual(self, up: Float[Tensor, "out rank"], values: Float[Tensor, "constraints out"]) -> float:
        """Return |D C^T - values^T|_F / |values|_F for D = up @ down; 0 when all values are 0."""
        norm = float(values.double().norm())
        return float((self.reach @ up.T - values.double()).norm()) / norm if norm else 0.0


def factorize(rows: Tensor, gram: Tensor, *, ridge: float = 0.0) -> Factorized:
    """Factorize the left side of Eq. 4-5, which is the same for all layers.

    Args:
        rows: C, the features whose values are prescribed, [constraints, width] with at least one row.
        gram: C_reg^T C_reg, the sum of f f^T over the regularization features f, [width, width].
        ridge: r as a share of the mean diagonal of `gram`, at least 0.

    Returns:
        The factorized problem in float64.

    Raises:
        OptionError: The shapes disagree, a number is not finite, or `gram` is no such sum or zero.
    """
    rows, gram = rows.double(), gram.double()
    _check(rows, gram)
    lower = _cholesky(gram, ridge)
    whitened = torch.linalg.solve_triangular(lower, rows.T, upper=False)
    lengths = whitened.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    left, values, right = torch.linalg.svd(whitened / lengths, full_matrices=False)
    rank = int((values > RANK_TOLERANCE * values[0]).sum())
    directions = torch.linalg.solve_triangular(lower.T, left[:, :rank], upper=True)
    basis, triangle = torch.linalg.qr(directions)
    return Factorized(
        rank=rank,
        condition=float(values[0] / values[rank - 1]),
        cosines=(right.T * values.square()) @ right,
        down=basis.T,
        lengths=lengths,
        solver=(right[:rank].T / values[:rank]) @ triangle.T,
        reach=rows @ basis,
    )


def _check(rows: Tensor, gram: Tensor) -> None:
    width = gram.shape[0]
    if rows.ndim != 2 or gram.shape != (width, width) or rows.shape[1] != width or not len(rows):
        raise OptionError(
            f"Rows of shape {tuple(rows.shape)} and a Gram matrix of shape {tuple(gram.shape)} do not fit together. "
            "Give rows [constraints, width] and a Gram matrix [width, width] of the same text features."
        )
    if not (rows.isfinite().all() and gram.isfinite().all()):
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
