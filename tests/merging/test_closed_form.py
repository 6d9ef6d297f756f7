import numpy as np
import pytest
import scipy.linalg
import torch

from moongate.errors import OptionError
from moongate.merging.closed_form import factorize


def random_problem(
    *, constraints: int, width: int = 24, out: int = 7, seed: int = 0, spread: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, a Gram matrix whose eigenvalues span 10^spread, and values."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(constraints, width, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    eigenvalues = torch.logspace(0, -spread, width, dtype=torch.float64)
    gram = (basis * eigenvalues) @ basis.T
    return rows, (gram + gram.T) / 2, torch.randn(constraints, out, generator=generator, dtype=torch.float64)


def solution(rows: torch.Tensor, gram: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    factorized = factorize(rows, gram)
    return factorized.solve(values) @ factorized.down


@pytest.mark.parametrize("constraints", [1, 5, 20])
@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_it_meets_the_constraints_and_is_stationary(constraints: int, spread: float) -> None:
    rows, gram, values = random_problem(constraints=constraints, spread=spread)
    change = solution(rows, gram, values)
    assert (change @ rows.T - values.T).norm() <= 1e-9 * values.norm()
    gradient = change @ gram  # of the cost; at the minimum it is a combination of the constraint rows
    free = torch.from_numpy(scipy.linalg.null_space(rows.numpy()))
    assert (gradient @ free).norm() <= 1e-9 * gradient.norm()


@pytest.mark.parametrize("spread", [0.0, 4.0])
def test_it_agrees_with_the_optimality_conditions_solved_at_once(spread: float) -> None:
    """The KKT system of Eq. 4, solved by LAPACK through scipy without any of our factorizations."""
    rows, gram, values = random_problem(constraints=9, spread=spread)
    width, count = gram.shape[0], len(rows)
    system = np.block([[gram.numpy(), rows.numpy().T], [rows.numpy(), np.zeros((count, count))]])
    right = np.concatenate([np.zeros((width, values.shape[1])), values.numpy()])
    expected = scipy.linalg.solve(system, right, assume_a="sym")[:width].T
    actual = solution(rows, gram, values).numpy()
    assert np.linalg.norm(actual - expected) <= 1e-8 * np.linalg.norm(expected)


def test_it_agrees_with_the_papers_formula() -> None:
    """Eq. 5, W = W0 + v^T d with d = C (G^-1)^T and v = (d C^T)^-1 (V - C W0^T), for the change W - W0."""
    rows, gram, values = random_problem(constraints=6)
    d = rows @ torch.linalg.inv(gram)
    v = torch.linalg.inv(d @ rows.T) @ values
    torch.testing.assert_close(solution(rows, gram, values), v.T @ d, rtol=1e-9, atol=1e-12)


def test_the_order_of_the_constraints_does_not_matter() -> None:
    rows, gram, values = random_problem(constraints=8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shuffled = solution(rows[order], gram, values[order])
    torch.testing.assert_close(shuffled, solution(rows, gram, values), rtol=1e-10, atol=1e-12)


def test_a_repeated_constraint_changes_nothing_but_is_not_counted() -> None:
    rows, gram, values = random_problem(constraints=5)
    once = solution(rows, gram, values)
    factorized = factorize(torch.cat([rows, rows[:2]]), gram)
    assert factorized.rank == 5
    up = factorized.solve(torch.cat([values, values[:2]]))
    torch.testing.assert_close(up @ factorized.down, once, rtol=1e-9, atol=1e-12)
    assert factorized.residual(up, torch.cat([values, values[:2]])) < 1e-12
    assert factorized.cosines[0, 5] == pytest.approx(1.0)


def test_contradicting_constraints_are_met_half_way_and_reported() -> None:
    rows, gram, values = random_problem(constraints=3)
    factorized = factorize(torch.cat([rows, rows[:1]]), gram)
    both = torch.cat([values, -values[:1]])
    up = factorized.solve(both)
    assert factorized.residual(up, both) > 0.1
    assert (up @ factorized.down @ rows[0]).norm() < 1e-9  # half way between v and -v


def test_a_refinement_meets_nearly_dependent_constraints_several_times_more_exactly() -> None:
    """Without it the values are those of the rounded factors alone."""
    rows, gram, values = random_problem(constraints=30, width=256, spread=6.0)
    rows[15:] = rows[:15] + 1e-4 * rows[15:]
    factorized = factorize(rows, gram, ridge=1e-6)
    assert factorized.rank == 30
    unrefined = (values * factorized.scales[:, None]).T @ factorized.solver
    residuals = [factorized.residual(up, values) for up in (factorized.solve(values), unrefined)]
    assert residuals[0] < residuals[1] / 3


@pytest.mark.parametrize("concepts", [2, 10, 50])
def test_many_concepts_of_four_rows_each(concepts: int) -> None:
    rows, gram, values = random_problem(constraints=4 * concepts, width=256, spread=5.0)
    factorized = factorize(rows, gram)
    assert factorized.rank == 4 * concepts
    assert factorized.residual(factorized.solve(values), values) < 1e-10


def test_the_ridge_is_a_cost_of_all_change() -> None:
    rows, gram, values = random_problem(constraints=4)
    with_ridge = gram + 0.3 * gram.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    factorized = factorize(rows, gram, ridge=0.3)
    torch.testing.assert_close(factorized.solve(values) @ factorized.down, solution(rows, with_ridge, values))


def test_rounding_in_a_direction_that_no_feature_uses_is_not_amplified() -> None:
    """Layer normalization makes all features sum to nothing; float32 leaves 1e-7, which the ridge keeps small."""
    rows, gram, values = random_problem(constraints=4)
    center = torch.eye(24, dtype=torch.float64) - 1 / 24
    noisy = (rows @ center).float().double() + 1e-7 * rows.mean(1, keepdim=True)
    factorized = factorize(noisy, center @ gram @ center, ridge=1e-6)
    clean = factorize(rows @ center, center @ gram @ center, ridge=1e-6)
    expected = clean.solve(values) @ clean.down
    assert (factorized.solve(values) @ factorized.down - expected).norm() < 0.1 * expected.norm()


def test_the_condition_is_that_of_constraints_of_length_one_in_the_metric_of_the_cost() -> None:
    """Two vectors at an angle of cosine c have the singular values (1 + c)^(1/2) and (1 - c)^(1/2)."""
    rows = torch.tensor([[5.0, 0.0, 0.0], [1.2, 1.6, 0.0]])
    factorized = factorize(rows, torch.eye(3))
    assert factorized.cosines[0, 1] == pytest.approx(0.6)
    assert factorized.condition == pytest.approx((1.6 / 0.4) ** 0.5)
    skewed = factorize(rows, torch.diag(torch.tensor([1.0, 4.0, 1.0])))  # lengths and angles are those of L^-1 c
    cosine = 1.2 / (1.2**2 + 0.8**2) ** 0.5
    assert skewed.condition == pytest.approx(((1 + cosine) / (1 - cosine)) ** 0.5)


def test_a_singular_gram_matrix_is_given_jitter() -> None:
    rows, gram, values = random_problem(constraints=3, spread=0.0)
    features = torch.linalg.cholesky(gram).T[:10]  # ten captions cannot fill 24 dimensions
    factorized = factorize(rows, features.T @ features)
    assert factorized.residual(factorized.solve(values), values) < 1e-9


def test_the_solution_has_the_rank_of_the_constraints() -> None:
    rows, gram, values = random_problem(constraints=4)
    factorized = factorize(rows, gram)
    assert factorized.down.shape == (4, 24)
    torch.testing.assert_close(factorized.down @ factorized.down.T, torch.eye(4, dtype=torch.float64))
    assert torch.linalg.matrix_rank(factorized.solve(values) @ factorized.down) == 4


def test_what_does_not_fit_is_refused() -> None:
    rows, gram, _ = random_problem(constraints=3)
    with pytest.raises(OptionError, match=r"\(3, 23\).*\(24, 24\)"):
        factorize(rows[:, 1:], gram)
    with pytest.raises(OptionError, match="not finite"):
        factorize(rows / 0, gram)
    with pytest.raises(OptionError, match="Give captions"):
        factorize(rows, torch.zeros_like(gram))


def kkt(rows: np.ndarray, gram: np.ndarray, right: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Minimize tr(D gram D^T) - 2 tr(D right) subject to D rows^T = values^T, by the KKT system of LAPACK."""
    width, count = len(gram), len(rows)
    system = np.block([[gram, rows.T], [rows, np.zeros((count, count))]])
    return scipy.linalg.solve(system, np.concatenate([right, values]))[:width].T


def test_fixed_features_do_not_move_at_all_and_the_rest_is_optimal() -> None:
    """Against the KKT system with the fixed features as constraints of value 0."""
    rows, gram, values = random_problem(constraints=5, spread=4.0)
    fixed = torch.randn(3, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    factorized = factorize(rows, gram, fixed=torch.cat([fixed, fixed[:1]]))
    change = factorized.solve(values) @ factorized.down
    assert (change @ fixed.T).norm() <= 1e-14 * change.norm() * fixed.norm()
    assert (factorized.rank, factorized.capacity) == (5, 16)
    both = torch.cat([rows, fixed]).numpy()
    wanted = np.concatenate([values.numpy(), np.zeros((3, 7))])
    expected = kkt(both, gram.numpy(), np.zeros((24, 7)), wanted)
    assert np.linalg.norm(change.numpy() - expected) <= 1e-8 * np.linalg.norm(expected)


def test_a_constraint_on_a_fixed_feature_yields_to_it() -> None:
    rows, gram, values = random_problem(constraints=3)
    factorized = factorize(rows, gram, fixed=rows[:1])
    up = factorized.solve(values)
    change = up @ factorized.down
    assert (change @ rows[0]).norm() <= 1e-14 * change.norm() * rows[0].norm()
    assert (change @ rows[1:].T - values[1:].T).norm() <= 1e-10 * values.norm()
    assert factorized.rank == 2
    assert factorized.residual(up, values) == pytest.approx(float(values[0].norm() / values.norm()))


def test_soft_rows_cost_their_weight_times_the_square_of_what_they_miss() -> None:
    """Against the KKT system of tr(D G D^T) + sum of w |D p - u|^2, with constraints and fixed features."""
    rows, gram, values = random_problem(constraints=9)
    weights = torch.tensor([torch.inf] * 4 + [0.5, 2.0, 30.0, 4.0, 1.0])
    fixed = torch.randn(2, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    factorized = factorize(rows, gram, fixed=fixed, weights=weights)
    hard, soft, scale = rows[:4], rows[4:].numpy(), weights[4:].double().numpy()[:, None]
    constraints = torch.cat([hard, fixed]).numpy()
    wanted = np.concatenate([values[:4].numpy(), np.zeros((2, 7))])
    cost = gram.numpy() + soft.T @ (scale * soft)
    expected = kkt(constraints, cost, soft.T @ (scale * values[4:].numpy()), wanted)
    up = factorized.solve(values)
    assert np.linalg.norm((up @ factorized.down).numpy() - expected) <= 1e-9 * np.linalg.norm(expected)
    assert factorized.rank == 4
    assert factorized.residual(up, values) < 1e-12
    assert not factorized.cosines[4:].any()


def test_soft_rows_alone_are_ridge_regression() -> None:
    """tr(D D^T) + w |D P^T - U^T|^2, as least squares of numpy on the stacked system."""
    rows, _, values = random_problem(constraints=6)
    factorized = factorize(rows, torch.eye(24, dtype=torch.float64), weights=torch.full((6,), 9.0))
    stacked = np.concatenate([np.eye(24), 3 * rows.numpy()])
    right = np.concatenate([np.zeros((24, 7)), 3 * values.numpy()])
    expected = np.linalg.lstsq(stacked, right, rcond=None)[0].T
    np.testing.assert_allclose((factorized.solve(values) @ factorized.down).numpy(), expected, rtol=1e-9, atol=1e-12)
