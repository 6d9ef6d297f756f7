"""The closed form of the paper's Eq. 4-5 as plain algebra: equality constraints, and a quadratic cost to keep low.

Wanted is the change D of a matrix that maps every row of `rows` to given values and, among all such D, moves the
regularization features least:

    minimize  trace(D (G + r I) D^T)   subject to   D C^T = V^T        (C = rows, G = gram, r = ridge)

With G + r I = L L^T (Cholesky) and A = L^-1 C^T the minimizer is D = V^T A^+ L^-1. Everything is float64. A^+ comes
from a singular value decomposition, so that A^T A, whose condition number is the square of A's, is never formed and
rows that depend on one another are counted rather than divided by. The module knows nothing of models or concepts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.errors import OptionError

__all__ = ["ClosedForm"]

JITTER = 1e-14
"""Where rounding has made the matrix indefinite, this share of its mean diagonal is added, and more if need be."""
RANK_TOLERANCE = 1e-8
"""A direction counts when its singular value is above this share of the largest."""


class ClosedForm:
    """The factorized left side; one `solve` for each matrix that reads the same features.

    rows: [constraints, width], the features whose values are prescribed. gram: [width, width], the sum of f f^T over
    the regularization features f. ridge: a cost of all change, as a share of the mean diagonal of the Gram matrix; it
    keeps directions that no caption uses, where features hold nothing but rounding, from being changed without end.
    Raises OptionError when shapes disagree or a number is not finite.
    """

    def __init__(
        self, rows: Float[Tensor, "constraints width"], gram: Float[Tensor, "width width"], *, ridge: float = 0.0
    ) -> None:
        rows, gram = rows.double(), gram.double()
        width = gram.shape[0]
        if rows.ndim != 2 or gram.shape != (width, width) or rows.shape[1] != width or not len(rows):
            raise OptionError(f"Rows {tuple(rows.shape)} and Gram matrix {tuple(gram.shape)} do not fit together.")
        if not (rows.isfinite().all() and gram.isfinite().all()):
            raise OptionError("A feature or the Gram matrix holds a number that is not finite.")
        self.rows = rows
        lower = _cholesky(gram, ridge)
        whitened = torch.linalg.solve_triangular(lower, rows.T, upper=False)
        self._norms = whitened.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        left, values, right = torch.linalg.svd(whitened / self._norms, full_matrices=False)
        self.rank = int((values > RANK_TOLERANCE * values[0]).sum())
        """Number of independent constraints."""
        self.condition = float(values[0] / values[self.rank - 1])
        """Condition number of the independent constraints, each scaled to length one."""
        self.cosines: Float[Tensor, "constraints constraints"] = (right.T * values.square()) @ right
        """Cosine between each two constraints, measured as the cost sees them."""
        directions = torch.linalg.solve_triangular(lower.T, left[:, : self.rank], upper=True)
        basis, triangle = torch.linalg.qr(directions)
        self.down: Float[Tensor, "rank width"] = basis.T
        """Orthonormal rows: every solution is `up @ down`."""
        self._to_up = (right[: self.rank].T / values[: self.rank]) @ triangle.T
        self._reach = rows @ basis

    @property
    def width(self) -> int:
        """Length of a feature: the most independent constraints there can be."""
        return self.rows.shape[1]

    def solve(self, values: Float[Tensor, "constraints out"]) -> Float[Tensor, "out rank"]:
        """Return `up`, with which `up @ down` solves the problem for one matrix.

        Where the constraints contradict one another, their least squares solution is returned (each constraint
        scaled to length one); `residual` tells.
        """
        values = values.double()
        up = (values / self._norms[:, None]).T @ self._to_up
        rest = values - self._reach @ up.T
        return up + (rest / self._norms[:, None]).T @ self._to_up  # one refinement: the factorization was rounded

    def residual(self, up: Float[Tensor, "out rank"], values: Float[Tensor, "constraints out"]) -> float:
        """Return the norm of D C^T - V^T relative to that of V (0 when V is 0)."""
        norm = float(values.double().norm())
        return float((self._reach @ up.T - values.double()).norm()) / norm if norm else 0.0


def _cholesky(gram: Float[Tensor, "width width"], ridge: float) -> Float[Tensor, "width width"]:
    """Factorize, with more jitter where rounding has made the matrix indefinite."""
    mean = float(gram.diagonal().mean())
    if mean <= 0:
        raise OptionError("The Gram matrix is zero: there are no regularization features. Give captions.")
    unit = torch.eye(len(gram), dtype=gram.dtype)
    for jitter in (0.0, *(JITTER * 10**power for power in range(8))):
        lower, failed = torch.linalg.cholesky_ex(gram + (ridge + jitter) * mean * unit)
        if not failed:
            return lower
    raise OptionError("The Gram matrix is not positive semi-definite; it must be a sum of f f^T over features.")
